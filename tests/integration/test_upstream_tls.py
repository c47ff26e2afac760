"""TLS to the log and the sources: verified unless told otherwise, and a bad certificate is told as what it is."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.broker.redis.broker import RedisBroker
from gateway.config.model.config import PoolConfig
from gateway.config.validation.warnings import log_warnings, unaccepted_warnings
from gateway.core.clock import unix_ms
from tests.support.authority import Authority, Pair
from tests.support.eventsource import Stream
from tests.support.gateway import BASE, Gateway, eventually, gateway_running
from tests.support.issuer import issuing
from tests.support.kafka import KafkaServer, kafka_server
from tests.support.node import Node
from tests.support.redis import RedisServer, redis_server
from tests.support.tls import make_certificate, serving, tunnel

FAULTS = {
    "expired": "the server's certificate has expired",
    "early": "the server's certificate is not valid yet",
    "mismatch": "the server's certificate is not for '127.0.0.1'",
    "self-signed": "the server's certificate is self-signed, and not trusted here",
    "stranger": "the server's certificate is of an authority that is not trusted here",
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RedisServer]:
    """A Redis that all tests of this file share."""
    with redis_server() as server:
        yield server


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def kafka() -> AsyncIterator[KafkaServer]:
    async with kafka_server() as server:
        yield server


def shows(authority: Authority, folder: Path, fault: str) -> Pair:
    """Return a server's certificate with a fault."""
    if fault == "self-signed":
        return Pair(*make_certificate(folder))
    if fault == "stranger":
        return Authority(folder, "stranger").server()
    if fault == "mismatch":
        return authority.issue(dns=["elsewhere.example.com"])
    if fault == "expired":
        return authority.server(begins=-3, ends=-1)
    return authority.server(begins=1, ends=3)


