"""`check` as a command: forms of output, exit statuses, and what a stranger's text can do to them."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.process import free_port
from gateway.cli.main import main
from gateway.config.loader.load import load_file
from gateway.config.validation import warnings
from tests.config.test_load import BROKEN, GOOD
from tests.config.test_schema import ENVIRON

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs/check.md").read_text()
WARNED = GOOD + "timeouts: {heartbeat: 2m}\n"


def checked(
    capsys: pytest.CaptureFixture[str], text: str | bytes, folder: Path, *options: str
) -> tuple[int, str, str]:
    """Return the exit status, stdout and stderr of `check` on a file of this text."""
    file = folder / "g.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    status = main(["check", "--config", str(file), *options])
    printed = capsys.readouterr()
    return status, printed.out.replace(str(file), "g.yaml"), printed.err.replace(str(file), "g.yaml")


def commands(output: str) -> list[tuple[str, dict[str, str], str]]:
    """Return GitHub's workflow commands as its runner reads them (actions/runner, ActionCommand.cs)."""
    found = []
    for line in output.splitlines():
        kind, properties, message = re.fullmatch(r"::(\w+) ([^:]*)::(.*)", line).groups()  # type: ignore[union-attr]
        given = dict(each.split("=", 1) for each in properties.split(","))
        found.append((kind, {name: _read(value) for name, value in given.items()}, _read(message)))
    return found


def _read(text: str) -> str:
    for code, char in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        text = text.replace(code, char)
    return text


def test_warnings_are_told_and_the_file_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning stops no deploy, unless the pipeline says so."""
    status, out, err = checked(capsys, WARNED, tmp_path)
    assert (status, out) == (0, "g.yaml: good; 1 channel from 1 source, 2 warnings\n")
    assert "g.yaml:8:23: warning: timeouts.heartbeat: common proxies close" in err
    assert "[heartbeat-over-proxy]\n  8 | timeouts: {heartbeat: 2m}\n    |                       ^\n" in err
    status, out, err = checked(capsys, WARNED, tmp_path, "--strict")
    assert (status, out) == (1, "")
    assert err.endswith("g.yaml: 2 warnings (--strict)\n")


def test_json_is_one_document_of_the_documented_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs read it, whether the file is good, wrong, or no text at all."""
    documented = set(re.findall(r"^\| `(\w+)` \|", DOCS.partition("## JSON")[2], re.MULTILINE))
    for text, good in ((WARNED, True), (BROKEN, False), (b"\xff", False), ("a: [", False)):
        status, out, err = checked(capsys, text, tmp_path, "--format", "json", "--explain")
        told = json.loads(out)
        assert (status, err, told["good"], bool(told["errors"])) == (int(not good), "", good, not good)
        assert set(told) <= documented
        for entry in told["errors"] + told["warnings"]:
            assert set(entry) - {"code"} == {"line", "column", "path", "message", "source"}
    status, out, _ = checked(capsys, WARNED, tmp_path, "--format", "json", "--connect", "--explain")
    told = json.loads(out)
    assert set(told) == documented
    assert told["reached"] == [
        {"level": "ok", "what": "broker.url", "message": "in memory: nothing to reach", "fix": ""}
    ]
    assert [each["code"] for each in told["warnings"]] == ["open-webhook", "heartbeat-over-proxy"]


