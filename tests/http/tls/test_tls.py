"""TLS on the public port: versions, client certificates, refusals, and no floods of the log."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from gateway.config.model.tls import TlsConfig
from gateway.core.errors import StartupError
from gateway.http.tls.context import load_certificate
from tests.support.authority import Authority, Pair
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, eventually, gateway_running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def tls(pair: Pair, **more: Any) -> dict[str, Any]:
    return {"certificate": str(pair.certificate), "key": str(pair.key), **more}


@asynccontextmanager
async def behind(pair: Pair, over: dict[str, Any] | None = None, **more: Any) -> AsyncIterator[Gateway]:
    """Run a gateway with TLS; ``more`` goes into server.tls."""
    async with gateway_running({"server": {"tls": tls(pair, **more)}, **(over or {})}) as gateway:
        yield gateway


def context_of(pair: Pair, **more: Any) -> ssl.SSLContext:
    return load_certificate(TlsConfig.model_validate(tls(pair, **more))).context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Shake hands in memory and return the client's side. Raises SSLError."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(back, there, server_hostname="127.0.0.1")
    far = server.wrap_bio(there, back, server_side=True)
    done = False
    while not done:
        done = True
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                done = False
    return near


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_only_good_ciphers_are_spoken(authority: Authority, kind: Any) -> None:
    """Every suite of TLS 1.2 is authenticated encryption with forward secrecy, for either kind of key."""
    client = authority.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ALL:@SECLEVEL=0")
    server = context_of(authority.server(kind=kind))
    spoken = set()
    for each in client.get_ciphers():
        if each["protocol"] == "TLSv1.3":
            continue
        client.set_ciphers(f"{each['name']}:@SECLEVEL=0")
        try:
            found = handshake(server, client).cipher()
        except ssl.SSLError:
            continue
        assert found is not None
        spoken.add(found[0])
    assert len(spoken) == 3
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA" in name) for name in spoken)


def test_versions_protocol_and_options(authority: Authority) -> None:
    """No TLS 1.1, no compression, no renegotiation, and nothing but HTTP/1.1 is agreed upon."""
    pair = authority.server()
    server = context_of(pair)
    assert server.minimum_version == ssl.TLSVersion.TLSv1_2
    assert server.options & ssl.OP_NO_COMPRESSION
    assert server.options & ssl.OP_NO_RENEGOTIATION
    client = authority.client()
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert handshake(server, client).selected_alpn_protocol() == "http/1.1"
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(server, client).compression() is None
    with pytest.raises(ssl.SSLError, match=r"unsupported protocol|version"):
        handshake(context_of(pair, minimum_version="1.3"), client)


def test_ciphers_can_be_chosen(authority: Authority) -> None:
    """A policy of one's own, in OpenSSL's words."""
    client = authority.client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    server = context_of(authority.server(), ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    assert handshake(server, client).cipher() == ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.2", 256)


@pytest.mark.parametrize("what", ["no file", "no certificate", "other key", "encrypted", "bad authority"])
def test_files_that_cannot_be_used_are_one_line(authority: Authority, tmp_path: Path, what: str) -> None:
    """The error names the file and its fault, and no terminal prompts for a password."""
    pair = authority.server()
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing\n")
    given, said = tls(pair), ""
    if what == "no file":
        given["key"] = str(tmp_path / "gone.key")
        said = "server.tls.key: cannot read .*gone.key: No such file"
    elif what == "no certificate":
        given["certificate"] = str(empty)
        said = f"server.tls.certificate: {empty} holds no PEM certificate"
    elif what == "other key":
        given["key"] = str(authority.server().key)
        said = f"server.tls.key: {given['key']} is not the key of {pair.certificate}"
    elif what == "encrypted":
        key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        said = f"server.tls.key: {pair.key} is encrypted"
    else:
        given["client_ca"] = str(empty)
        said = rf"server.tls.client_ca: {empty} holds no PEM certificate"
    with pytest.raises(StartupError, match=said) as error:
        load_certificate(TlsConfig.model_validate(given))
    assert "\n" not in error.value.message


HOOKS: dict[str, Any] = {
    "sources": {
        "signed": {
            "type": "webhook",
            "verify": {"client_certificate": ["sender.example.com", "spiffe://here/sender"]},
            "topic": "orders",
        }
    },
    "channels": {
        "orders": {"from": [{"source": "signed", "topic": "orders"}, {"source": "hooks", "topic": "orders"}]}
    },
}
"""A webhook for who has a certificate with one of two names."""


async def posted(
    gateway: Gateway, client: ssl.SSLContext, path: str = "/hooks/signed", **more: str
) -> tuple[int, str]:
    """Post and return status and code, over a connection of its own."""
    url, headers = f"https://127.0.0.1:{gateway.port}{path}", {"Connection": "close", **more}
    async with gateway.session.post(url, data=b"1", ssl=client, headers=headers) as answer:
        return answer.status, (await answer.json()).get("error", "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dns": ["sender.example.com"]}, (200, "")),
        ({"dns": ["a.example.com", "sender.example.com"]}, (200, "")),
        ({"uris": ["spiffe://here/sender"]}, (200, "")),
        ({"common": "sender.example.com"}, (200, "")),
        ({"common": "sender.example.com", "dns": ["other.example.com"]}, (401, "unknown_certificate")),
        ({"common": "sender.example.com", "addresses": ["127.0.0.1"]}, (401, "unknown_certificate")),
        ({"dns": ["x.sender.example.com"]}, (401, "unknown_certificate")),
        ({"dns": ["*.example.com"]}, (401, "unknown_certificate")),
        (None, (401, "missing_certificate")),
    ],
)
async def test_a_webhook_wants_a_certificate_with_one_of_its_names(
    authority: Authority, given: dict[str, Any] | None, expected: tuple[int, str]
) -> None:
    """Exactly the names of the list; the common name counts only where there is no other."""
    sender = None if given is None else authority.issue(**given)
    async with behind(authority.server(), HOOKS, client_ca=str(authority.file)) as gateway:
        assert await posted(gateway, authority.client(sender)) == expected
        if expected[1]:
            assert (
                await gateway.metric(f'events_rejected_total{{reason="{expected[1]}",source="signed"}}') == 1
            )


async def test_no_page_posts_by_a_certificate_that_its_browser_holds(authority: Authority) -> None:
    """A form of any site would publish with its visitor's client certificate."""
    sender = authority.issue(dns=["sender.example.com"])
    async with behind(authority.server(), HOOKS, client_ca=str(authority.file)) as gateway:
        client = authority.client(sender)
        found = await posted(gateway, client, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})
        assert found == (403, "cross_origin")


