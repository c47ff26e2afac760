"""The systemd unit: as systemd reads it, closed to what it does not need, in step with its configuration."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.main import main
from gateway.config.model.value_types import parse_duration
from tests.support.deployment import DEPLOY, ENVIRON, closing_seconds, load, secrets_in
from tests.support.needs import need

UNIT = DEPLOY / "systemd/sse-gateway.service"
CONFIG = DEPLOY / "systemd/gateway.yaml"
ENVIRONMENT = DEPLOY / "systemd/environment"

MOST_EXPOSED = 15
"""Tenths on the scale of ``systemd-analyze security``, on which a unit without any hardening has 96."""


def values(key: str) -> list[str]:
    """Return what the unit says of a key, in order."""
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def value(key: str) -> str:
    (found,) = values(key)
    return found


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = need("systemd-analyze", "systemd")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.extended
def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    """A key that systemd does not know is a line in the journal, and has no effect."""
    unit = tmp_path / UNIT.name
    program = value("ExecStart").split()[0]
    unit.write_text(UNIT.read_text().replace(program, sys.executable))
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchDogSecs="))
    done = analyze("verify", "--man=no", str(unit))
    assert "WatchDogSecs" in done.stdout + done.stderr, "a verification that passes everything proves nothing"


@pytest.mark.extended
def test_it_is_closed_to_what_it_does_not_need() -> None:
    """systemd's own measure; what is left open is the network and the syscalls of a service."""
    done = analyze("security", "--offline=yes", f"--threshold={MOST_EXPOSED}", str(UNIT))
    assert done.returncode == 0, done.stdout[-2000:]


def test_it_ends_in_time() -> None:
    """A shorter TimeoutStopSec cuts streams in the middle of the drain."""
    assert closing_seconds(CONFIG) <= parse_duration(f"{value('TimeoutStopSec')}s")
    assert value("KillMode") == "mixed", "workers are drained by their parent"
    assert value("ExecReload") == "/bin/kill -HUP $MAINPID"
    assert value("Type") == "notify"


def test_its_configuration_is_good(tmp_path: Path) -> None:
    """Loaded with the real model: each variable is in the environment's file, each secret a credential."""
    environment = configparser.ConfigParser()
    environment.optionxform = str  # type: ignore[assignment,method-assign]
    environment.read_string("[file]\n" + ENVIRONMENT.read_text())
    given = dict(environment["file"])
    config = load(CONFIG, secrets_in(tmp_path), given)
    assert (config.server.listen.port, config.server.admin.port) == (8080, 9090)
    assert set(given) <= set(ENVIRON)
    text = CONFIG.read_text()
    named = set(re.findall(r"file:\$\{CREDENTIALS_DIRECTORY\}/([\w-]+)", text))
    loaded = {line.partition(":")[0] for line in values("LoadCredential")}
    assert named == loaded
    assert f"sqlite:///{value('WorkingDirectory')}/" in text
    assert value("WorkingDirectory") == f"/var/lib/{value('StateDirectory')}"


def test_the_command_is_one(tmp_path: Path) -> None:
    """What ExecStart runs is understood, up to a configuration that is not there."""
    _, *arguments = value("ExecStart").split()
    file = str(tmp_path / "none.yaml")
    assert main([file if each.endswith(".yaml") else each for each in arguments]) == 1
