"""The file of a running gateway, whatever becomes of it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config.loader.document import MAX_CONFIG_BYTES
from gateway.core.errors import GatewayError
from gateway.server.reload import ConfigFile

GOOD = {
    "sources": {"hooks": {"type": "webhook", "verify": {"bearer": ["file:token"]}}},
    "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
}


@pytest.fixture
def file(tmp_path: Path) -> ConfigFile:
    (tmp_path / "token").write_text("t" * 20)
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(GOOD))
    file = ConfigFile(path)
    file.load()
    return file


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (Path.unlink, "No such file"),
        (_folder, "Is a directory"),
        (_loop, "Too many levels of symbolic links"),
        (_pipe, "no file that can be read again"),
        (_endless, "no file that can be read again"),
        (lambda path: path.write_bytes(b"a: b\n" * (MAX_CONFIG_BYTES // 5 + 1)), "is larger than"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is not UTF-8 text"),
        (lambda path: path.write_text(json.dumps(GOOD)[:-9]), "not valid YAML"),
        (
            lambda path: path.write_text(json.dumps(GOOD).replace("token", "t\\u0000")),
            "not a valid file name",
        ),
        (lambda path: path.write_text(json.dumps(GOOD).replace("token", "\\ud800")), "not a valid file name"),
        (lambda path: (path.parent / "token").unlink(), "No such file"),
    ],
)
def test_whatever_becomes_of_it_is_told(file: ConfigFile, spoil: Callable[[Path], None], told: str) -> None:
    """It must neither hang nor fill the memory, and what is mended must be noticed."""
    good = file.loaded_fingerprint
    spoil(file.path)
    assert file.read_fingerprint() != good
    with pytest.raises(GatewayError) as caught:
        file.load()
    assert told in str(caught.value)
    assert file.read_fingerprint() == file.loaded_fingerprint


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """``--config <(…)`` can be started with, and a reload says why it cannot follow."""
    read, write = os.pipe()
    os.write(write, json.dumps(GOOD).replace("file:token", "t" * 20).encode())
    os.close(write)
    try:
        file = ConfigFile(f"/dev/fd/{read}")
        assert list(file.load().channels) == ["orders"]
        assert file.read_fingerprint() == file.loaded_fingerprint
        with pytest.raises(GatewayError, match="no file that can be read again"):
            file.load()
    finally:
        os.close(read)
