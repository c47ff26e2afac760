"""What a test needs of the machine. With CI=true nothing may be missing; elsewhere a test is skipped by name."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

NPM_ATTEMPTS = 2
NPM_SECONDS = 50
"""Both attempts together fit under the timeout of a test."""


def need(program: str, package: str, folder: str = "/usr/sbin") -> str:
    """Return the path of a program, from the Debian package that brings it, in ``folder`` if on no path."""
    found = shutil.which(program) or shutil.which(program, path=f"{folder}:/sbin")
    if found is None:
        _missing(f"{program} is missing: apt-get install {package}")
    assert found is not None
    return found


def need_npm(folder: Path) -> None:
    """Install what the package.json of a folder names, once for all workers that want it."""
    npm = need("npm", "npm")
    wanted = (folder / "package.json").read_bytes()
    modules = folder / "node_modules"
    done = modules / ".installed"
    # The lock is not in the folder: npm may empty that.
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"need-npm-{os.getuid()}-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel gives it back, however this process ends
        if done.exists() and done.read_bytes() == wanted:
            return
        done.unlink(missing_ok=True)  # who is killed while npm runs leaves nothing that looks whole
        command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
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
        _missing(f"npm cannot install {folder}: {said}")


def need_root() -> None:
    """Make sure that this runs as root."""
    if os.geteuid() != 0:
        _missing("this needs root, for a network namespace")


def _missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