async def test_who_has_no_certificate_streams_and_posts_elsewhere(authority: Authority) -> None:
    """Browsers share the port with senders that have certificates, and notice nothing of it."""
    sender = authority.issue(dns=["sender.example.com"])
    async with behind(authority.server(), HOOKS, client_ca=str(authority.file)) as gateway:
        stream = await gateway.subscribe("/events/orders", ssl=authority.client())
        assert await posted(gateway, authority.client(), "/hooks/hooks?topic=orders") == (200, "")
        assert await posted(gateway, authority.client(sender)) == (200, "")
        assert [(await stream.next()).json["payload"] for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("what", ["expired", "stranger"])
async def test_a_certificate_that_is_not_good_ends_the_handshake(
    authority: Authority, tmp_path: Path, what: str
) -> None:
    """Expired, or of another authority: nothing is answered, and the log and a metric say why."""
    other = authority if what == "expired" else Authority(tmp_path, "stranger")
    sender = other.issue(dns=["sender.example.com"], begins=-2, ends=-1 if what == "expired" else 1)
    async with behind(authority.server(), HOOKS, client_ca=str(authority.file)) as gateway:
        # In TLS 1.3 the client has shaken hands when it hears of it: by an alert, or a reset that overtakes
        # it.
        with capture_logs() as lines, pytest.raises((OSError, aiohttp.ClientError)):
            await posted(gateway, authority.client(sender))
        metric = 'tls_handshake_failures_total{reason="client_certificate"}'
        await eventually(lambda: _is(gateway, metric, 1))
    (told,) = [line["error"] for line in lines if line["event"] == "client_certificate_refused"]
    assert told == {"expired": "certificate has expired", "stranger": STRANGER}[what]


STRANGER = "unable to get local issuer certificate"


async def _is(gateway: Gateway, metric: str, value: float) -> bool:
    return await gateway.metric(metric) == value


NO_TLS = {
    "plain HTTP": b"GET /events/orders HTTP/1.1\r\nHost: x\r\n\r\n",
    "garbage": bytes(range(256)),
    "half a hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    "silence": b"",
}


@pytest.mark.both_loops
@pytest.mark.parametrize("what", NO_TLS)
async def test_what_is_no_tls_gets_no_answer_and_no_line(
    authority: Authority, what: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A scanner must not fill the disk, and plain HTTP is not answered in plain text."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    caplog.set_level(logging.WARNING)
    async with behind(authority.server(), {"timeouts": {"request": "300ms"}}) as gateway:
        async with safety_net():
            answers = await asyncio.gather(*(_tell(gateway.port, NO_TLS[what]) for _ in range(20)))
        assert not [answer for answer in answers if b"HTTP" in answer]
        await eventually(lambda: _is_served(gateway, authority))
    assert not complaints
    assert not caplog.records
    assert capfd.readouterr().err == ""


async def _is_served(gateway: Gateway, authority: Authority) -> bool:
    """Return whether a client gets a stream. It retries if its slow handshake is cut."""
    with contextlib.suppress(OSError):
        (await gateway.subscribe("/events/orders", ssl=authority.client())).close()
        return True
    return False


async def _tell(port: int, data: bytes) -> bytes:
    """Send bytes and return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_handshakes_count_as_connections_until_they_end(authority: Authority) -> None:
    """Silent handshakes occupy descriptors; uncounted, they would take those of broker and sources."""
    async with behind(authority.server(), {"timeouts": {"request": "10m"}}) as gateway:
        before = gateway.daemon.public_listener.request_connections
        writers = [(await asyncio.open_connection("127.0.0.1", gateway.port))[1] for _ in range(30)]
        await eventually(lambda: gateway.daemon.public_listener.request_connections == before + 30)
        for writer in writers[:10]:
            writer.close()
        for writer in writers[10:20]:
            writer.write(NO_TLS["plain HTTP"])
        await eventually(lambda: gateway.daemon.public_listener.request_connections == before + 10)
        for writer in writers[20:]:
            writer.transport.abort()
        await eventually(lambda: gateway.daemon.public_listener.request_connections == before)
        assert await gateway.metric('tls_handshake_failures_total{reason="plain_http"}') == 10
        stream = await gateway.subscribe("/events/orders", ssl=authority.client())
        assert gateway.daemon.public_listener.request_connections == before
        stream.close()
    async with behind(authority.server(), {"timeouts": {"request": "300ms"}}) as gateway:
        silent = await asyncio.gather(*(_tell(gateway.port, NO_TLS["silence"]) for _ in range(10)))
        assert silent == [b""] * 10
        await eventually(lambda: gateway.daemon.public_listener.request_connections == 0)


@pytest.mark.both_loops
async def test_without_room_a_handshake_is_refused_at_once(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reserve of descriptors covers connections before their handshake, without log lines."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with behind(authority.server(), {"timeouts": {"request": "30s"}}) as gateway:
        monkeypatch.setattr(gateway.daemon, "max_descriptors", 128 + 10)
        ends = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(30)]
        reads = [asyncio.create_task(_until_the_end(reader)) for reader, _ in ends]
        await eventually(lambda: sum(read.done() for read in reads) >= 20)
        assert gateway.daemon.public_listener.request_connections > 0
        for _, writer in ends:
            writer.transport.abort()
        await asyncio.gather(*reads)
    assert not complaints


async def _until_the_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read()
