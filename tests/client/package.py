"""The client as npm packs it, and the tools from npm that build and test it."""

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from tests.support.deadline import SAFETY_SECONDS
from tests.support.needs import need, need_npm

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "client"
FOLDER = Path(__file__).parent


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a tool and return what it said, however it ended."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SAFETY_SECONDS,
        check=False,
    )


def tool(path: str, folder: Path = SOURCE) -> Path:
    """Return a program of one of npm's packages: of the client's own, or of another folder's. Installs them first."""
    need_npm(folder)
    return folder / "node_modules" / path


def built(kind: str, folder: Path) -> None:
    """Build the client's ``bundles`` or ``types`` into a folder."""
    need_npm(SOURCE)
    done = run(need("node", "nodejs"), "build.mjs", kind, folder, folder=SOURCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def packed(folder: Path) -> dict[str, Any]:
    """Pack the client into a folder, and return what npm says about it: ``filename``, ``files`` and more."""
    done = run(
        need("npm", "npm"), "pack", "--json", "--loglevel=error", "--pack-destination", folder, folder=SOURCE
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    (told,) = said.values() if isinstance(said, dict) else said  # by name, since npm 12
    return dict(told)


def installed(folder: Path) -> Path:
    """Make a folder an application that has the package, and the types of React; return it."""
    told = packed(folder)
    modules = folder / "node_modules"
    modules.mkdir()
    with tarfile.open(folder / told["filename"]) as archive:
        archive.extractall(modules, filter="data")
    (modules / "package").rename(modules / told["name"])
    return folder
