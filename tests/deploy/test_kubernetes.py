"""The manifests: valid to the letter, restricted, in step with the configuration that they bring along."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import kubernetes_validate
import pytest
import yaml

from gateway import __version__
from gateway.config.model.config import Config
from gateway.config.model.value_types import parse_duration
from gateway.server.daemon import Daemon
from tests.support.config import loads
from tests.support.deployment import DEPLOY, MOUNTED, closing_seconds, documents, load, secrets_in, text_of
from tests.support.redis import RedisServer

FOLDER = DEPLOY / "kubernetes"
FLAVOURS = ["sidecar", "standalone"]
VERSIONS = ["1.30", "1.33", "1.37"]
APPLICATION_SECONDS = {"sidecar": 20, "standalone": 0}
"""What ends before the gateway does."""

pytestmark = pytest.mark.parametrize("flavour", FLAVOURS)


def manifests(flavour: str) -> dict[str, dict[str, Any]]:
    """Return the documents of all manifests by their kinds."""
    files = sorted(set((FOLDER / flavour).glob("*.yaml")) - {FOLDER / flavour / "gateway.yaml"})
    found = [each for file in files for each in documents(file)]
    by_kind = {each["kind"]: each for each in found}
    assert len(by_kind) == len(found)
    return by_kind


def pod(flavour: str) -> dict[str, Any]:
    return dict(manifests(flavour)["Deployment"]["spec"]["template"]["spec"])


def containers(flavour: str) -> list[dict[str, Any]]:
    spec = pod(flavour)
    return [*spec.get("initContainers", []), *spec["containers"]]


def gateway(flavour: str) -> dict[str, Any]:
    (found,) = (each for each in containers(flavour) if each["name"] == "gateway")
    return dict(found)


def config_file(flavour: str) -> Path:
    return FOLDER / flavour / "gateway.yaml"


@pytest.fixture
def config(flavour: str, tmp_path: Path) -> Config:
    return load(config_file(flavour), secrets_in(tmp_path))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(flavour: str, version: str) -> None:
    """A field that Kubernetes does not know is dropped in silence, or the roll-out fails."""
    checked = {"Deployment", "Service", "NetworkPolicy"}
    for kind, manifest in manifests(flavour).items():
        if kind in ("Kustomization", "PodMonitor"):
            continue
        kubernetes_validate.validate(manifest, version, strict=True)
        checked.discard(kind)
    assert not checked


def test_the_validation_would_tell(flavour: str) -> None:
    """A check that passes everything proves nothing."""
    manifest = manifests(flavour)["Deployment"]
    manifest["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_the_kustomization_has_all(flavour: str) -> None:
    """A file that is not listed is never applied; an image that is not named stays a word."""
    folder = FOLDER / flavour
    (told,) = documents(folder / "kustomization.yaml")
    listed = {*told["resources"], *told["configMapGenerator"][0]["files"], "kustomization.yaml"}
    assert listed == {file.name for file in folder.iterdir()}
    assert told["generatorOptions"] == {"disableNameSuffixHash": True}
    images = {each["name"]: each for each in told["images"]}
    assert {each["image"] for each in containers(flavour)} == set(images)
    assert images["sse-gateway"]["newTag"] == __version__


def test_the_configuration_is_good(flavour: str, config: Config) -> None:
    """Loaded with the real model. Its ports are the container's, and the whole folder is where it is looked for."""
    ports = {each["name"]: each["containerPort"] for each in gateway(flavour)["ports"]}
    assert ports == {"http": config.server.listen.port, "admin": config.server.admin.port}
    assert not config.server.admin.is_loopback, "a kubelet could not probe it"
    mounts = {each["name"]: each for each in gateway(flavour)["volumeMounts"]}
    home = re.search(r"SSE_GATEWAY_CONFIG=(\S+)/gateway\.yaml", (DEPLOY.parent / "Dockerfile").read_text())
    assert home is not None
    assert mounts["config"]["mountPath"] == home[1]
    assert not any("subPath" in each for each in mounts.values())
    (told,) = documents(FOLDER / flavour / "kustomization.yaml")
    volumes = {each["name"]: each for each in pod(flavour)["volumes"]}
    assert volumes["config"]["configMap"]["name"] == told["configMapGenerator"][0]["name"]
    assert set(volumes) == set(mounts)


def test_every_secret_comes_from_the_secret(flavour: str) -> None:
    """One that is missing keeps the pod from starting; one that nobody uses is there to be stolen."""
    text = config_file(flavour).read_text()
    secret = next(each["secret"] for each in pod(flavour)["volumes"] if each["name"] == "secrets")
    mounted = {f"{MOUNTED}/{each['path']}" for each in secret["items"]}
    assert set(re.findall(r"file:([\w/.-]+)", text)) == mounted
    variables = {each["name"]: each for each in gateway(flavour)["env"]}
    assert set(re.findall(r"\$\{(\w+)\}", text)) == set(variables)
    for each in variables.values():
        assert each["valueFrom"]["secretKeyRef"]["name"] == secret["secretName"]


