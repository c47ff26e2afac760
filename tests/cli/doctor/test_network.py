"""Handshakes with real servers, each of whose certificates has another fault."""

import asyncio
import datetime
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.doctor import network
from gateway.cli.doctor.tls import handshake_verdicts
from gateway.cli.finding import Finding, Level
from gateway.cli.http_client import client_tls_context
from tests.cli.doctor.authority import NOW, Authority, days, server_context


@asynccontextmanager
async def tls_server(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Run a server that shakes hands and says nothing; without a context it has no TLS."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if context is None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def verdicts(
    context: ssl.SSLContext | None, ca: Path | None, host: str = "127.0.0.1"
) -> dict[str, Finding]:
    async with tls_server(context) as port:
        seen = await network.handshake(host, port, client_tls_context(str(ca) if ca else None), 5.0)
    findings = handshake_verdicts(seen, host, datetime.datetime.now(datetime.UTC))
    return {finding.check: finding for finding in findings}


@pytest.mark.parametrize(
    ("names", "made", "found", "fix"),
    [
        (("127.0.0.1",), {"ends": days(-1)}, "it expired on ", "renew it"),
        (("127.0.0.1",), {"begins": days(1)}, "it is not valid before ", "clocks"),
        (("127.0.0.1",), {"is_self_signed": True}, "self-signed", "--ca FILE"),
        (("other.example", "*.other.example"), {}, "it is for other.example, *.other.example, not for 127.0.0.1", "server_name"),
        (("127.0.0.1",), {"with_chain": False}, "the chain is incomplete: it ends at 'CN=Test CA'", "fullchain"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_certificate(
    names: tuple[str, ...], made: dict[str, Any], found: str, fix: str, tmp_path: Path
) -> None:
    """Each fault has a fix of its own, and OpenSSL's message names none."""
    authority = Authority(tmp_path)
    seen = await verdicts(server_context(authority.leaf(*names, **made)), authority.root)
    assert seen["certificate"].level is Level.BAD
    assert found in seen["certificate"].message
    assert fix in seen["certificate"].fix


async def test_a_host_name_that_does_not_match(tmp_path: Path) -> None:
    """OpenSSL has one code for names and another one for addresses."""
    authority = Authority(tmp_path)
    seen = await verdicts(server_context(authority.leaf("127.0.0.1")), authority.root, "localhost")
    assert seen["certificate"].message == "it is for 127.0.0.1, not for localhost"


async def test_a_root_that_nobody_knows(tmp_path: Path) -> None:
    """A CA of one's own needs --ca, and is not the fault of the server."""
    seen = await verdicts(server_context(Authority(tmp_path).leaf("127.0.0.1")), None)
    assert "which is unknown here" in seen["certificate"].message
    assert "--ca FILE" in seen["certificate"].fix


@pytest.mark.parametrize(("left", "level"), [(20.9, Level.WARN), (21.1, Level.OK), (0.5, Level.WARN)])
async def test_one_that_will_expire(left: float, level: Level, tmp_path: Path) -> None:
    """A certificate that expires soon is reported in time to renew it."""
    authority = Authority(tmp_path)
    ends = NOW + datetime.timedelta(days=left)
    seen = await verdicts(server_context(authority.leaf("127.0.0.1", ends=ends)), authority.root)
    assert seen["certificate"].level is level
    assert f"{ends:%Y-%m-%d}" in seen["certificate"].message


async def test_an_old_version_of_tls(tmp_path: Path) -> None:
    """Browsers refuse it with words that name no version."""
    authority = Authority(tmp_path)
    context = server_context(authority.leaf("127.0.0.1"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    seen = await verdicts(context, authority.root)
    assert seen["tls"].level is Level.BAD
    assert seen["tls"].message.startswith("TLSv1.1 is its newest")


async def test_a_port_without_tls() -> None:
    """https:// to a port that speaks HTTP is a slip in the URL, and not a broken certificate."""
    seen = await verdicts(None, None)
    assert seen["tls"].message == "the port speaks no TLS"


async def test_the_second_look_sends_nothing(tmp_path: Path) -> None:
    """A look at a bad certificate must leave the context of the requests as strict as it was."""
    authority = Authority(tmp_path)
    context = client_tls_context(str(authority.root))
    async with tls_server(server_context(authority.leaf("other.example"))) as port:
        await network.handshake("127.0.0.1", port, context, 5.0)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_addresses_that_are_dead_are_told_one_by_one() -> None:
    """A name with one dead address works for most, and hangs for some."""
    async with tls_server(None) as port:
        alive, dead = await network.connect_all(["127.0.0.1", "127.0.0.2"], port, 5.0)
    assert (alive.address, alive.error) == ("127.0.0.1", "")
    assert dead.error == "Connection refused"
