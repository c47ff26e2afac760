"""The Compose file: valid, in step with the gateway's configuration, and nothing that it mounts is missing."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from compose_spec import PyCompose

from gateway.config.model.value_types import parse_duration
from tests.support.deployment import DEPLOY, closing_seconds, documents, load, secrets_in
from tests.support.needs import need

FILE = DEPLOY / "compose.yaml"
CONFIG = DEPLOY / "compose/gateway.yaml"
PROMETHEUS = DEPLOY / "prometheus/compose.yaml"


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    (told,) = documents(FILE)
    return dict(told["services"])


def test_it_is_valid() -> None:
    """By a parser of the specification, which knows no key that the specification does not; names lead somewhere."""
    found = PyCompose.from_yaml(FILE.read_text())
    assert set(found.service_names()) == {"gateway", "redis", "prometheus"}
    for check in (found.validate, found.validate_networks, found.validate_volumes):
        check()
    with pytest.raises(ValueError, match="intervall"):
        PyCompose.from_yaml(FILE.read_text().replace("interval:", "intervall:"))


def test_what_it_mounts_and_builds_is_there(services: dict[str, dict[str, Any]]) -> None:
    """Docker makes an empty folder of a path that is not there, and the service starts without its file."""
    mounts = [mount.split(":") for each in services.values() for mount in each["volumes"]]
    sources = [source for source, *_ in mounts if source.startswith(".")]
    assert len(sources) == 2
    assert all((DEPLOY / source).is_dir() for source in sources)
    assert (DEPLOY / services["gateway"]["build"]["context"] / "Dockerfile").is_file()
    (option,) = (each for each in services["prometheus"]["command"] if each.startswith("--config.file="))
    targets = {target: DEPLOY / source for source, target, *_ in mounts}
    asked = Path(option.partition("=")[2])
    assert targets[str(asked.parent)] / asked.name == PROMETHEUS
    assert PROMETHEUS.is_file()


def test_the_gateway_can_be_reached_and_ends_in_time(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Its configuration is good, its ports are the published ones, on loopback; the grace period is long enough."""
    config = load(CONFIG, secrets_in(tmp_path))
    gateway = services["gateway"]
    assert set(re.findall(r"\$\{(\w+)\}", CONFIG.read_text())) == set(gateway["environment"])
    ports = [config.server.listen.port, config.server.admin.port]
    assert gateway["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]
    assert f"127.0.0.1:{ports[1]}/readyz" in gateway["healthcheck"]["test"][-1]
    assert closing_seconds(CONFIG) <= parse_duration(gateway["stop_grace_period"])
    mount = next(each for each in gateway["volumes"] if each.startswith("./compose:"))
    assert mount.split(":")[1] == "/etc/sse-gateway"  # where the image looks for gateway.yaml


def test_every_service_says_when_it_is_well(services: dict[str, dict[str, Any]]) -> None:
    """The gateway waits for Redis, and Prometheus for the gateway."""
    assert all(each["healthcheck"]["test"][0] == "CMD" for each in services.values())
    assert services["gateway"]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert services["prometheus"]["depends_on"] == {"gateway": {"condition": "service_healthy"}}


@pytest.mark.extended
def test_prometheus_scrapes_the_gateway(services: dict[str, dict[str, Any]]) -> None:
    """Prometheus' own check, and the target is the gateway's admin port."""
    command = [need("promtool", "prometheus"), "check", "config", "--syntax-only", str(PROMETHEUS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = documents(PROMETHEUS)
    assert told["scrape_configs"][0]["static_configs"] == [{"targets": ["gateway:9090"]}]
