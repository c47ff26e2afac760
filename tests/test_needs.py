"""What tests need is installed once, however many workers want it at the same time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.deadline import SAFETY_SECONDS
from tests.support.needs import need_built, need_npm

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


BUILD = """
import pathlib, sys
from tests.support import needs

def build(sources, result):
    with (needs.CACHE / "ran").open("a") as log:
        log.write("built\\n")
    (result / "out").write_text((sources / "in").read_text())

needs.CACHE = pathlib.Path(sys.argv[1])
print((needs.need_built("x", pathlib.Path(sys.argv[2]), build) / "out").read_text())
"""


def test_clients_are_built_once_for_each_state_of_their_sources(tmp_path: Path) -> None:
    """Every test waits for a compiler, or runs a program of other sources."""
    cache, sources = tmp_path / "cache", tmp_path / "sources"
    sources.mkdir()

    def build_at_once() -> set[str]:
        command = [sys.executable, "-c", BUILD, str(cache), str(sources)]
        builds = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        return {process.communicate(timeout=SAFETY_SECONDS)[0].strip() for process in builds}

    (sources / "in").write_text("one")
    assert build_at_once() == {"one"}
    (sources / "in").write_text("two")
    assert build_at_once() == {"two"}
    assert (cache / "ran").read_text().split() == ["built"] * 2


def test_a_client_that_cannot_be_built_fails_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler's error is a test that is skipped, or a program that is half there."""
    monkeypatch.setattr(needs, "CACHE", tmp_path / "cache")
    (tmp_path / "sources").mkdir()

    def build(_: Path, result: Path) -> None:
        (result / "half").touch()
        command = [sys.executable, "-c", "raise SystemExit('no such symbol')"]
        subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)

    for _ in range(2):
        with pytest.raises(pytest.fail.Exception, match="no such symbol"):
            need_built("x", tmp_path / "sources", build)
