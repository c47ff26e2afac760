"""`check --connect` on real servers: what can be used, and what is said of what cannot."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from bench.process import free_port
from gateway.cli.check.connect import run_connection_checks
from gateway.cli.finding import Finding, Level
from tests.support.authority import Authority
from tests.support.config import loads
from tests.support.deadline import safety_net
from tests.support.gateway import gateway_running
from tests.support.issuer import issuing
from tests.support.issuer import serving as answering
from tests.support.kafka import KafkaServer, kafka_server
from tests.support.redis import RedisServer, redis_cluster, redis_sentinel, redis_server
from tests.support.redis import cluster_url as url_of
from tests.support.tls import serving, tunnel

DOCS = (Path(__file__).parents[3] / "docs/check.md").read_text()
HOOKS = "  hooks: {type: webhook, verify: {none: true}}\n"
CHANNEL = "channels:\n  orders: {from: [{source: hooks, topic: orders}], access: public}\n"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def kafka() -> AsyncIterator[KafkaServer]:
    async with kafka_server() as running:
        yield running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def reached(text: str) -> dict[str, Finding]:
    """Return what is found of each thing that a file names; the rest of the file is good."""
    more = text if "sources:" in text else f"{text}\nsources:\n{HOOKS}{CHANNEL}"
    found = await run_connection_checks(loads(more, environ={}))
    assert len({each.check for each in found}) == len(found)
    return {each.check: each for each in found}


async def source(spec: str, *topics: str) -> Finding:
    """Return what is found of one source with these topics."""
    routes = ", ".join(f"{{source: s, topic: '{topic}'}}" for topic in topics or ("orders.*",))
    if "redis" in spec and "timeout" not in spec:
        spec = spec.replace("{", "{timeout: 1m, ", 1)
    channel = f"channels:\n  orders: {{from: [{routes}], access: public}}\n"
    found = await reached(f"sources:\n  s: {spec}\n{channel}")
    return found["sources.s"]


async def broker(url: str, more: str = "", patience: str = "1m") -> Finding:
    limits = f"timeout: {patience}, pool: {{connect: {patience}}}"
    return (await reached(f'broker: {{url: "{url}", {limits}{more}}}'))["broker.url"]


def user(server: RedisServer, name: str, *rules: str) -> str:
    """Make a user, and return a URL with it."""
    with contextlib.closing(server.client()) as client:
        client.execute_command("ACL", "SETUSER", name, "reset", "on", ">c4n4ry", *rules)  # type: ignore[no-untyped-call]
    return f"redis://{name}:c4n4ry@127.0.0.1:{server.port}"


async def test_a_log_in_redis_can_be_used_and_nothing_stays_behind(server: RedisServer) -> None:
    """A check of the file of a running deployment must not touch its log."""
    found = await broker(server.url, ", prefix: fresh")
    assert (found.level, found.fix) == (Level.OK, "")
    assert re.fullmatch(r"valkey [\d.]+ reached; keys fresh:… can be written", found.message)
    async with safety_net():
        while True:
            with contextlib.closing(server.client()) as client:
                if not list(client.scan_iter("*fresh*")):
                    break
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("url", "found", "fix"),
    [
        (
            "redis://127.0.0.1:{free}",
            "nothing listens at 127.0.0.1:{free}",
            "check host and port",
        ),
        ("redis://nobody:c4n4ry@127.0.0.1:{port}", "invalid username-password", "check user and password"),
        ("rediss://127.0.0.1:{port}", "no answer within", "TLS"),
        ("redis+sentinel://127.0.0.1:{free}/main", "no Sentinel names a master", "master's name"),
        ("redis+cluster://127.0.0.1:{port}", "", "check"),
        ("redis://127.0.0.1:{port}?nonsense=1", "nonsense", ""),
    ],
)
async def test_a_redis_that_cannot_be_used(server: RedisServer, url: str, found: str, fix: str) -> None:
    """What is wrong, and what to do, before the deploy; and no password in it."""
    places = {"port": server.port, "free": free_port()}
    told = await broker(url.format(**places), patience="1s" if found == "no answer within" else "1m")
    assert told.level is Level.BAD
    assert found.format(**places) in told.message
    assert fix in told.fix
    assert "c4n4ry" not in told.message + told.fix


async def test_a_user_may_do_what_the_docs_list_and_each_missing_right_is_told(server: RedisServer) -> None:
    """The permissions in the docs suffice for log and sources, and a missing one is reported before a deploy."""
    (line,) = re.findall(r"ACL SETUSER gateway on >\S+ (.+)", DOCS)
    rules = line.split()
    url = user(server, "gateway", *rules)
    assert (await broker(url)).level is Level.OK
    for spec in ("redis-pubsub", "redis-stream"):
        found = await source(f"{{type: {spec}, url: '{url}'}}", "orders.*", "orders")
        assert found.level is Level.OK, found
    for less, spec in (("-eval", "broker"), ("resetchannels", "broker"), ("resetchannels", "redis-pubsub"),
                       ("-psubscribe", "redis-pubsub"), ("-xinfo", "redis-stream"), ("-scan", "redis-stream")):  # fmt: skip
        url = user(server, "less", *rules, less)
        told = await (
            broker(url)
            if spec == "broker"
            else source(f"{{type: {spec}, url: '{url}'}}", "orders.*", "orders")
        )
        assert told.level is Level.BAD, less
        assert "permissions" in told.message, told
        assert "docs/check.md" in told.fix


async def test_a_replica_and_a_redis_that_evicts_are_told(server: RedisServer) -> None:
    """Both answer PING, and lose events."""
    with redis_server("--replicaof", "127.0.0.1", str(server.port)) as replica:
        told = await broker(replica.url)
        assert (told.level, "replica" in told.fix) == (Level.BAD, True)
    with redis_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as evicting:
        told = await broker(evicting.url)
        assert (told.level, "allkeys-lru" in told.message) == (Level.WARN, True)


async def test_a_frozen_redis_is_told_in_time(server: RedisServer) -> None:
    """A server that takes connections and says nothing holds up no pipeline."""
    with redis_server() as frozen:
        frozen.freeze()
        try:
            log, stream, pubsub = await asyncio.gather(
                broker(frozen.url, patience="1s"),
                source(f"{{type: redis-stream, url: '{frozen.url}', timeout: 1s}}"),
                source(f"{{type: redis-pubsub, url: '{frozen.url}', timeout: 1s}}"),
            )
        finally:
            frozen.thaw()
    assert [each.level for each in (log, stream, pubsub)] == [Level.BAD] * 3
    assert all("no answer within" in each.message for each in (log, stream, pubsub))


@pytest.mark.extended
async def test_sentinel_and_cluster() -> None:
    """The master is found, and the node that holds the log."""
    with redis_sentinel() as watched:
        found = await broker(watched.url)
        assert found.level is Level.OK, found
        told = await broker(watched.url.replace("/main", "/other"))
        assert "no Sentinel names a master of 'other'" in told.message
    with redis_cluster() as servers:
        found = await broker(url_of(servers))
        assert found.level is Level.OK, found


async def test_tls_to_redis(server: RedisServer, authority: Authority) -> None:
    """The authority that is missing in the URL is named, before the first event."""
    async with tunnel(server.port, serving(*authority.server())) as port:
        told = await broker(f"rediss://127.0.0.1:{port}")
        assert told.level is Level.BAD
        assert "of an authority that is not trusted here" in told.message
        assert "ssl_ca_certs=" in told.fix
        found = await broker(f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.file}")
        assert found.level is Level.OK, found


async def test_a_stream_source_reads_nothing(server: RedisServer) -> None:
    """What waits for the gateway waits for it still."""
    with contextlib.closing(server.client()) as client:
        client.xadd("waiting", {"payload": "1"})
        found = await source(
            f"{{type: redis-stream, url: '{server.url}', start: oldest}}", "waiting", "wait*"
        )
        assert (found.level, found.message) == (Level.OK, "reached; 2 topics can be read")
        assert client.xlen("waiting") == 1
        client.delete("waiting")


async def test_kafka_and_its_topics(kafka: KafkaServer) -> None:
    """A missing topic is reported, and the group's offsets stay."""
    await kafka.create({"orders": 2, "user.1": 1})
    spec = f"{{type: kafka, brokers: '{kafka.brokers}', start: oldest}}"
    assert (await source(spec, "orders", "user.*")).level is Level.OK
    told = await source(spec, "orders", "ordres")
    assert (told.level, told.message) == (Level.WARN, "reached, and there is no topic ordres yet")
    async with kafka.admin() as admin:
        assert await admin.list_consumer_group_offsets("sse-gateway") == {}
    kafka.kill()
    told = await source(spec, "orders")
    assert told.level is Level.BAD
    assert told.message == f"nothing listens at {kafka.brokers}: the connection was refused"


