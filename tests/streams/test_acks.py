"""Who is asked, what is a miss, and whose stream ends for it; in virtual time."""

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.broker.memory_shared_store import MemorySharedStore
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import AckConfig, Config
from gateway.core.clock import unix_ms
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from gateway.streams.acks.nonces import NonceSigner
from gateway.streams.acks.state import AckRule, AckState
from gateway.streams.acks.tracker import GRACE_SECONDS, AckTracker
from tests.support.config import loads
from tests.support.gateway import BASE, merged
from tests.support.virtual import in_virtual_time, stand_still

ACK = {"interval": "30s", "timeout": "60s", "retry_limit": 3}


def config(over: Any = None) -> Config:
    return loads(json.dumps(merged(BASE, {"ack": ACK, **(over or {})})), environ={})


@dataclass(eq=False)
class FakeStream:
    """A stream whose client hears, and answers as the test wants: after so many seconds, or never (None)."""

    world: "World"
    id: str
    subscription: Subscription
    answers: float | None = None
    is_writable: bool = True
    close_reason: str | None = None
    asked_at: list[float] = field(default_factory=list)
    ended_at: float = 0.0

    def send(self, blocks: bytes, events: int) -> None:
        loop = asyncio.get_running_loop()
        self.asked_at.append(loop.time())
        nonce = json.loads(blocks.partition(b"data: ")[2])["nonce"]
        if self.answers is not None:
            loop.call_later(self.answers, self.world.post, self.id, nonce)

    def close(self, reason: str) -> None:
        self.close_reason, self.ended_at = reason, asyncio.get_running_loop().time()


class World:
    """The asking part of a node."""

    def __init__(self, over: Any = None) -> None:
        made = config(over)
        self.catalog = ChannelCatalog(made.channels)
        self.metrics = Metrics()
        self.nonces = NonceSigner(MemorySharedStore(unix_ms))
        self.acks = AckTracker(
            self.nonces, self.metrics, made.ack, made.channels, is_log_reachable=lambda: self.is_reached
        )
        self.opened = 0
        self.is_reached = True

    def subscription(self, *names: str) -> Subscription:
        found = [self.catalog.resolve(name) for name in names]
        return Subscription.of(tuple(match for match in found if match is not None))

    def open(self, *names: str, answers: float | None = None) -> FakeStream:
        self.opened += 1
        stream = FakeStream(self, f"{self.opened:024x}", self.subscription(*(names or ("orders",))), answers)
        rule = self.acks.rule_for(stream.subscription)
        assert rule is not None
        self.acks.add(AckState(stream, rule))
        return stream

    def post(self, connection: str, nonce: str) -> None:
        number = self.nonces.verify(connection, nonce)
        assert number is not None
        self.acks.acknowledge(connection, number)

    @property
    def missed(self) -> int:
        return self.metrics.acks_missed.value


def virtual(main: Coroutine[Any, Any, None]) -> None:
    in_virtual_time(main)


def test_who_never_answers_is_closed_after_so_many_misses() -> None:
    """Asked within an interval, missed a timeout after each question, and closed at the third miss."""

    async def main() -> None:
        world = World()
        stream = world.open()
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(200)
        assert stream.close_reason == "unacknowledged"
        first, second, third, *_ = stream.asked_at
        assert 0 <= first - began <= 31 and 29 <= second - first <= 31
        assert third + 60 <= stream.ended_at <= third + 60 + 5, (
            "not sooner than its timeout, and soon after it"
        )
        assert stream.ended_at - began <= 150 + 5
        assert world.missed == 3

    virtual(main())


def test_who_answers_lives() -> None:
    """Also if each answer takes nearly as long as it may, and questions overlap."""

    async def main() -> None:
        world = World()
        streams = [world.open(answers=seconds) for seconds in (0.0, 29.0, 59.0)]
        await asyncio.sleep(3600)
        assert {stream.close_reason for stream in streams} == {None}
        assert world.missed == 0
        assert all(118 <= len(stream.asked_at) <= 121 for stream in streams), "one question an interval"

    virtual(main())


def test_answers_that_are_too_late_are_misses_and_still_show_life() -> None:
    """Each is missed; but the next answer says that somebody was there, so there are never three in a row."""

    async def main() -> None:
        world = World()
        stream = world.open(answers=75.0)
        await asyncio.sleep(3600)
        assert stream.close_reason is None
        assert world.missed > 50

    virtual(main())


