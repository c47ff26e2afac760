"""The load client counts what was sent, and hides nothing that failed."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from bench.load import Arrived, Load, Opened, Stats, load
from bench.process import free_port
from tests.bench.odd_server import CHUNKED, HELLO, PLAIN, Script, chunk, odd_server, send
from tests.support.deadline import SAFETY_SECONDS

pytestmark = pytest.mark.extended

T = TypeVar("T")


async def with_load(port: int, use: Callable[[Load], T], streams: int = 1, *, read: bool = True) -> T:
    """Run blocking use of a load beside the server's loop."""

    def run() -> T:
        with load(port, ["/"], streams, read=read) as clients:
            return use(clients)

    return await asyncio.to_thread(run)


def opened_and_counted(events: int) -> Callable[[Load], tuple[Opened, Arrived, Stats]]:
    """Open, wait for events, and take the figures."""

    def use(clients: Load) -> tuple[Opened, Arrived, Stats]:
        opened = clients.open(seconds=SAFETY_SECONDS)
        clients.expect(events, seconds=SAFETY_SECONDS)
        return opened, clients.arrived(), clients.stats()

    return use


def until(condition: Callable[[], bool]) -> None:
    """Wait in a thread until a condition holds. Raises TimeoutError."""
    deadline = time.monotonic() + SAFETY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


async def stay(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("frame", "head"), [(chunk, CHUNKED), (lambda data: data, PLAIN)], ids=["chunked", "plain"]
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
async def test_events_are_counted_however_they_are_cut(
    frame: Callable[[bytes], bytes], head: bytes, end: bytes
) -> None:
    """A blank line in two reads, two events in one, an event a byte at a time."""
    one = b'event: a\ndata: {"x":1}\nid: 1\n\n'.replace(b"\n", end)

    async def script(writer: asyncio.StreamWriter) -> None:
        await send(writer, head + frame(HELLO.replace(b"\n", end)))
        await send(writer, frame(one + one))
        framed = frame(one)
        for cut in range(1, len(framed)):
            await send(writer, framed[:cut], 0.001)
            await send(writer, framed[cut:], 0.001)
        for byte in frame(one):
            await send(writer, bytes([byte]), 0.001)
        await stay(writer)

    events = 2 + len(frame(one)) - 1 + 1
    async with odd_server(script) as port:
        opened, arrived, stats = await with_load(port, opened_and_counted(events))
    assert (opened.live, opened.failed, arrived.complete, stats.events) == (1, {}, True, events)


async def test_only_events_with_data_count() -> None:
    """Comments, pings and blocks without data are no events; the gateway's own and gaps are counted apart."""
    blocks = [
        b":\n",
        b": ping\n\n",
        b"retry: 3000\n\n",
        b"event: stream.open\ndata: {}\nid: 1\n\n",
        b"event: stream.gap\ndata: {}\nid: 2\n\n",
        b"data: {}\n\n",
    ]

    async def script(writer: asyncio.StreamWriter) -> None:
        await send(writer, CHUNKED + b"".join(map(chunk, blocks)))
        await stay(writer)

    async with odd_server(script) as port:
        _, arrived, stats = await with_load(port, opened_and_counted(1))
    assert (arrived.events, stats.own, stats.gaps, stats.comments) == (1, 1, 1, 2)


async def test_a_head_in_pieces_and_large_events() -> None:
    """What is longer than a read or a look is still one event, and its stamp is found."""
    data = b'data: {"t":%d,"x":"' % time.monotonic_ns() + b"y" * 500_000 + b'"}\n\n'

    async def script(writer: asyncio.StreamWriter) -> None:
        for byte in CHUNKED + chunk(HELLO):
            await send(writer, bytes([byte]), 0.0005)
        await send(writer, chunk(data))
        await stay(writer)

    async with odd_server(script) as port:
        opened, arrived, stats = await with_load(port, opened_and_counted(1))
    assert opened.live == 1
    assert (arrived.events, stats.latency.count) == (1, 1)


async def test_latency_is_the_age_of_the_stamp_when_the_last_byte_came() -> None:
    """Known ages: ten events of 1,000 s, one of 2,000 s that took 300 ms more for its blank line."""
    began = time.monotonic()

    async def script(writer: asyncio.StreamWriter) -> None:
        await send(writer, CHUNKED + chunk(HELLO))
        for _ in range(10):
            stamp = time.monotonic_ns() - 1_000 * 10**9
            await send(writer, chunk(b'data: {"channel":"c","payload":{"t":%d,"x":1}}\n\n' % stamp))
        stamp = time.monotonic_ns() - 2_000 * 10**9
        await send(writer, chunk(b'data: {"t":%d}\n' % stamp), 0.3)
        await send(writer, chunk(b"\n"))
        await stay(writer)

    async with odd_server(script) as port:
        _, _, stats = await with_load(port, opened_and_counted(11))
    took = time.monotonic() - began
    assert stats.latency.count == 11
    assert 1_000 * 0.99 <= stats.latency.percentile(0.5) <= (1_000 + took) * 1.01
    assert 2_000.29 <= stats.latency.longest <= 2_000 + took
    assert stats.latency.percentile(1.0) == pytest.approx(stats.latency.longest, rel=0.01)


async def test_what_is_missing_is_told() -> None:
    """Waiting ends with what came, and says that it is not all."""

    async def script(writer: asyncio.StreamWriter) -> None:
        await send(writer, CHUNKED + chunk(HELLO) + chunk(b"data: 1\n\n"))
        await stay(writer)

    def use(clients: Load) -> tuple[Arrived, Arrived]:
        clients.open(seconds=SAFETY_SECONDS)
        clients.expect(1, seconds=SAFETY_SECONDS)
        first = clients.arrived()
        clients.expect(2, seconds=0.3)
        return first, clients.arrived()

    async with odd_server(script) as port:
        first, arrived = await with_load(port, use, 3)
    assert first.complete
    assert (arrived.events, arrived.complete) == (3, False)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(writer: asyncio.StreamWriter) -> None:
    # Closed with no time to linger, a socket is reset.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def refuse(writer: asyncio.StreamWriter) -> None:
    await send(writer, b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")


async def turn_away(writer: asyncio.StreamWriter) -> None:
    await send(writer, CHUNKED + chunk(b"retry: 100\nevent: stream.close\ndata: {}\n\n") + b"0\r\n\r\n")


async def say_nothing(writer: asyncio.StreamWriter) -> None:
    await send(writer, CHUNKED)
    await stay(writer)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (hang_up, "ended"),
        (reset, "reset"),
        (refuse, "status 503"),
        (turn_away, "turned_away"),
        (say_nothing, "late"),
    ],
)
async def test_streams_that_do_not_come_to_life_are_failures(script: Script, reason: str) -> None:
    """Each is counted by its reason, and is not tried again."""
    seconds = 0.5 if reason == "late" else SAFETY_SECONDS
    async with odd_server(script) as port:
        opened = await with_load(port, lambda clients: clients.open(seconds=seconds), 3)
    assert (opened.live, opened.failed) == (0, {reason: 3})


