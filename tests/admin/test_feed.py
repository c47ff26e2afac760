"""``/status/stream``: one report for all who look, and none where nobody does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from gateway.admin import status_stream as module
from gateway.admin.status_stream import MAX_VIEWERS, StatusStream
from tests.admin.test_guard import LOCKED, TOKEN, ask
from tests.support.deadline import safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.issuer import serving

pytestmark = pytest.mark.idle_clock


async def look(gateway: Gateway, **headers: str) -> Stream:
    """Open the stream of reports."""
    stream = await Stream.open(
        gateway.daemon.admin_listener.port, "/status/stream", {"Host": "localhost", **headers}
    )
    gateway.streams.append(stream)
    return stream


class Counted:
    """A report that counts how often it is made."""

    def __init__(self) -> None:
        self.made = 0
        self.may_be_made = asyncio.Event()
        self.may_be_made.set()

    async def report(self) -> dict[str, Any]:
        await self.may_be_made.wait()
        self.made += 1
        return {"made": self.made, "padding": "x" * 500_000}


@asynccontextmanager
async def feeding(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[StatusStream, str]]:
    """Serve a feed of quick reports on a port of its own."""
    monkeypatch.setattr(module, "REPORT_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(module, "PAUSE_FACTOR", 0)
    feed = StatusStream(counted.report, write_seconds=0.3)
    async with serving(feed._get) as url:
        try:
            yield feed, url
        finally:
            feed.close()


async def test_the_reports_are_those_of_status(gateway: Gateway) -> None:
    """The page and curl must tell the same."""
    stream = await look(gateway)
    first = await stream.until("status")
    report = json.loads(first.data or "")
    _, status = await gateway.admin("/status")
    assert report.keys() == status.keys()
    assert report["channels"] == status["channels"]
    assert (await stream.until("status")).data != first.data


async def test_nobody_looks_without_the_token() -> None:
    """Figures are what the token is for."""
    async with gateway_running(LOCKED) as gateway:
        assert (await ask(gateway, "/status/stream"))[0] == 401
        stream = await look(gateway, Authorization=f"Bearer {TOKEN}")
        await stream.until("status")


async def test_all_viewers_share_a_report_and_without_one_none_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A forgotten tab must not cost more for each of its kind, nor a closed one anything."""
    counted = Counted()
    async with feeding(counted, monkeypatch) as (feed, url), aiohttp.ClientSession() as session:
        assert counted.made == 0
        counted.may_be_made.clear()
        answers = [await session.get(url) for _ in range(5)]
        await eventually(lambda: feed._viewers == 5)
        counted.may_be_made.set()
        firsts = [await answer.content.readuntil(b"\n\n") for answer in answers]
        assert len(set(firsts)) == 1
        for answer in answers:
            answer.close()
        await eventually(lambda: feed._viewers == 0)
        made = counted.made
        await asyncio.sleep(0.2)
        assert counted.made == made
        async with session.get(url) as answer:
            await answer.content.readuntil(b"\n\n")
            assert counted.made > made


async def test_a_viewer_that_reads_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen tab must not hold a place for ever, nor memory."""
    async with feeding(Counted(), monkeypatch) as (feed, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        await eventually(lambda: feed._viewers == 1)
        await eventually(lambda: feed._viewers == 0)
        writer.close()


async def test_viewers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed with a reconnect delay, and finds room once another has left."""
    async with feeding(Counted(), monkeypatch) as (feed, url):
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            answers = [await session.get(url) for _ in range(MAX_VIEWERS)]
            await eventually(lambda: feed._viewers == MAX_VIEWERS)
            async with session.get(url) as answer:
                assert b'"reason":"overloaded"' in await answer.read()
            answers[0].close()
            await eventually(lambda: feed._viewers == MAX_VIEWERS - 1)
            async with session.get(url) as answer:
                assert b"event: status" in await answer.content.readuntil(b"\n\n")
            for answer in answers:
                answer.close()


async def test_a_shutdown_tells_viewers_and_waits_for_none() -> None:
    """The page must say that the gateway goes, and the gateway must go."""
    async with gateway_running() as gateway:
        stream = await look(gateway)
        await stream.until("status")
        async with safety_net():  # request_seconds is 10
            await gateway.daemon.stop()
        assert (await stream.until("stream.close")).json["reason"] == "draining"


async def test_a_report_that_fails_is_told_in_the_log_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The page goes on with the next one."""
    counted = Counted()
    whole = counted.report

    async def sometimes() -> dict[str, Any]:
        if counted.made == 0:
            counted.made = 1
            raise RuntimeError("a fault")
        return await whole()

    monkeypatch.setattr(counted, "report", sometimes)
    async with (
        feeding(counted, monkeypatch) as (_, url),
        aiohttp.ClientSession() as session,
        session.get(url) as answer,
    ):
        assert b'"made":2' in await answer.content.readuntil(b"\n\n")
