"""How evenly the clients of a node that is stopped reconnect."""

import asyncio
import re
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from bench.process import Process, gateway
from bench.scenarios.base import Options, Row, Scenario, at_most

STREAMS = 3000
DRAIN = 6.0
"""Seconds of ``timeouts.drain``."""

WINDOWS = 8
"""Windows in which returns are counted, over the time in which they come."""

AHEAD = 200
"""Connections that are opened at once."""

_RETRY = re.compile(rb"retry: ?(\d+)")


def measure(options: Options) -> Iterator[Row]:
    """Open streams, stop the node, and add to each stream's end the delay that it was told."""
    config: dict[str, Any] = {
        "timeouts": {"drain": f"{DRAIN:g}s", "retry": "1s"},
        "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
        "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
        "limits": {"connections_per_address": 20_000, "connect_rate_per_address": "100000/s"},
    }
    count = options.pick(STREAMS, 100)
    with gateway(config) as (process, port, _):
        returns = asyncio.run(_returns(process, port, count))
    figure = peak(returns)
    yield Row(
        "sse-gateway",
        None,
        {"streams": count, "told when to come back": len(returns), "peak rate x mean": figure},
        (at_most("peak", figure, 2.0, " x mean"), at_most("not told", count - len(returns), 0)),
    )


def peak(times: Sequence[float]) -> float:
    """Return the highest rate of returns in any of `WINDOWS` windows, over their mean rate."""
    first, last = min(times), max(times)
    width = (last - first) / WINDOWS or 1.0
    counts = [0] * WINDOWS
    for time in times:
        counts[min(WINDOWS - 1, int((time - first) / width))] += 1
    return max(counts) * WINDOWS / len(times)


async def _returns(process: Process, port: int, count: int) -> list[float]:
    """Return when each client would be back, in seconds of the loop's clock."""
    streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    for first in range(0, count, AHEAD):
        streams += await asyncio.gather(*(_open(port) for _ in range(min(AHEAD, count - first))))
    process.signal(signal.SIGTERM)
    found = await asyncio.gather(*(_end(reader, writer) for reader, writer in streams))
    return [each for each in found if each is not None]


async def _open(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /events/orders HTTP/1.1\r\nHost: bench\r\n\r\n")
    await reader.readuntil(b"stream.open")
    return reader, writer


async def _end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float | None:
    """Read a stream to its end; None where no delay was told with it."""
    body = b""
    while part := await reader.read(65536):
        body += part
    writer.transport.abort()
    told = _RETRY.findall(body)
    return asyncio.get_running_loop().time() + int(told[-1]) / 1000 if b"stream.close" in body else None


SCENARIO = Scenario(
    "restart",
    "A node is stopped",
    f"{STREAMS} streams on one node, which gets SIGTERM (`timeouts.drain` {DRAIN:g} s). A client comes back "
    "at the end of its stream and the `retry:` that it was told with it. Peak is the highest rate in one "
    f"of {WINDOWS} windows over the time in which they come back.",
    measure,
    limit=120,
)