async def test_sources_that_are_off_or_unread_are_skipped() -> None:
    """They are no mistake, and nobody need wonder whether they were looked at."""
    found = await reached(
        "sources:\n" + HOOKS + "  idle: {type: redis-pubsub, url: ''}\n"
        "  unread: {type: redis-pubsub, url: 'redis://127.0.0.1:1'}\n"
        "channels: {orders: {from: [{source: hooks, topic: a}, {source: idle, topic: a}], access: public}}\n"
    )
    assert {what: each.level for what, each in found.items()} == {
        "broker.url": Level.OK, "sources.idle": Level.SKIP, "sources.unread": Level.SKIP
    }  # fmt: skip


async def test_keys_of_an_issuer() -> None:
    """Reached, with keys of the right kind; else no token opens a stream."""

    def jwt(url: str, algorithm: str = "RS256") -> str:
        return f"auth: {{jwt: {{algorithms: [{algorithm}], jwks_url: '{url}', audience: a}}}}"

    async with issuing("k") as issuer:
        found = (await reached(jwt(issuer.url)))["auth.jwt.jwks_url"]
        assert (found.level, found.message) == (Level.OK, "1 key for RS256")
        told = (await reached(jwt(issuer.url, "ES256")))["auth.jwt.jwks_url"]
        assert (told.level, "holds no key for ES256" in told.message) == (Level.BAD, True)
        issuer.status = 503
        told = (await reached(jwt(issuer.url)))["auth.jwt.jwks_url"]
        assert (told.level, told.message) == (Level.BAD, f"{issuer.url} answered 503")
    told = (await reached(jwt(issuer.url)))["auth.jwt.jwks_url"]
    assert "nothing listens at 127.0.0.1:" in told.message


