"""Fan-out, pausing, resuming and replay in any interleaving: every stream gets the log's order, once.

The streams, the hub and the broker are the real ones; only the sockets are replaced by objects that
note what is written and that can be full whenever the test says so.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.broker.memory import MemoryBroker
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import ChannelConfig, TimeoutsConfig
from gateway.core.clock import unix_ms
from gateway.core.event import Draft, EventId, Retention
from gateway.hub import audience
from gateway.hub import hub as hub_module
from gateway.hub.hub import Hub
from gateway.hub.replay import Replay, ResumePoint
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from gateway.streams.acks.nonces import NonceSigner
from gateway.streams.acks.tracker import AckTracker
from gateway.streams.connection import StreamConnection
from gateway.streams.registry import StreamRegistry
from tests.support.eventsource import Parser

CHANNELS = ("a", "b", "live")
KEEP = Retention(10_000)


@dataclass
class Wire:
    """A transport that takes everything, and tells its stream that it is full when the test wants."""

    stream: StreamConnection
    full_after: int | None = None
    """Pause the stream in the middle of the write after so many more."""
    data: list[bytes] = field(default_factory=list)
    cut: bool = False
    """Whether the last write past the transport took a part only; the rest comes to the transport."""

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> "Wire | None":
        """Be the socket too, where writes may go past the transport."""
        return self if name == "socket" and World.direct else None

    def fileno(self) -> int:
        wires.append(self)
        return len(wires) - 1

    def take(self, data: bytes) -> int:
        """Be written to past the transport: whole, in part, or not at all."""
        if self.stream.is_paused:
            faults.append("what waits in the transport was overtaken")
        if self.stream.close_reason is not None:
            faults.append("the file may be another stream's by now")
        if self.full_after == 0:
            self.data.append(data[: len(data) // 2])
            self.cut = True
            return len(data) // 2
        self.write(data)
        return len(data)

    def write(self, data: bytes | memoryview) -> None:
        if self.cut:
            self.data[-1] += data
            self.cut = False
        else:
            self.data.append(bytes(data))
        if self.full_after is not None:
            self.full_after -= 1
            if self.full_after < 0:
                self.full_after = None
                self.stream.pause_writing()

    def close(self) -> None:
        asyncio.get_running_loop().call_soon(self.stream.connection_lost, None)

    abort = close


@dataclass
class Client:
    """One stream and what it must get."""

    stream: StreamConnection
    wire: Wire
    expected_from: int
    live_from: int
    channels: tuple[str, ...]
    place: Any

    def was_told_a_gap(self) -> bool:
        return b'event: stream.gap\ndata: {"channel":"live"' in b"".join(self.wire.data)

    def received(self) -> list[int]:
        parser = Parser()
        for frame in self.wire.data:
            size, _, rest = frame.partition(b"\r\n")
            assert len(rest) == int(size, 16) + 2
            parser.feed(rest[:-2])
            assert not parser.torn, "a write holds whole events"
        return [message.json["payload"]["n"] for message in parser.messages if message.type == "message"]


wires: list[Wire] = []
"""By the number of their file."""

faults: list[str] = []
"""What must not happen, and what nobody would hear of if it were raised in the middle of a fan-out."""


class World:
    """A node without sockets. ``direct``: fan-out writes past the transports, as it does without TLS."""

    direct = False

    def __init__(self) -> None:
        spec = ChannelConfig.model_validate(
            {
                "from": [{"source": "s", "topic": "t"}],
                "access": "public",
                "history": {"events": 10_000, "age": None},
            }
        )
        live = spec.model_copy(update={"history": "none"})
        self.catalog = ChannelCatalog({"a": spec, "b": spec, "live": live})
        self.broker = MemoryBroker(history_bytes=10**8)
        metrics = Metrics()
        self.hub = Hub(self.broker, self.catalog, metrics, ring_seconds=20, ring_bytes=10**8, clock=unix_ms)
        self.hub.start()
        self.replay = Replay(self.hub, self.broker, metrics)
        acks = AckTracker(NonceSigner(self.broker.shared_store), metrics, "none", {})
        self.streams = StreamRegistry(self.hub, self.replay, metrics, TimeoutsConfig(), acks, limit=1000)
        self.log: list[tuple[str, EventId]] = []
        self.clients: list[Client] = []
        self.cut_at = 0

    async def publish(self, channel: str, size: int) -> None:
        payload = b'{"n":%d,"x":"%b"}' % (len(self.log), b"x" * size)
        draft = Draft(channel, payload, 1, KEEP if channel != "live" else Retention(0))
        self.log.append((channel, (await self.broker.append([draft]))[0]))

    async def cut(self, missed: int, size: int) -> None:
        """Cut the node off from its log for some events, which it must read then."""
        self.cut_at = len(self.log)
        self.broker.follow(lambda events: None, lambda until: None)
        for number in range(missed):
            await self.publish(("a", "b")[number % 2], size)
        self.broker.follow(self.hub.receive, self.hub.handle_log_gap)
        self.hub.handle_log_gap(self.broker.head)

    async def open(self, channels: tuple[str, ...], back: int | None) -> None:
        """Open a stream, live or resuming from ``back`` events ago."""
        matches = tuple(match for name in sorted(channels) if (match := self.catalog.resolve(name)))
        place = self.streams.acquire_slot(Subscription.of(matches))
        start = ResumePoint()
        at = now = len(self.log)
        if back is not None and self.log:
            at = max(0, at - 1 - back)
            start = ResumePoint(after=self.log[at][1], has_last_event_id=True)
            at += 1
        opening = await place.prepare(start)
        stream = place.create_connection(opening)
        wire = Wire(stream)
        stream.connection_made(wire)  # type: ignore[arg-type]
        self.clients.append(Client(stream, wire, at, now, channels, place))
        self.streams.register(stream, opening, 0)
        place.__exit__()

    async def settle(self) -> None:
        for _ in range(2000):
            await asyncio.sleep(0)
            if not self.hub._work_queue and not self.replay._fetch_tasks:
                return
        raise AssertionError("the pump never rests")

    def check(self) -> None:
        for client in self.clients:
            wanted = [
                number
                for number, (channel, _) in enumerate(self.log)
                if channel in client.channels
                and number >= (client.live_from if channel == "live" else client.expected_from)
            ]
            got = client.received()
            # What a channel without history had on its way when the node was cut off is gone, and told.
            gone = {
                number
                for number in set(wanted) - set(got)
                if number < self.cut_at and self.log[number][0] == "live"
            }
            wanted = [number for number in wanted if number not in gone]
            assert not gone or not client.stream.is_writable or client.was_told_a_gap()
            if client.stream.is_writable:
                assert got == wanted
                assert client.stream.audience is not None
            else:
                assert got == wanted[: len(got)], "a stream that stopped reading has a prefix"


some = st.sampled_from([("a",), ("live",), ("a", "b"), ("a", "live"), ("a", "b", "live")])
number = st.integers(0, 5)
step = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(CHANNELS), st.sampled_from([1, 50, 40_000])),
    st.tuples(st.just("publish"), st.sampled_from(CHANNELS), st.sampled_from([1, 50, 40_000])),
    st.tuples(st.just("open"), some, st.none() | st.integers(0, 30)),
    st.tuples(st.just("fill"), number, st.integers(0, 2)),
    st.tuples(st.just("pause"), number, st.none()),
    st.tuples(st.just("resume"), number, st.none()),
    st.tuples(st.just("close"), number, st.none()),
    st.tuples(st.just("cut"), st.integers(0, 5), st.sampled_from([1, 40_000])),
    st.tuples(st.just("turn"), st.integers(1, 3), st.none()),
)


async def play(plan: list[Any]) -> None:
    world = World()
    for what, one, two in plan:
        client = world.clients[one % len(world.clients)] if world.clients and isinstance(one, int) else None
        if what == "publish":
            await world.publish(one, two)
        elif what == "open":
            await world.open(one, two)
        elif what == "cut":
            await world.cut(one, two)
        elif what == "turn":
            for _ in range(one):
                await asyncio.sleep(0)
        elif client is None:
            continue
        elif what == "fill":
            client.wire.full_after = two
        elif what == "pause" and client.stream.is_writable:
            client.stream.pause_writing()
        elif what == "resume" and client.stream.is_paused:
            client.stream.resume_writing()
        elif what == "close" and client.stream.close_reason is None:
            client.wire.full_after = None
            client.stream.abort("test")
            world.clients.remove(client)
    await world.settle()
    world.check()
    for client in world.clients:
        client.wire.full_after = None
        while client.stream.is_paused:
            client.stream.resume_writing()
            await world.settle()
    await world.settle()
    world.check()
    for client in world.clients:
        client.stream.abort("test")
        assert client.stream.bytes_sent == sum(map(len, client.wire.data)), (
            "what is logged is what was written"
        )
    await asyncio.sleep(0)
    assert not world.streams.active
    assert not world.hub.channels
    assert not world.hub._audiences
    assert world.hub._ring.total_bytes == 0
    assert not faults


def run(plan: list[Any], *, direct: bool = False) -> None:
    World.direct = direct
    wires.clear()
    faults.clear()
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        patch.setattr(audience, "write", lambda fd, data: wires[fd].take(data))
        runner.run(play(plan))


plans = given(st.lists(step, min_size=12, max_size=80), st.booleans())
how_many = pytest.mark.parametrize("examples", [100, pytest.param(1500, marks=pytest.mark.extended)])


@how_many
def test_no_interleaving_loses_repeats_or_reorders(examples: int) -> None:
    """The seam between history and live is where peers lose events; here it is driven through everything."""
    settings(max_examples=examples)(plans(lambda plan, direct: run(plan, direct=direct)))()


@how_many
def test_nor_does_it_with_tiny_slices_frames_and_floods(
    examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with every limit so low that frames are cut, fan-outs yield and audiences shed all the time."""
    monkeypatch.setattr(hub_module, "SLICE_WRITES", 1)
    monkeypatch.setattr(audience, "MAX_FRAME_BYTES", 60)
    monkeypatch.setattr(audience, "MAX_PENDING_BYTES", 100)
    settings(max_examples=examples)(plans(lambda plan, direct: run(plan, direct=direct)))()


