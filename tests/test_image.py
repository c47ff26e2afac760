"""The Dockerfile: linted, and its install steps run for real in a clean environment."""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from bench.process import free_port, wait_for_port
from gateway.config.model.sources import WebhookConfig
from tests.support.config import loads
from tests.support.deadline import SAFETY_SECONDS

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = re.split("^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]


def copied() -> list[str]:
    """Return the sources of the COPY lines of the first stage."""
    lines = re.findall(r"^COPY (.+)$", STAGES[0], re.MULTILINE)
    return [name for line in lines for name in line.split()[:-1]]


def test_hadolint_has_nothing_to_say() -> None:
    """Lint rules that images are judged by."""
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(program), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.extended
def test_the_install_steps_give_a_gateway_that_runs_read_only(tmp_path: Path) -> None:
    """What the first stage copies is enough to install; the result writes its log and nothing else."""
    source, home = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    for name in copied():
        if (ROOT / name).is_dir():
            # Links stay links, as with COPY.
            shutil.copytree(
                ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            (source / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    assert "pip install --no-cache-dir --disable-pip-version-check '.[kafka]'" in DOCKERFILE
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    subprocess.run(
        [str(home / "bin/pip"), "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", ".[kafka]"],
        cwd=source, check=True,
    )  # fmt: skip
    port, admin = free_port(), free_port()
    text = (ROOT / "config/gateway.yaml").read_text()
    config = tmp_path / "gateway.yaml"
    config.write_text(
        text.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("127.0.0.1:9090", f"127.0.0.1:{admin}")
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    log = re.search(r"SSE_GATEWAY_LOG=(sqlite:///)/var/lib/sse-gateway(/\S+)", DOCKERFILE)
    assert log is not None
    environ = {
        "SSE_GATEWAY_LOG": f"{log[1]}{empty}{log[2]}",  # the image's volume is this folder here
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SSE_GATEWAY_CONFIG": str(config),
    }
    child = subprocess.Popen(["sse-gateway", "run"], cwd=empty, env=environ, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        health = re.search(r"urlopen\('(.*?)'", DOCKERFILE)
        assert health is not None
        with urllib.request.urlopen(health[1].replace("9090", str(admin)), timeout=SAFETY_SECONDS) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/client.js", timeout=SAFETY_SECONDS) as answer:
            assert (
                answer.read()
                == (ROOT / "client/client.js").read_bytes().partition(b"//# sourceMappingURL=")[0]
            )
        assert [path.name for path in empty.iterdir()] == ["var"]
    finally:
        child.terminate()
        child.wait(SAFETY_SECONDS)
    assert child.returncode == 0


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "config").glob("*.yaml"))])
def test_an_image_without_a_file_of_its_own_is_closed(name: str) -> None:
    """`docker run -p 8080:8080` must open no webhook and no try-it panel to the network."""
    environ = dict(re.findall(r"^\s*(?:ENV )?([A-Z_]+)=(\S+)", STAGES[-1], re.MULTILINE))
    secrets = dict.fromkeys(("JWT_SECRET", "WEBHOOK_TOKEN", "ADMIN_TOKEN"), "s3cret-" * 6)
    redis = {"REDIS_URL": "redis://127.0.0.1"}
    config = loads((ROOT / "config" / name).read_text(), environ={**environ, **secrets, **redis})
    is_open = config.server.development or any(
        isinstance(source, WebhookConfig) and source.verify.none for source in config.sources.values()
    )
    assert config.server.listen.is_loopback or not is_open


def test_the_image_is_not_root_and_stops_by_sigterm() -> None:
    """What a pod's restricted security context asks for."""
    assert re.search(r"^USER 10001$", STAGES[-1], re.MULTILINE)
    assert "STOPSIGNAL SIGTERM" in STAGES[-1]
    assert "HEALTHCHECK" in STAGES[-1]
