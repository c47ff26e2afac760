"""What tests need is installed once, however many workers want it at the same time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deadline import SAFETY_SECONDS
from tests.support.needs import need_npm

pytestmark = pytest.mark.extended

ASK = "import sys, pathlib; from tests.support.needs import need_npm; need_npm(pathlib.Path(sys.argv[1]))"


def package(folder: Path, version: str) -> None:
    """Write a package.json whose installation leaves a line, and asks nobody else."""
    scripts = {"postinstall": "echo installed >> ran"}
    (folder / "package.json").write_text(
        json.dumps({"name": "needed", "version": version, "scripts": scripts})
    )


def times(folder: Path) -> int:
    """Return how often npm installed it."""
    return len((folder / "ran").read_text().splitlines())


def test_workers_share_one_installation(tmp_path: Path) -> None:
    """Two npm in one folder leave half of each; and a test that is over first takes what is not there yet."""
    package(tmp_path, "1.0.0")
    asking = [subprocess.Popen([sys.executable, "-c", ASK, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(SAFETY_SECONDS) for process in asking] == [0, 0, 0]
    assert times(tmp_path) == 1


def test_it_is_installed_again_when_it_must_be(tmp_path: Path) -> None:
    """Other versions are asked for, or somebody was killed while npm ran."""
    package(tmp_path, "1.0.0")
    need_npm(tmp_path)
    package(tmp_path, "1.0.1")
    need_npm(tmp_path)
    assert times(tmp_path) == 2
    (tmp_path / "node_modules" / ".installed").unlink()
    need_npm(tmp_path)
    need_npm(tmp_path)
    assert times(tmp_path) == 3