def test_the_grace_period_is_in_step(flavour: str, config: Config) -> None:
    """Shorter, and streams are cut in the middle of the drain; the readiness must show before they are closed."""
    needed = closing_seconds(config_file(flavour)) + APPLICATION_SECONDS[flavour]
    assert needed <= pod(flavour)["terminationGracePeriodSeconds"] <= needed + 15
    readiness = gateway(flavour)["readinessProbe"]
    (data,) = documents(config_file(flavour))
    pre_drain = parse_duration(data["timeouts"]["pre_drain"])
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < pre_drain
    assert "lifecycle" not in gateway(flavour)


def test_the_pod_is_restricted(flavour: str) -> None:
    """Kubernetes' "restricted" standard, and nothing of the image can be written."""
    spec = pod(flavour)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for each in containers(flavour):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(each["resources"]["limits"]) == {"memory"}, "a limit of CPU stalls streams"
    assert manifests(flavour)["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": 1,
        "maxUnavailable": 0,
    }


def test_the_admin_port_is_for_monitoring_alone(flavour: str) -> None:
    """Metrics tell how busy who is; the token is the second lock."""
    rules = manifests(flavour)["NetworkPolicy"]["spec"]["ingress"]
    opened = {
        port["port"]: source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for rule in rules
        for port in rule["ports"]
        for source in rule["from"]
    }
    assert opened == {"http": "ingress", "admin": "monitoring"}
    assert all("from" in rule for rule in rules)
    assert [each["targetPort"] for each in manifests(flavour)["Service"]["spec"]["ports"]] == ["http"]


def test_everything_selects_the_pods(flavour: str) -> None:
    """A selector that is off by a letter selects nothing, and says nothing."""
    labels = manifests(flavour)["Deployment"]["spec"]["template"]["metadata"]["labels"]
    found = list(_selectors(list(manifests(flavour).values())))
    assert len(found) >= 4
    assert all(each == labels for each in found), found


def _selectors(value: Any) -> Iterator[dict[str, str]]:
    """Yield all that selects pods of ours: not namespaces, and not Redis."""
    if isinstance(value, list):
        for item in value:
            yield from _selectors(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("selector", "labelSelector") or (key == "podSelector" and "policyTypes" in value):
                yield item.get("matchLabels", item)
            else:
                yield from _selectors(item)


def test_prometheus_is_given_the_token(flavour: str) -> None:
    """A PodMonitor with a field that its definition does not have scrapes nothing, in silence."""
    monitor = manifests(flavour)["PodMonitor"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout", "authorization"}
    assert (endpoint["port"], endpoint["path"]) == ("admin", "/metrics")
    secret = next(each["secret"] for each in pod(flavour)["volumes"] if each["name"] == "secrets")
    assert endpoint["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": secret["secretName"], "key": "admin-token"},
    }


def test_the_autoscaler_reads_a_metric_that_there_is(flavour: str, config: Config) -> None:
    """It goes down more slowly than pods drain, and up before they are full."""
    scaler = manifests(flavour).get("HorizontalPodAutoscaler")
    if flavour == "sidecar":
        assert scaler is None, "the application's figures say how many of it there are"
        return
    assert scaler is not None
    (metric,) = scaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert re.search(rf"`{name}` \| gauge", (DEPLOY.parent / "docs/metrics.md").read_text())
    assert int(metric["pods"]["target"]["averageValue"]) * 2 <= config.limits.connections
    (down,) = scaler["spec"]["behavior"]["scaleDown"]["policies"]
    assert down["value"] == 1
    assert down["periodSeconds"] > pod(flavour)["terminationGracePeriodSeconds"]
    assert "replicas" not in manifests(flavour)["Deployment"]["spec"]
    budget = manifests(flavour)["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] < scaler["spec"]["minReplicas"]


async def test_a_pod_answers_its_probes(flavour: str, tmp_path: Path, redis: RedisServer) -> None:
    """Without a token, as a kubelet asks; metrics with the one of the Secret alone."""
    data = yaml.safe_load(text_of(config_file(flavour), secrets_in(tmp_path)))
    data["server"] |= {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"}
    if data["broker"]["url"].startswith("sqlite:"):
        data["broker"]["url"] = f"sqlite:///{tmp_path}/log.db"
    environ = {"REDIS_URL": redis.url, "WEBHOOK_TOKEN": "w" * 32}
    daemon = Daemon(loads(json.dumps(data), environ=environ))
    try:
        await daemon.start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{daemon.admin_listener.port}") as session:

            async def status(path: str, **headers: str) -> int:
                async with session.get(path, headers=headers) as answer:
                    return answer.status

            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert await status(gateway(flavour)[name]["httpGet"]["path"]) == 200, name
            assert await status("/metrics") == 401
            token = (tmp_path / "admin-token").read_text().strip()
            assert await status("/metrics", Authorization=f"Bearer {token}") == 200
    finally:
        await daemon.streams.abort_all("test_over")
        await daemon.stop()