@pytest.mark.parametrize("direct", [False, True])
def test_a_member_that_leaves_and_returns_during_a_fan_out(
    monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    """It reads the frame from the ring, so the fan-out that is still under way must not bring it again."""
    monkeypatch.setattr(hub_module, "SLICE_WRITES", 1)

    async def scene() -> None:
        world = World()
        for _ in range(12):
            await world.open(("a",), None)
        await world.publish("a", 1)
        await asyncio.sleep(0)
        early, gone = world.clients[10], world.clients[11]
        (first,) = world.hub._audiences
        assert world.hub._audiences[first].is_busy
        early.stream.pause_writing()
        early.stream.resume_writing()
        gone.stream.abort("test")
        world.clients.remove(gone)
        await world.settle()
        world.check()
        assert early.received() == [0]
        for client in world.clients:
            client.stream.abort("test")
        assert not faults

    World.direct = direct
    wires.clear()
    faults.clear()
    monkeypatch.setattr(audience, "write", lambda fd, data: wires[fd].take(data))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene())


def test_streams_that_come_and_go_without_an_event_leave_nothing() -> None:
    """A quiet channel may see a million clients before its first event."""

    async def scene() -> None:
        world = World()
        await world.open(("a",), None)
        (lasting,) = world.clients
        for _ in range(100):
            await world.open(("a",), None)
            gone = world.clients.pop()
            gone.stream.abort("test")
        await asyncio.sleep(0)
        (live,) = world.hub._audiences.values()
        assert list(live.members) == list(live._members_without_fd) == [lasting.stream]
        lasting.stream.abort("test")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene())


def test_the_last_member_may_leave_before_its_events_are_sealed(capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever comes and goes while events pass would write a traceback into the log each time."""

    async def scene() -> None:
        world = World()
        await world.open(("a",), None)
        await world.publish("a", 1)
        (gone,) = world.clients
        gone.stream.abort("test")
        await world.settle()
        assert gone.received() == [] and not world.hub._audiences

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene())
    assert "fan_out_failed" not in "".join(capfd.readouterr())
