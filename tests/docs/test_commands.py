"""Every command in the docs exists, and has the options that it is used with."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from gateway.cli.main import build_parser, command_parsers
from tests.docs.pages import PAGES, ROOT, Block, blocks, name, spans

SHELL = blocks("", "sh", "bash", "shell", "console")
PROGRAMS = frozenset(
    [
        "sse-gateway",
        "make",
        "curl",
        "redis-cli",
        "pip",
        "pip3",
        "python",
        "python3",
        "docker",
        "kubectl",
        "helm",
        "promtool",
        "systemctl",
        "openssl",
        "journalctl",
        "git",
        "npm",
        "export",
        "apt-get",
        "install",
        "cp",
        "ln",
        "mv",
        "nginx",
        "haproxy",
        "caddy",
        "envoy",
        "useradd",
        "kill",
        "jq",
    ]
)
"""Programs that docs may use. A line that starts with none of them is output, or a diagram."""

REDIS = frozenset(["publish", "xadd", "set", "get", "config", "info", "ping", "xrange", "subscribe", "acl"])
ROUTES = re.compile(
    r"/events(/[^/]+)?|/tickets|/hooks/[^/]+(/.*)?|/metrics|/healthz|/readyz|/status|/streams|/reload|/"
)
OURS = re.compile(
    r"https?://(?:127\.0\.0\.1|localhost|[\w.-]*example\.(?:com|org)|gateway|sse-gateway)(?::\d+)?"
)
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


def lines(block: Block) -> list[tuple[str, list[str]]]:
    """Return the commands of a block, as words; a line may have several."""
    found = []
    for text in block.text.replace("\\\n", " ").splitlines():
        line = text.strip().removeprefix("$ ").strip()
        first = re.sub(r"^(?:\w+=\S+\s+)+", "", line).partition(" ")[0]
        if first not in PROGRAMS:
            continue
        try:
            words = list(shlex.shlex(line, posix=True, punctuation_chars=";|&"))
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        command: list[str] = []
        for word in words:
            if word in ("|", "||", "&&", ";", "&") or word.endswith(";"):
                command += [word[:-1]] if word.endswith(";") and word != ";" else []
                found.append((line, command))
                command = []
            else:
                command.append(word)
        found.append((line, command))
    return [(line, stripped) for line, command in found if (stripped := _without_environment(command))]


def _without_environment(command: list[str]) -> list[str]:
    while command and re.fullmatch(r"\w+=.*", command[0]):
        command = command[1:]
    return command


COMMANDS = [(block.position, line, command) for block in SHELL for line, command in lines(block)]


def parse(words: list[str]) -> None:
    """Parse with the command's own parser. Raises AssertionError with its message."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            build_parser().parse_args(words)
    except SystemExit as end:
        assert end.code == 0, output.getvalue().strip().splitlines()[-1]


@pytest.mark.parametrize(("position", "line", "command"), COMMANDS, ids=[each[0] for each in COMMANDS])
def test_commands_are_real(position: str, line: str, command: list[str]) -> None:
    """Somebody pastes a command in an emergency, and it does not exist."""
    program, *words = command
    if program == "sse-gateway":
        if "[OPTION]..." not in words:
            parse([word for word in words if word not in (">", "<") and not word.startswith(">")])
    elif program == "make":
        targets = [word for word in words if re.fullmatch(r"[a-z-]+", word)]
        assert set(targets) <= TARGETS, f"{position}: {line}: make knows {sorted(TARGETS)}"
    elif program == "curl":
        for word in words:
            if (match := OURS.match(word)) is not None:
                path = re.split(r"[?#]", word[match.end() :])[0] or "/"
                assert ROUTES.fullmatch(path), f"{position}: {line}: the gateway has no route {path}"
    elif program == "redis-cli":
        verbs = [word.lower() for word in words if word.lower() in REDIS]
        assert verbs or any(word.startswith("--") for word in words), (
            f"{position}: {line}: which command is that?"
        )
    for word in words:
        if re.fullmatch(r"(deploy|config|docs|release)/[\w./-]+", word):
            assert (ROOT / word).exists(), f"{position}: {line}: there is no file {word}"


def test_commands_are_found() -> None:
    """The other tests of this file find nothing to check, and pass."""
    programs = {command[0] for _, _, command in COMMANDS}
    assert {"sse-gateway", "make", "curl", "redis-cli", "pip"} <= programs


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_the_text(page: Path) -> None:
    """A command in a sentence does not exist, or has other options."""
    parsers = command_parsers()
    for line, span in spans(page):
        position = f"{name(page)}:{line}: {span}"
        if (match := re.fullmatch(r"make ([a-z-]+)(?: .*)?", span)) is not None:
            assert match[1] in TARGETS, position
        if (match := re.match(r"sse-gateway ([a-z|]+)\b(.*)", span)) is not None:
            for command in match[1].split("|"):
                assert command in parsers, f"{position}: there is no such command"
                known = parsers[command]._option_string_actions
                for option in re.findall(r"(?<!\S)--[a-z-]+", match[2]):
                    assert option in known, f"{position}: {command} has no {option}"
