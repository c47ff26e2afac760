"""Clients that ask for a shorter heartbeat: never silent for longer, within bounds, and at no cost to others."""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.config.model.config import TimeoutsConfig
from gateway.core.sse import HEARTBEAT_COMMENT
from gateway.streams.short_heartbeats import ShortHeartbeat, ShortHeartbeatSweep
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.virtual import in_virtual_time, stand_still


@dataclass(eq=False)
class FakeStream:
    """A stream that notes when it was written to."""

    subscription: Any = None
    short_heartbeat: ShortHeartbeat | None = None
    close_reason: str | None = None
    is_writable: bool = True
    total_bytes: int = 0
    times: list[float] = field(default_factory=list)

    def send_heartbeat(self) -> None:
        self.write()

    def send(self, blocks: bytes, events: int) -> None:
        raise AssertionError("only heartbeats are sent here")

    def close(self, reason: str) -> None:
        raise AssertionError(reason)

    def write(self) -> None:
        self.total_bytes += 1
        self.times.append(asyncio.get_running_loop().time())


def timeouts(heartbeat: float = 15.0, minimum: float = 4.0) -> TimeoutsConfig:
    return TimeoutsConfig.model_construct(heartbeat=heartbeat, heartbeat_minimum=minimum)


def opened(sweep: ShortHeartbeatSweep, asked: float) -> FakeStream:
    heartbeat = sweep.create_state(asked)
    assert heartbeat is not None
    stream = FakeStream(short_heartbeat=heartbeat, times=[asyncio.get_running_loop().time()])
    sweep.add(stream)
    return stream


def silences(stream: FakeStream) -> list[float]:
    return [later - sooner for sooner, later in itertools.pairwise(stream.times)]


@pytest.mark.parametrize(("asked", "interval"), [(1.0, 4.0), (4.0, 4.0), (5.0, 5.0), (11.3, 11.3)])
@pytest.mark.parametrize("every", [None, 0.7, 3.9, 7.0])
def test_a_stream_is_never_silent_for_longer_than_its_interval(
    asked: float, interval: float, every: float | None
) -> None:
    """A client whose read timeout is a little longer than what it asked for reconnects all the same."""

    async def main() -> None:
        sweep = ShortHeartbeatSweep(timeouts())
        assert sweep.effective_seconds(asked) == interval
        streams = [opened(sweep, asked) for _ in range(40)]
        ended = asyncio.get_running_loop().time() + 300
        while asyncio.get_running_loop().time() < ended:
            await asyncio.sleep(every or 30)
            for stream in streams if every else ():
                stream.write()
        for stream in streams:
            assert max(silences(stream)) <= interval
            if every is None:
                assert min(silences(stream)) >= interval / 2, "nor much more often"
        sweep.stop()

    in_virtual_time(main())


def test_nothing_ticks_without_such_a_stream() -> None:
    """A node whose clients ask for nothing wakes up many times a second."""

    async def main() -> None:
        sweep = ShortHeartbeatSweep(timeouts())
        assert sweep._timer is None
        streams = [opened(sweep, 5) for _ in range(3)]
        assert len(sweep) == 3
        await asyncio.sleep(60)
        for stream in streams:
            sweep.remove(stream)
            sweep.remove(stream)
        await asyncio.sleep(60)
        assert (len(sweep), sweep._timer) == (0, None)
        stream = opened(sweep, 5)
        await asyncio.sleep(60)
        assert max(silences(stream)) <= 5, "and it begins again"
        sweep.stop()

    in_virtual_time(main())


def test_a_stream_that_takes_nothing_is_sent_nothing() -> None:
    """Heartbeats pile up for a client that is full, or follow the end of a stream."""

    async def main() -> None:
        sweep = ShortHeartbeatSweep(timeouts())
        full, ended = opened(sweep, 5), opened(sweep, 5)
        full.is_writable, ended.close_reason = False, "draining"
        await asyncio.sleep(60)
        assert len(full.times) == len(ended.times) == 1
        full.is_writable = True
        await asyncio.sleep(2)
        assert len(full.times) == 2
        sweep.stop()

    in_virtual_time(main())