def test_an_answer_begins_anew() -> None:
    """Misses count in a row: one answer between them, and there are as many to go."""

    async def main() -> None:
        world = World()
        stream = world.open()
        for _ in range(10):
            stream.answers = None
            await asyncio.sleep(100)
            stream.answers = 1.0
            await asyncio.sleep(40)
        assert stream.close_reason is None
        assert 10 <= world.missed <= 20

    virtual(main())


@pytest.mark.parametrize("timeout", [5.0, 30.0, 45.0, 300.0])
@pytest.mark.parametrize("limit", [1, 5])
def test_timeouts_of_any_length(timeout: float, limit: int) -> None:
    """Shorter than the interval, or many of it: the last miss comes a timeout after the last question that counts."""

    async def main() -> None:
        world = World({"ack": {**ACK, "timeout": f"{timeout}s", "retry_limit": limit}})
        stream = world.open()
        await asyncio.sleep(30 * limit + timeout + 60)
        assert stream.close_reason == "unacknowledged"
        assert timeout <= stream.ended_at - stream.asked_at[limit - 1] <= timeout + 10
        assert world.missed == limit

    virtual(main())


def test_a_herd_is_not_asked_at_once() -> None:
    """15,000 clients that came together must not send 15,000 requests together for ever after."""

    async def main() -> None:
        world = World()
        streams = [world.open(answers=0.0) for _ in range(1500)]
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(120)
        world.acks.stop()
        seconds = Counter(int(at - began) for stream in streams for at in stream.asked_at)
        assert max(seconds.values()) < 100, seconds
        assert min(seconds[second] for second in range(5, 110)) > 20, "visits begin within four seconds"

    virtual(main())


def test_nobody_is_closed_while_the_log_is_away() -> None:
    """Answers that land on other nodes cannot come; nor are they blamed just after it is back."""

    async def main() -> None:
        world = World()
        stream = world.open(answers=0.0)
        await asyncio.sleep(100)
        stream.answers, world.is_reached = None, False
        await asyncio.sleep(3600)
        assert len(stream.asked_at) > 100, "asked as ever: it may be answered here"
        assert (stream.close_reason, world.missed) == (None, 0)
        world.is_reached = True
        await asyncio.sleep(GRACE_SECONDS + 55)
        assert (stream.close_reason, world.missed) == (None, 0)
        await asyncio.sleep(200)
        assert stream.close_reason == "unacknowledged"

    virtual(main())


def test_an_outage_between_two_questions_is_seen() -> None:
    """Half a second in which the log was away may have cost an answer."""

    async def main() -> None:
        world = World({"ack": {**ACK, "retry_limit": 1}})
        stream = world.open()
        while not stream.asked_at:
            await asyncio.sleep(0.1)
        world.is_reached = False
        await asyncio.sleep(0.5)
        world.is_reached = True
        stream.answers = 0.0
        await asyncio.sleep(600)
        assert (stream.close_reason, world.missed) == (None, 0)

    virtual(main())


def test_a_process_that_stood_still_blames_nobody() -> None:
    """SIGSTOP, a frozen machine: all answers wait in sockets, and the sweep may come first."""

    async def main() -> None:
        world = World()
        stream = world.open(answers=1.0)
        await asyncio.sleep(100)
        stream.answers = None
        await asyncio.sleep(31)
        stand_still(600)
        stream.answers = 1.0
        await asyncio.sleep(300)
        assert stream.close_reason is None
        assert world.missed == 0

    virtual(main())


def test_a_stream_that_takes_nothing_is_the_write_timeouts() -> None:
    """A question that waits behind a megabyte cannot be answered in time."""

    async def main() -> None:
        world = World()
        stream = world.open()
        await asyncio.sleep(40)
        stream.is_writable = False
        asked = len(stream.asked_at)
        await asyncio.sleep(600)
        assert (stream.close_reason, len(stream.asked_at), world.missed) == (None, asked, 0)
        stream.is_writable = True
        await asyncio.sleep(1 + 60 + 95)
        assert stream.close_reason == "unacknowledged"

    virtual(main())


