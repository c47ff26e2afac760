"""The guides: every file that they name is there, every command that can be run here is run."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.process import free_port, running, wait_for_port
from gateway.cli.main import main
from tests.support.config import loads
from tests.support.deployment import DEPLOY, documents
from tests.support.needs import need
from tests.support.shell import output

pytestmark = pytest.mark.extended

ROOT = DEPLOY.parent
GUIDES = {path.name: path.read_text() for path in sorted((ROOT / "docs/guides").glob("*.md"))}
PROGRAMS = {
    "curl", "docker", "export", "install", "kubectl", "openssl", "python3", "sse-gateway", "systemctl",
}  # fmt: skip
"""What their commands begin with."""


def commands(guide: str) -> list[str]:
    """Return the lines of its shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDES[guide], re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_guide_is_listed() -> None:
    """One that no list names is not found."""
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", GUIDES["README.md"]))
    assert listed == set(GUIDES) - {"README.md"}


@pytest.mark.parametrize("guide", GUIDES)
def test_every_file_of_a_command_is_there(guide: str) -> None:
    """A reader in a hurry pastes them."""
    for line in commands(guide):
        assert line.split()[0] in PROGRAMS, line
        for path in re.findall(r"(?<![\w/.])(?:config|deploy|docs)/[\w./-]+", line):
            assert (ROOT / path).exists(), f"{guide}: {path}"
        if " apply -k " in line:
            assert (ROOT / line.split()[-1] / "kustomization.yaml").is_file()


@pytest.mark.parametrize(("guide", "flavour"), [("sidecar.md", "sidecar"), ("replicated.md", "standalone")])
def test_the_secret_has_what_the_pod_asks_for(guide: str, flavour: str) -> None:
    """A key that is missing keeps the pod from starting."""
    (line,) = (each for each in commands(guide) if "create secret" in each)
    _, _, _, _, name, *rest = line.split()
    given = set(re.findall(r"--from-literal=([\w-]+)=", " ".join(rest)))
    (deployment,) = documents(DEPLOY / "kubernetes" / flavour / "deployment.yaml")
    text = str(deployment)
    asked = set(re.findall(rf"'name': '{name}', 'key': '([\w-]+)'", text))
    asked |= set(re.findall(r"'key': '([\w-]+)', 'path'", text))
    assert given == asked
    assert f"'secretName': '{name}'" in text


@pytest.mark.parametrize("guide", GUIDES)
def test_every_file_of_a_table_is_there(guide: str) -> None:
    """The table of the manifests names them all."""
    named = set(re.findall(r"^\| `([\w.]+\.yaml)` \|", GUIDES[guide], re.MULTILINE))
    if guide == "replicated.md":
        there = {path.name for path in (DEPLOY / "kubernetes/standalone").iterdir()}
        assert named == there - {"kustomization.yaml"}
    else:
        assert not named


def test_the_sections_that_are_shown_are_good() -> None:
    """With a source and a channel they are a whole configuration."""
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDES["behind-a-proxy.md"], re.DOTALL)
    rest = {
        "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
        "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
    }
    loads(text + yaml.safe_dump(rest), environ={"ADMIN_TOKEN": "a" * 32})


async def test_what_the_sidecar_guide_tries_works(tmp_path: Path) -> None:
    """Its commands, run by a shell; only the ports are others."""
    need("curl", "curl")
    public, admin = free_port(), free_port()
    prepare, check, run, *curls = commands("sidecar.md")[:5]
    file = tmp_path / "sidecar.yaml"
    text = (ROOT / "config/sidecar.yaml").read_text()
    file.write_text(text.replace("0.0.0.0:8080", f"127.0.0.1:{public}").replace(":9090", f":{admin}"))
    shown = subprocess.run(
        ["sh", "-ec", f'{prepare}; echo "$ADMIN_TOKEN $WEBHOOK_TOKEN"'],
        capture_output=True,
        text=True,
        check=True,
    )
    tokens = dict(zip(("ADMIN_TOKEN", "WEBHOOK_TOKEN"), shown.stdout.split(), strict=True))
    program = Path(sys.executable).with_name("sse-gateway")

    def own(command: str) -> str:
        return command.replace("config/sidecar.yaml", str(file)).replace(":8080", f":{public}")

    checked = shlex.split(own(check))
    done = subprocess.run(
        [str(program), *checked[1:]],
        env={**os.environ, **tokens},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with running(
        str(program), *shlex.split(own(run).removesuffix(" &"))[1:], stderr=None, **tokens
    ) as process:
        await asyncio.to_thread(wait_for_port, public, alive=process.is_running)
        post, stream = curls
        await output(own(post), '"ids"', **tokens)
        told = await output(own(stream), '"payload":{"order":17}', **tokens)
    assert "event: order.created" in told


def test_the_doctor_is_called_as_it_understands(capsys: pytest.CaptureFixture[str]) -> None:
    """Up to a name that does not exist: exit 1, where wrong usage is 2."""
    (line,) = (each for each in commands("behind-a-proxy.md") if "doctor" in each)
    arguments = shlex.split(line.replace("events.example.com", "events.invalid"))[1:]
    assert main(arguments) == 1
    assert "name" in capsys.readouterr().out
