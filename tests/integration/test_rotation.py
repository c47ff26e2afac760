"""A new certificate under load: no stream notices, and whoever connects next is shown it."""

import asyncio
import shutil
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.http.tls import certificates
from tests.integration.test_workers import config, group
from tests.support.authority import Authority, Pair, serial, serial_of
from tests.support.eventsource import Stream
from tests.support.gateway import Gateway, eventually, gateway_running

pytestmark = pytest.mark.extended

STREAMS = 1000
AT_ONCE = 50


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the files often; how often makes no other difference."""
    monkeypatch.setattr(certificates, "POLL_SECONDS", 0.05)


async def shown(port: int, context: ssl.SSLContext) -> int:
    """Connect anew and return which certificate the gateway shows."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return serial(der)


async def opened(gateway: Gateway, context: ssl.SSLContext) -> list[Stream]:
    """Open `EVENTS_PATH` streams, some at once."""
    streams: list[Stream] = []
    while len(streams) < STREAMS:
        more = (gateway.subscribe("/events/orders", ssl=context) for _ in range(AT_ONCE))
        streams += await asyncio.gather(*more)
    return streams


async def read(stream: Stream, until: str) -> list[str]:
    """Read up to the event whose payload is ``until`` and return all payloads."""
    payloads: list[str] = []
    while not payloads or payloads[-1] != until:
        payloads.append((await stream.next()).json["payload"])
    return payloads


class Poster:
    """Posts numbers one after the other, each over whatever connection there is, until it is told to stop."""

    def __init__(self, gateway: Gateway, context: ssl.SSLContext) -> None:
        self.posted: list[str] = []
        self._gateway, self._context = gateway, context
        self._is_over = False
        self._task = asyncio.create_task(self._run())

    async def more(self, count: int) -> None:
        """Wait until some more were posted."""
        goal = len(self.posted) + count
        await eventually(lambda: len(self.posted) >= goal or self._task.done())

    async def stop(self) -> None:
        self._is_over = True
        await self._task
        await self._post("the end")

    async def _run(self) -> None:
        while not self._is_over:
            await self._post(str(len(self.posted)))

    async def _post(self, payload: str) -> None:
        url = f"https://127.0.0.1:{self._gateway.port}/hooks/hooks?topic=orders"
        # A connection for each, so that handshakes go on all the time.
        headers = {"Connection": "close"}
        async with self._gateway.session.post(
            url, json=payload, ssl=self._context, headers=headers
        ) as answer:
            assert answer.status == 200, await answer.text()
        self.posted.append(payload)


async def test_a_thousand_streams_outlive_a_bad_and_a_good_certificate(
    authority: Authority, tmp_path: Path, fast: None
) -> None:
    """Rotation drops no stream, loses no event and refuses no connection; the bad one is never shown."""
    first, second, stray = (authority.server() for _ in range(3))
    files = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    put(first, files)
    client = authority.client()
    tls = {"certificate": str(files.certificate), "key": str(files.key)}
    # Clients and gateway share a loop: what is slow for one is slow for both, and nobody is to blame.
    timeouts = {"request": "10m", "write": "10m"}
    async with gateway_running({"server": {"tls": tls}, "timeouts": timeouts}) as gateway:
        streams = await opened(gateway, client)
        assert len(gateway.daemon.streams.active) == STREAMS
        poster = Poster(gateway, client)
        reads = [asyncio.create_task(read(stream, "the end")) for stream in streams]
        await poster.more(5)
        shutil.copyfile(stray.certificate, files.certificate)  # and not its key
        await eventually(lambda: reloads(gateway, "failed", 1))
        assert await shown(gateway.port, client) == serial_of(first.certificate)
        await poster.more(5)
        put(second, files)
        await eventually(lambda: reloads(gateway, "ok", 1))
        assert await shown(gateway.port, client) == serial_of(second.certificate)
        await poster.more(5)
        await poster.stop()
        for payloads in await asyncio.gather(*reads):
            assert payloads == poster.posted
        assert len(gateway.daemon.streams.active) == STREAMS
        assert not [stream for stream in streams if stream.ended]
        assert await gateway.metric("connections_total") == STREAMS
        assert await gateway.metric("tls_certificate_expiry_timestamp_seconds") > 0


async def reloads(gateway: Gateway, result: str, at_least: int) -> bool:
    return await gateway.metric(f'tls_reloads_total{{result="{result}"}}') >= at_least


def put(pair: Pair, files: Pair) -> None:
    """Move a certificate and its key into place, one after the other."""
    for source, target in zip(pair, files, strict=True):
        spare = target.with_suffix(".new")
        shutil.copyfile(source, spare)
        spare.rename(target)


async def test_all_workers_rotate(authority: Authority, tmp_path: Path) -> None:
    """Each worker watches for itself: one that did not would show the old certificate until a restart."""
    first, second = authority.server(ends=1), authority.server(ends=2)
    files = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")
    put(first, files)
    base = config(tmp_path, workers=2)
    base["server"]["tls"] = {"certificate": str(files.certificate), "key": str(files.key)}
    client = authority.client()
    async with group(tmp_path, base) as gateway:
        streams = [await _stream(gateway.port, client) for _ in range(20)]
        expiry = "tls_certificate_expiry_timestamp_seconds"
        before = await gateway.metric(expiry)
        put(second, files)

        async def are_new() -> bool:
            # The least of the workers' is told.
            return await gateway.metric(expiry) > before

        await eventually(are_new)

        async def have_reloaded() -> bool:
            # At least once each; more if one saw the certificate before its key.
            return await gateway.metric('tls_reloads_total{result="ok"}') >= 2

        await eventually(have_reloaded)
        assert {await shown(gateway.port, client) for _ in range(20)} == {serial_of(second.certificate)}
        await gateway.shows("active_connections", len(streams))
        close(streams)


async def _stream(port: int, context: ssl.SSLContext) -> Stream:
    stream = await Stream.open(port, "/events/orders", ssl=context)
    assert (await stream.next()).type == "stream.open"
    return stream


def close(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.close()
