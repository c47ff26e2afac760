"""What a test needs of the machine. With CI=true nothing may be missing; elsewhere a test is skipped by name."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def need(program: str, package: str) -> str:
    """Return the path of a program, from the Debian package that brings it."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        _missing(f"{program} is missing: apt-get install {package}")
    assert found is not None
    return found


def need_npm(folder: Path) -> None:
    """Install what the package.json of a folder names, once."""
    npm = need("npm", "npm")
    done = folder / "node_modules" / ".package-lock.json"
    if done.exists() and done.stat().st_mtime > (folder / "package.json").stat().st_mtime:
        return
    command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)
    if result.returncode:
        _missing(f"npm cannot install {folder}: {result.stderr[-500:]}")


def need_root() -> None:
    """Make sure that this runs as root."""
    if os.geteuid() != 0:
        _missing("this needs root, for a network namespace")


def _missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