def test_a_process_that_stood_still_does_not_make_up_for_it() -> None:
    """After a pause of an hour a burst of ticks stops all streams."""

    async def main() -> None:
        sweep = ShortHeartbeatSweep(timeouts())
        stream = opened(sweep, 5)
        stand_still(3600)
        await asyncio.sleep(5)
        assert len(stream.times) <= 4
        sweep.stop()

    in_virtual_time(main())


def test_bounds_follow_the_configuration() -> None:
    """A reload that forbids short heartbeats leaves those of open streams, or sends them too seldom."""

    async def main() -> None:
        sweep = ShortHeartbeatSweep(timeouts())
        stream = opened(sweep, 5)
        sweep.reconfigure(timeouts(heartbeat=30, minimum=20))
        await asyncio.sleep(100)
        assert min(silences(stream)) > 5
        assert max(silences(stream)) <= 20
        sweep.reconfigure(timeouts(heartbeat=2, minimum=4))
        del stream.times[:-1]
        await asyncio.sleep(20)
        assert max(silences(stream)[1:]) <= 2
        assert sweep.create_state(1) is None, "none is shorter than the shortest"
        sweep.stop()

    in_virtual_time(main())


SHORT = {"timeouts": {"heartbeat": "1m", "heartbeat_minimum": "200ms"}}


@pytest.mark.idle_clock
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_gets_heartbeats_as_often_as_it_asked(version: str) -> None:
    """okhttp-eventsource gives up after five seconds of silence, and reconnects for ever."""
    async with gateway_running(SHORT) as gateway:
        stream = await gateway.open("/events/orders?heartbeat=400ms", version=version)
        assert (await stream.next()).json["heartbeat"] == 400
        usual = await gateway.open("/events/orders")
        assert (await usual.next()).json["heartbeat"] == 60_000
        while stream.parser.comments < 3:
            await stream.read()
        assert stream.body.endswith(HEARTBEAT_COMMENT)
        assert len(stream.messages) == 1
        assert usual.parser.comments == 0
        stream.close()
        await eventually(lambda: not len(gateway.daemon.streams.short_heartbeats))


@pytest.mark.idle_clock
@pytest.mark.parametrize("query", ["heartbeat=event,200ms", "heartbeat=200ms&heartbeat=event"])
async def test_short_heartbeats_can_be_events(query: str) -> None:
    """A client that needs both, such as curl with --speed-time, can have one of them only."""
    async with gateway_running(SHORT) as gateway:
        stream = await gateway.subscribe(f"/events/orders?{query}")
        assert (await stream.next()).type == "stream.heartbeat"
        assert (await stream.next()).type == "stream.heartbeat"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("1ms", 4000),
        ("0s", 4000),
        ("5s", 5000),
        ("4.5s", 4500),
        ("15s", 15000),
        ("1h", 15000),
        ("event", 15000),
    ],
)
async def test_stream_open_says_the_heartbeat_of_this_stream(
    gateway: Gateway, asked: str, expected: int
) -> None:
    """A client waits for more bytes than the gateway sends, or takes the gateway's default for its own."""
    stream = await gateway.open(f"/events/orders?heartbeat={asked}")
    assert (await stream.next()).json["heartbeat"] == expected
    is_short = expected < 15000
    assert len(gateway.daemon.streams.short_heartbeats) == is_short


@pytest.mark.parametrize(
    "asked", ["", "5", "fast", "event,comment", "event,event", "5s,6s", "5s,event,", "-1s"]
)
async def test_what_is_no_heartbeat_is_refused(gateway: Gateway, asked: str) -> None:
    """A typing error in the URL goes unnoticed, and the client reconnects for ever."""
    stream = await gateway.open(f"/events/orders?heartbeat={asked}")
    assert stream.status == 400
    assert b'"bad_query"' in await stream.rest()


async def test_a_minimum_above_the_heartbeat_turns_it_off() -> None:
    """An operator cannot keep clients from asking for more."""
    async with gateway_running({"timeouts": {"heartbeat_minimum": "1h"}}) as gateway:
        stream = await gateway.open("/events/orders?heartbeat=5s")
        assert (await stream.next()).json["heartbeat"] == 15_000
