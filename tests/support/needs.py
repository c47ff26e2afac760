"""What a test needs of the machine beyond Python: only tests of the extended tier may, and what is missing fails."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NPM_ATTEMPTS = 2
NPM_SECONDS = 150
"""Seconds for one attempt of npm; both together fit under the timeout of a test."""

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sse-gateway-tests"
"""What was built for tests, by the state of its sources; it may be deleted whenever no test runs."""

_tier_has_programs = True


def set_tier(*, has_programs: bool) -> None:
    """Say whether the test that comes next may need programs; `conftest` does, by the marker ``extended``."""
    global _tier_has_programs
    _tier_has_programs = has_programs


def need(program: str, package: str, folder: str = "/usr/sbin") -> str:
    """Return the path of a program, from the Debian package that brings it, in ``folder`` if on no path."""
    _check_tier(program)
    found = shutil.which(program) or shutil.which(program, path=f"{folder}:/sbin")
    if found is None:
        pytest.fail(
            f"{program} is missing: apt-get install {package}, or run `make test-all` as root on Debian"
        )
    return found


def need_npm(folder: Path) -> None:
    """Install what the package.json of a folder names, or its lock file, once for all workers that want it."""
    npm = need("npm", "npm")
    lock = folder / "package-lock.json"
    wanted = b"".join(file.read_bytes() for file in (folder / "package.json", lock) if file.exists())
    modules = folder / "node_modules"
    done = modules / ".installed"
    # The lock is not in the folder: npm may empty that.
    with _alone(f"npm-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}"):
        if done.exists() and done.read_bytes() == wanted:
            return
        done.unlink(missing_ok=True)  # an npm that is killed must leave nothing that looks complete
        install = ["ci"] if lock.exists() else ["install", "--no-package-lock"]
        command = [npm, *install, "--no-audit", "--no-fund", "--loglevel=error"]
        said = ""
        for _ in range(NPM_ATTEMPTS):
            try:
                result = subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS
                )
            except subprocess.TimeoutExpired:
                said = f"no end after {NPM_SECONDS} seconds"
            else:
                said = result.stderr[-500:]
                if result.returncode == 0:
                    modules.mkdir(exist_ok=True)
                    done.write_bytes(wanted)
                    return
            shutil.rmtree(modules, ignore_errors=True)  # half of an installation may be in the way
        pytest.fail(f"npm cannot install {folder}: {said}")


def need_built(name: str, sources: Path, build: Callable[[Path, Path], None]) -> Path:
    """Return the folder that ``build(copy of the sources, folder)`` filled, once for each state of the sources.

    It stays for later runs. ``build`` raises CalledProcessError where it fails; so does this test then.
    """
    state = hashlib.sha256()
    for file in sorted(file for file in sources.rglob("*") if file.is_file()):
        state.update(f"{file.relative_to(sources)}\0".encode() + file.read_bytes() + b"\0")
    built = CACHE / f"{name}-{state.hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with _alone(f"built-{name}"):
        if not built.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{name}-") as work:
                copy, result = Path(work) / "sources", Path(work) / "result"
                shutil.copytree(sources, copy)
                result.mkdir()
                try:
                    build(copy, result)
                except subprocess.CalledProcessError as error:
                    pytest.fail(f"{name} cannot be built from {sources}: {error}\n{error.stdout[-2000:]}")
                result.rename(
                    built
                )  # as one change: a build that is killed leaves nothing that looks complete
    return built


def need_root() -> None:
    """Make sure that this runs as root."""
    _check_tier("root")
    if os.geteuid() != 0:
        pytest.fail("this needs root, for a network namespace or a file system of its own")


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Let no other process of this user do the same meanwhile."""
    with (Path(tempfile.gettempdir()) / f"need-{os.getuid()}-{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it, however this process ends
        yield


def _check_tier(what: str) -> None:
    if not _tier_has_programs:
        pytest.fail(
            f"a test that needs {what} belongs to the extended tier: mark it with pytest.mark.extended"
        )