def test_github_gets_annotations_at_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake beside its line in the pull request; what stands in the file cannot add a command."""
    status, out, _ = checked(capsys, BROKEN, tmp_path, "--format", "github")
    found = commands(out)
    assert (status, len(found), {kind for kind, _, _ in found}) == (1, 8, {"error"})
    _, properties, message = found[2]
    assert (properties["line"], properties["col"], properties["title"]) == ("7", "14", "timeouts.heartbeat")
    assert message == "a duration needs a unit: 15s, or ms, m, h, d"
    (kind, properties, _) = commands(checked(capsys, WARNED, tmp_path, "--format", "github")[1])[1]
    assert (kind, properties["title"]) == ("warning", "timeouts.heartbeat [heartbeat-over-proxy]")
    (kind, *_) = commands(checked(capsys, WARNED, tmp_path, "--format", "github", "--strict")[1])[1]
    assert kind == "error"
    evil = GOOD + 'timeouts: {"a\\n::error file=x,line=1::b,%": 1, retry: "1\\n::set-env name=X::y"}\n'
    found = commands(checked(capsys, evil, tmp_path, "--format", "github")[1])
    assert [properties["title"] for _, properties, _ in found] == [
        'timeouts.a\n::error file=x,line=1::b,%', "timeouts.retry"
    ]  # fmt: skip


def test_a_terminal_gets_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of another author must not control the terminal that checks it."""
    evil = GOOD + 'timeouts: {"\\e[2Jkey": 1, "a\\n::set-env name=X::y": 2, retry: "\\e]0;title\\a"}\n'
    status, out, err = checked(capsys, evil, tmp_path)
    assert status == 1
    good = GOOD.replace("topic: orders", 'topic: "a\\n::set-env name=X::y"')
    _, explained, _ = checked(capsys, good, tmp_path, "--explain")
    assert not [char for char in out + err + explained if not char.isprintable() and char != "\n"]
    assert not [line for line in (out + err + explained).splitlines() if line.startswith("::")]


def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, in every form."""
    assert main(["check", "--config", str(tmp_path / "nope.yaml")]) == 1
    assert capsys.readouterr().err.endswith("nope.yaml: No such file or directory\n")
    status, _, err = checked(capsys, b"log: {}\n# \xff", tmp_path)
    assert (status, err) == (
        1,
        "the configuration g.yaml is not UTF-8 text (byte 10, in line 2); save it as UTF-8\n",
    )
    assert main(["check", "--format", "github", "--config", str(tmp_path)]) == 1
    ((kind, _, message),) = commands(capsys.readouterr().out)
    assert (kind, "Is a directory" in message) == ("error", True)


def test_stdin_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A template engine's output need not lie on a disk."""
    for text, status in ((GOOD, 0), (BROKEN, 1)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert main(["check", "--config", "-"]) == status
    printed = capsys.readouterr()
    assert printed.out == "<stdin>: good; 1 channel from 1 source, 1 warning\n"
    assert "<stdin>:7:14: timeouts.heartbeat: a duration needs a unit" in printed.err


def test_what_cannot_be_reached_is_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In all forms, and without the password."""
    port = free_port()
    text = GOOD + f'broker: {{url: "redis://:c4n4ry@127.0.0.1:{port}", timeout: 1m, pool: {{connect: 1m}}}}\n'
    status, out, err = checked(capsys, text, tmp_path, "--connect")
    assert status == 1
    assert f"bad   broker.url nothing listens at 127.0.0.1:{port}: the connection was refused\n" in out
    assert err.endswith("1 of 1 cannot be used\n")
    status, out, _ = checked(capsys, text, tmp_path, "--connect", "--format", "github")
    assert (status, commands(out)[-1][1]["title"]) == (1, "broker.url")
    status, out, _ = checked(capsys, text, tmp_path, "--connect", "--format", "json")
    assert (status, json.loads(out)["good"], json.loads(out)["reached"][0]["level"]) == (1, False, "bad")
    assert "c4n4ry" not in out + err


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda file: file.name)
def test_the_shipped_files_have_no_warnings(file: Path) -> None:
    """They are what people copy."""
    reading = load_file(file, ENVIRON)
    assert reading.config is not None
    assert [each.issue for each in reading.warnings] == []


def test_every_warning_is_documented() -> None:
    """Whoever finds a code in a log looks it up."""
    codes = set(re.findall(r'code="([\w-]+)"', Path(warnings.__file__).read_text()))
    assert (
        set(
            re.findall(
                r"^\| `([\w-]+)` \|", DOCS.partition("## Warnings")[2].partition("## ")[0], re.MULTILINE
            )
        )
        == codes
    )


def test_every_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    """What --help names, the page explains."""
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
    assert {"--connect", "--explain", "--format", "--strict", "--config"} == options
    assert not [option for option in options if option not in DOCS]


def test_the_pipelines_of_the_docs_are_yaml() -> None:
    """They are pasted."""
    blocks: Sequence[Any] = [
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    ]
    lines = [line for text in re.findall(r"sse-gateway (check .*)", DOCS) for line in [text]]
    assert len(blocks) == 3
    assert all(
        set(re.findall(r"--[a-z]+", line)) <= {"--config", "--format", "--strict", "--connect", "--explain"}
        for line in lines
    )