async def test_no_query_of_a_url_is_shown() -> None:
    """A key in the query of an issuer's or endpoint's URL must not end up in the output of a build."""

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"this is no HTTP\r\n\r\n")
        writer.close()

    async def refusing(request: web.Request) -> web.Response:
        return web.Response(status=503)

    server = await asyncio.start_server(broken, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, answering(refusing) as away:
        for url in (f"http://127.0.0.1:{port}", away, f"http://127.0.0.1:{free_port()}"):
            url += "/may?key=s3cret"
            found = await reached(
                f"auth: {{jwt: {{algorithms: [RS256], jwks_url: '{url}', audience: a}}, forward: {{url: '{url}'}}}}"
            )
            for what in ("auth.jwt.jwks_url", "auth.forward.url"):
                assert found[what].level is Level.BAD
                assert "s3cret" not in f"{found[what].message} {found[what].fix}", url
            assert "/may?key=…" in found["auth.jwt.jwks_url"].message


async def test_a_public_key_file(tmp_path: Path) -> None:
    """A private key, or one of another kind, would be found out by the first reader."""
    file = tmp_path / "key.pem"
    file.write_text("-----BEGIN NOTHING-----")
    found = await reached(f"auth: {{jwt: {{algorithms: [RS256], public_key_file: '{file}', audience: a}}}}")
    told = found["auth.jwt.public_key_file"]
    assert (told.level, "holds no PEM public key" in told.message) == (Level.BAD, True)


@pytest.mark.parametrize(
    ("status", "level", "found"),
    [
        (401, Level.OK, "refuses a request without credentials: 401"),
        (204, Level.WARN, "allows a request without credentials: 204"),
        (404, Level.WARN, "refuses a request without credentials with 404"),
        (302, Level.BAD, "returns 302, which counts as an outage"),
        (500, Level.BAD, "returns 500, which counts as an outage"),
    ],
)
async def test_the_endpoint_that_decides(status: int, level: Level, found: str) -> None:
    """An endpoint that allows requests without credentials is reported: that is worse than one that is down."""
    asked: list[str] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        asked.append(f"{request.headers['X-Original-URI']} {request.rel_url.query['channel']}")
        return web.Response(status=status, headers={"Location": "/login"})

    async with answering(answer) as url:
        told = (await reached(f"auth: {{forward: {{url: '{url}/may'}}}}"))["auth.forward.url"]
    assert (told.level, found in told.message) == (level, True), told
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("begins", "ends", "level", "found"),
    [
        (-1, 300, Level.OK, "and its key match, valid until"),
        (-80, 10, Level.WARN, "(10 days)"),
        (-9, -1, Level.BAD, "expired on"),
        (1, 9, Level.BAD, "is not valid before"),
    ],
)
async def test_the_certificate(
    authority: Authority, begins: int, ends: int, level: Level, found: str
) -> None:
    """Told before the deploy, and not by the browsers."""
    pair = authority.server(begins=begins, ends=ends)
    told = (await reached(f"server: {{tls: {{certificate: '{pair.certificate}', key: '{pair.key}'}}}}"))[
        "server.tls"
    ]
    assert (told.level, found in told.message) == (level, True), told