@pytest.mark.parametrize("kind", ["rediss://", "rediss+cluster://", "rediss+sentinel://"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_log_behind_a_bad_certificate_is_not_used(
    upstream: RedisServer,
    authority: Authority,
    tmp_path: Path,
    fault: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The password would go to whoever answers; the line of the log says what is wrong with the certificate."""
    monkeypatch.setattr("gateway.broker.redis.broker.START_TIMEOUT_SECONDS", 0.3)
    async with tunnel(upstream.port, serving(*shows(authority, tmp_path, fault))) as port:
        url = f"{kind}127.0.0.1:{port}{'/main' if 'sentinel' in kind else ''}?ssl_ca_certs={authority.file}"
        broker = RedisBroker(
            url, prefix="t", pool_limits=PoolConfig.model_validate({}), timeout=60.0, clock=unix_ms
        )
        with capture_logs() as lines:
            await broker.start()
            await eventually(lambda: any(line["event"] == "broker_down" for line in lines))
            assert not broker.is_up
            await broker.close()
    (told,) = [line["error"] for line in lines if line["event"] == "broker_down"]
    assert FAULTS[fault] in told
    assert "_ssl.c" not in told


def sources(port: int, authority: Authority | None) -> dict[str, Any]:
    """Return one source of each kind, all over the same port; None leaves the system's authorities."""
    query = "" if authority is None else f"?ssl_ca_certs={authority.file}"
    tls = {} if authority is None else {"ca_file": str(authority.file)}
    redis = {"url": f"rediss://127.0.0.1:{port}{query}", "timeout": "60s"}
    return {
        "pubsub": {"type": "redis-pubsub", **redis},
        "stream": {"type": "redis-stream", **redis},
        "kafka": {"type": "kafka", "brokers": f"127.0.0.1:{port}", "timeout": "60s", "scan": "300ms", "tls": tls},
    }  # fmt: skip


def reading(sources: dict[str, Any]) -> dict[str, Any]:
    channel = {"from": [{"source": name, "topic": "orders"} for name in sources], "access": "public"}
    return {"sources": sources, "channels": {"all": channel}}


async def last_errors(gateway: Gateway) -> dict[str, str]:
    _, status = await gateway.admin("/status")
    return {source["name"]: source["last_error"] or "" for source in status["sources"]}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_source_behind_a_bad_certificate_says_so(
    upstream: RedisServer, authority: Authority, tmp_path: Path, fault: str
) -> None:
    """Pub/sub, streams and Kafka alike: down, with the cause in /status."""
    async with tunnel(upstream.port, serving(*shows(authority, tmp_path, fault))) as port:
        given = sources(port, authority)
        async with gateway_running(reading(given)) as gateway:

            async def all_tell() -> bool:
                told = await last_errors(gateway)
                return all(FAULTS[fault] in told[name] for name in given)

            await eventually(all_tell)
            _, status = await gateway.admin("/status")
            assert {each["status"] for each in status["sources"] if each["name"] in given} == {"down"}


@pytest.mark.parametrize("way", ["option", "environment"])
async def test_an_authority_of_ones_own(
    upstream: RedisServer,
    kafka: KafkaServer,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """By the option of each, or by SSL_CERT_FILE for all: events come through TLS."""
    if way == "environment":
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    trusted = authority if way == "option" else None
    context = serving(*authority.server())
    await kafka.create({"orders": 1})
    async with tunnel(upstream.port, context) as redis_port, tunnel(kafka.port, context) as kafka_port:
        given = sources(redis_port, trusted) | {"kafka": sources(kafka_port, trusted)["kafka"]}
        async with gateway_running(reading(given)) as gateway:
            stream = await gateway.subscribe("/events/all")
            await eventually(lambda: _are_up(gateway, given))
            await eventually(lambda: _has(gateway, "kafka/*orders"))
            upstream.publish("orders", '"pubsub"')
            assert (await stream.until("message")).json["payload"] == "pubsub"
            with upstream.client() as client:
                client.xadd("orders", {"payload": '"stream"'})
            assert (await stream.until("message")).json["payload"] == "stream"
            await kafka.send("orders", '"kafka"')
            assert (await stream.until("message")).json["payload"] == "kafka"
            assert await last_errors(gateway) == dict.fromkeys(["hooks", *given], "")


async def _are_up(gateway: Gateway, names: dict[str, Any]) -> bool:
    _, status = await gateway.admin("/status")
    return all(each["status"] == "up" for each in status["sources"] if each["name"] in names)


async def _has(gateway: Gateway, cursor: str) -> bool:
    return await gateway.daemon.broker.read_offset(cursor) is not None


async def test_a_host_that_is_not_checked_is_told(upstream: RedisServer, authority: Authority) -> None:
    """The authority is asked for all the same, and a warning says which key is lax."""
    context = serving(*authority.issue(dns=["elsewhere.example.com"]))
    async with tunnel(upstream.port, context) as port:
        given = sources(port, authority)
        for name in ("pubsub", "stream"):
            given[name]["url"] += "&ssl_check_hostname=false"
        given["kafka"] |= {"brokers": "127.0.0.1:1", "tls": {"check_hostname": False}}
        async with gateway_running(reading(given)) as gateway:
            await eventually(lambda: _are_up(gateway, {"pubsub": 0, "stream": 0}))
        with capture_logs() as lines:
            log_warnings(unaccepted_warnings(gateway.daemon.config, {}))
    keys = [line["key"] for line in lines if line["code"] == "host-not-checked"]
    assert sorted(keys) == ["sources.kafka.tls.check_hostname", "sources.pubsub.url", "sources.stream.url"]


async def test_keys_and_decisions_behind_a_bad_certificate_are_not_taken(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is between could hand out keys of its own, or let everybody in; the log says what is wrong."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    async with AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(issuing("k"))
        inner = int(issuer.url.rpartition(":")[2])
        urls = {}
        for number, fault in enumerate(["", *FAULTS]):
            folder = tmp_path / str(number)
            folder.mkdir()
            pair = shows(authority, folder, fault) if fault else authority.server()
            port = await stack.enter_async_context(tunnel(inner, serving(*pair)))
            urls[fault] = f"https://127.0.0.1:{port}"
        issuers = [
            {"algorithms": ["RS256"], "jwks_url": f"{url}/keys", "issuer": fault or "good"}
            for fault, url in urls.items()
        ]
        config = {
            **BASE,
            "auth": {"jwt": issuers, "forward": {"url": f"{urls['expired']}/may"}},
            "channels": {
                "private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"},
                "room": {"from": [{"source": "hooks", "topic": "r"}], "access": "forward"},
            },
        }
        node = Node(tmp_path, config)
        await node.start()
        try:

            async def told(fault: str) -> str:
                token = issuer.token("k", iss=fault or "good", channels=["private"])
                stream = await Stream.open(node.port, "/events/private", {"Authorization": f"Bearer {token}"})
                return str((await stream.next()).json.get("reason", "open"))

            async def is_open() -> bool:
                return await told("") == "open"

            await eventually(is_open)
            assert {await told(fault) for fault in FAULTS} == {"auth_unavailable"}
            room = await Stream.open(node.port, "/events/room")
            assert (await room.next()).json["reason"] == "auth_unavailable"
            for event, words in [
                ("forward_auth_down", FAULTS["expired"]),
                *(("jwks_down", each) for each in FAULTS.values()),
            ]:
                await eventually(lambda: logs(node, event, words))  # noqa: B023 -- called at once
        finally:
            await node.kill()


def logs(node: Node, event: str, words: str) -> bool:
    return any(event in line and words in line for line in node.log.read_text().splitlines())