@pytest.mark.parametrize(
    ("channels", "interval"),
    [
        (("orders",), 30.0),
        (("stock",), 60.0),
        (("orders", "stock"), 30.0),
        (("stock", "news"), 60.0),
        (("news",), None),
        (("orders", "fast"), 10.0),
        (("fast", "patient"), 10.0),
    ],
)
def test_the_strictest_of_a_streams_channels(channels: tuple[str, ...], interval: float | None) -> None:
    """The one that closes first; a channel that asks nobody does not speak for the others."""
    route = {"from": [{"source": "hooks", "topic": "t"}], "access": "public"}
    own = {
        "stock": {"ack": {"interval": "60s", "timeout": "60s", "retry_limit": 3}},
        "news": {"ack": "none"},
        "fast": {**route, "ack": {"interval": "10s", "timeout": "60s", "retry_limit": 3}},
        "patient": {**route, "ack": {"interval": "5s", "timeout": "10m", "retry_limit": 20}},
    }
    world = World({"channels": own})
    rule = world.acks.rule_for(world.subscription(*channels))
    assert (None if rule is None else rule.interval_seconds) == interval


def test_a_reload() -> None:
    """Streams that are asked follow, and who must no more is left alone; none is newly asked."""

    async def main() -> None:
        world = World()
        streams = {name: world.open(name) for name in ("orders", "stock", "news")}
        await asyncio.sleep(70)
        news = {"ack": {"interval": "5s", "timeout": "10s", "retry_limit": 1}}
        made = config({"channels": {"stock": {"ack": "none"}, "news": news}})
        world.acks.apply(made)
        await asyncio.sleep(25)
        assert streams["news"].close_reason == "unacknowledged"
        assert streams["orders"].close_reason is None
        await asyncio.sleep(200)
        assert streams["orders"].close_reason == "unacknowledged"
        assert streams["stock"].close_reason is None and len(streams["stock"].asked_at) <= 3
        off = config({"ack": "none"})
        world.acks.apply(off)
        assert len(world.acks) == 0 and not world.acks.is_enabled
        await asyncio.sleep(1)

    virtual(main())


def test_while_none_is_asked_nothing_ticks() -> None:
    """Off by default must cost nothing, and the last one that leaves stops the sweep."""

    async def main() -> None:
        world = World()
        assert world.acks._timer is None
        stream = world.open()
        asked = world.acks._states[stream.id]
        world.acks.remove(asked)
        world.acks.remove(asked)
        await asyncio.sleep(1)
        assert world.acks._timer is None
        world.open(answers=0.0)
        await asyncio.sleep(100)
        assert world.acks._timer is not None

    virtual(main())


RULE = AckRule.from_config(AckConfig.model_validate({"interval": "10s", "timeout": "25s", "retry_limit": 3}))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 8.0), st.booleans()), min_size=1, max_size=60), st.floats(0.0, 24.0)
)
def test_nobody_is_blamed_who_answers_in_time(visits: list[tuple[float, bool]], delay: float) -> None:
    """However irregular the visits are: an answer within the timeout is never a miss."""
    late = 1.25
    asked = AckState(FakeStream(None, "", None), RULE)  # type: ignore[arg-type]  # it is not asked by itself
    now = 0.0
    asked.schedule_first(now)
    waiting: list[tuple[float, int]] = []
    for step, _ in visits:
        now += step
        while waiting and waiting[0][0] <= now:
            asked.acknowledge(waiting.pop(0)[1])
        assert asked.overdue(now, late) == 0
        if asked.is_due(now):
            waiting.append((now + delay, asked.next_request(now, late)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1.25), min_size=150, max_size=150))
def test_whoever_is_silent_is_found_in_time(steps: list[float]) -> None:
    """However irregular the visits are: misses are as many as questions whose time is over, each once."""
    late = 1.25
    asked = AckState(FakeStream(None, "", None), RULE)  # type: ignore[arg-type]
    now, missed = 0.0, 0
    times: list[float] = []
    asked.schedule_first(now)
    for step in steps:
        now += step
        missed += asked.overdue(now, late)
        assert missed == asked.missed_in_a_row
        over = sum(time + RULE.timeout_seconds <= now for time in times)
        surely = sum(time + RULE.timeout_seconds + (2 + len(times)) * late <= now for time in times)
        assert surely <= missed <= over
        if asked.is_due(now):
            times.append(now)
            asked.next_request(now, late)