async def test_a_key_of_another_certificate(authority: Authority) -> None:
    """The commonest mistake in a renewal."""
    one, other = authority.server(), authority.server()
    told = (await reached(f"server: {{tls: {{certificate: '{one.certificate}', key: '{other.key}'}}}}"))[
        "server.tls"
    ]
    assert (told.level, f"{other.key} is not the key of {one.certificate}" in told.message) == (
        Level.BAD,
        True,
    )


async def test_a_log_in_a_file(tmp_path: Path) -> None:
    """It can be made, it is there, it is something else, or its folder is none."""
    path = tmp_path / "new" / "g.db"
    found = await broker(f"sqlite:///{path}")
    assert (found.level, "does not exist yet, and can be created" in found.message) == (Level.OK, True)
    assert not path.parent.exists()
    other = tmp_path / "other.db"
    other.write_text("this is a text and no database, and is longer than the header of one" * 10)
    assert (await broker(f"sqlite:///{other}")).level is Level.BAD
    told = await broker(f"sqlite:///{other}/g.db")
    assert (told.level, "is no folder" in told.message) == (Level.BAD, True)


@pytest.mark.parametrize("protocol", ["", "?protocol=2", "?protocol=3"])
@pytest.mark.parametrize(
    ("password", "user", "said"),
    [
        ("", ":any@", ""),
        ("", "default:any@", ""),
        ("", "nobody:any@", "invalid username-password pair or user is disabled."),
        ("right", ":right@", ""),
        ("right", "default:right@", ""),
        ("right", ":wrong@", "invalid username-password pair or user is disabled."),
        ("right", "", "Authentication required"),
    ],
)
async def test_a_password_means_the_same_for_all_that_read_redis(
    password: str, user: str, said: str, protocol: str
) -> None:
    """One URL in three places: a password was good for pub/sub, and an error for streams."""
    with redis_server() as server:
        with contextlib.closing(server.client()) as client:
            client.config_set("requirepass", password)
        url = f"redis://{user}127.0.0.1:{server.port}{protocol}"
        found = [await broker(url)]
        found += [
            await source(f"{{type: {kind}, url: '{url}'}}") for kind in ("redis-pubsub", "redis-stream")
        ]
        assert {(each.level, said.lower() in each.message.lower()) for each in found} == {
            (Level.BAD if said else Level.OK, True)
        }, found
        if said:
            assert len({each.message for each in found}) == 1, found
        sources = {
            kind: {"type": kind, "url": url, "timeout": "5s"} for kind in ("redis-pubsub", "redis-stream")
        }
        routes = [{"source": name, "topic": "orders"} for name in sources]
        channels = {"orders": {"from": routes, "access": "public"}}
        async with gateway_running({"sources": sources, "channels": channels}) as gateway:
            states = [each for each in gateway.daemon.source_manager.states() if each.name in sources]
            assert {each.status == "up" for each in states} == {not said}
            for each in states:
                assert said.lower() in str(each.last_error).lower()