async def test_refused_connections_are_failures() -> None:
    """Nobody listens."""
    opened = await with_load(free_port(), lambda clients: clients.open(seconds=SAFETY_SECONDS), 5)
    assert (opened.live, opened.failed) == (0, {"refused": 5})


@pytest.mark.parametrize("end", [b"", chunk(b"data: 1\n\n") + b"0\r\n\r\n"], ids=["closed", "last chunk"])
async def test_streams_that_the_server_ends_are_lost(end: bytes) -> None:
    """A stream that was live and is no more shows."""

    async def script(writer: asyncio.StreamWriter) -> None:
        await send(writer, CHUNKED + chunk(HELLO))
        await send(writer, end)

    def use(clients: Load) -> tuple[Opened, Stats]:
        opened = clients.open(seconds=SAFETY_SECONDS)
        until(lambda: clients.stats().lost == 2)
        return opened, clients.stats()

    async with odd_server(script) as port:
        opened, stats = await with_load(port, use, 2)
    assert (opened.live, opened.failed) == (2, {})
    assert (stats.live, stats.lost) == (0, 2)


async def test_silence_is_the_longest_time_without_a_byte() -> None:
    """A heartbeat that is late by known time."""
    loop = asyncio.get_running_loop()
    go_on = asyncio.Event()

    async def script(writer: asyncio.StreamWriter) -> None:
        await send(writer, CHUNKED + chunk(HELLO))
        await send(writer, chunk(b":\n"))
        await go_on.wait()
        await send(writer, chunk(b":\n"))
        await send(writer, chunk(b"data: 1\n\n"))
        await stay(writer)

    def use(clients: Load) -> tuple[float, float, Stats]:
        began = time.monotonic()
        clients.open(seconds=SAFETY_SECONDS)
        until(lambda: clients.stats().comments == 2)  # the first is the head's
        silent = time.monotonic()
        time.sleep(0.5)
        silence = time.monotonic() - silent
        loop.call_soon_threadsafe(go_on.set)
        clients.expect(1, seconds=SAFETY_SECONDS)
        assert clients.arrived().complete
        return silence, time.monotonic() - began, clients.stats()

    async with odd_server(script) as port:
        least, most, stats = await with_load(port, use)
    assert least <= stats.silence.longest <= most
    assert stats.silence.count == 1


async def test_streams_that_never_read_take_only_the_first_block() -> None:
    """What is sent to them stays with the server once their buffers are full."""
    stuck = threading.Event()

    async def script(writer: asyncio.StreamWriter) -> None:
        await send(writer, CHUNKED + chunk(HELLO))
        writer.write(chunk(b"data: 1\n\n" * 2_000_000))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.5)
        stuck.set()
        writer.transport.abort()

    def use(clients: Load) -> Stats:
        clients.open(seconds=SAFETY_SECONDS)
        assert stuck.wait(SAFETY_SECONDS)
        return clients.stats()

    async with odd_server(script) as port:
        stats = await with_load(port, use, read=False)
    assert (stats.live, stats.events) == (1, 0)


async def test_streams_take_the_targets_in_turn() -> None:
    """Paths and headers of their own, over two processes."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split()[1] + b" " + head.partition(b"X-Number: ")[2].split(b"\r\n")[0])
        await send(writer, CHUNKED + chunk(HELLO))
        await stay(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    def use() -> Opened:
        with load(port, ["/a\tX-Number: 1", "/b\tX-Number: 2", "/c"], 7, processes=2) as clients:
            return clients.open(seconds=SAFETY_SECONDS)

    opened = await asyncio.to_thread(use)
    server.close()
    assert opened.live == 7
    assert sorted(asked) == [b"/a 1"] * 3 + [b"/b 2"] * 2 + [b"/c "] * 2
