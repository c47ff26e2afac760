"""Shared reads: the broker is asked per channel and moment, not per client."""

import asyncio
import random
from collections.abc import Mapping, Sequence

import pytest

from gateway.broker.base import HistoryPage
from gateway.broker.memory import MemoryBroker
from gateway.config.channel_catalog import ChannelCatalog, DeclaredChannel
from gateway.config.model.config import ChannelConfig
from gateway.core.clock import unix_ms
from gateway.core.errors import Unavailable
from gateway.core.event import Draft, EventId, Retention
from gateway.hub import history_cache as reads_module
from gateway.hub.history_cache import HistoryCache
from tests.support.deadline import safety_net

pytestmark = pytest.mark.idle_clock

CATALOG = ChannelCatalog(
    {
        name: ChannelConfig.model_validate({"from": [{"source": "s", "topic": "t"}], "access": "public"})
        for name in ("a", "b", "c")
    }
)


class Counting(MemoryBroker):
    """The memory broker, with every question counted and a wait for each, as if over a network."""

    def __init__(self) -> None:
        super().__init__(history_bytes=10**8, clock=unix_ms)
        self.asked: list[Sequence[str]] = []
        self.read_bytes: list[int] = []
        self.is_away = False

    async def read(
        self, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> Mapping[str, HistoryPage]:
        self.asked.append(list(after))
        await asyncio.sleep(0.001)
        if self.is_away:
            raise Unavailable("away")
        pages = await super().read(after, until, limit)
        self.read_bytes.append(sum(len(each.payload) for page in pages.values() for each in page.events))
        return pages


@pytest.fixture
async def broker() -> Counting:
    broker = Counting()
    for number in range(1500):
        await broker.append([Draft(("a", "b", "c")[number % 3], b"%d" % number, 1, Retention(10_000))])
    return broker


async def everything(reads: HistoryCache, names: str, after: EventId, until: EventId) -> list[EventId]:
    """Read as a stream does, page by page."""
    topics: dict[str, DeclaredChannel] = {name: CATALOG.declared[name] for name in names}
    got: list[EventId] = []
    while after < until:
        while (view := reads.try_cached(topics, after, until, 100)) is None:
            await reads.load(topics, after, until)
        got += [entry.id for entry in view.events]
        after = view.until
    return got


async def test_a_herd_costs_reads_by_channel_and_not_by_client(broker: Counting) -> None:
    """2,000 clients with ids of their own, on seven sets of channels: each gets exactly its events."""
    reads = HistoryCache(broker)
    everywhere = {
        name: await everything(HistoryCache(broker), name, EventId(0, 0), broker.head) for name in "abc"
    }
    ids = sorted(id for found in everywhere.values() for id in found)
    broker.asked.clear()
    randomly = random.Random(7)

    async def client(number: int) -> None:
        await asyncio.sleep(randomly.random() / 10)
        names, after = ("a", "b", "c", "ab", "bc", "ac", "abc")[number % 7], randomly.choice(ids)
        wanted = sorted(id for name in names for id in everywhere[name] if id > after)
        assert await everything(reads, names, after, broker.head) == wanted

    await asyncio.gather(*(client(number) for number in range(2000)))
    assert len(broker.asked) < 30
    await reads.close()


async def test_one_that_leaves_takes_nothing_from_the_others(broker: Counting) -> None:
    """A client that disconnects while its read is under way must not cancel it for all."""
    reads = HistoryCache(broker)
    one, two = (asyncio.create_task(everything(reads, "a", EventId(0, 0), broker.head)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    assert len(await two) == 500
    await reads.close()


async def test_trouble_reaches_all_who_wait_and_nobody_later(broker: Counting) -> None:
    """A failed read is nobody's answer but of those who waited for it."""
    reads = HistoryCache(broker)
    broker.is_away = True
    failed = await asyncio.gather(
        *(everything(reads, "a", EventId(0, 0), broker.head) for _ in range(5)), return_exceptions=True
    )
    assert all(isinstance(error, Unavailable) for error in failed)
    broker.is_away = False
    assert len(await everything(reads, "a", EventId(0, 0), broker.head)) == 500
    await reads.close()


async def test_what_is_held_is_bounded_and_short_lived(
    broker: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A herd's pages must not stay in memory after it."""
    monkeypatch.setattr(reads_module, "MAX_CACHED_BYTES", 500)
    monkeypatch.setattr(reads_module, "CACHE_SECONDS", 0.1)
    reads = HistoryCache(broker)
    for name in "abc":
        assert len(await everything(reads, name, EventId(0, 0), broker.head)) == 500
        assert len(reads._ranges) <= 2
    async with safety_net():
        while reads._ranges:
            await asyncio.sleep(0.02)
    assert reads._cached_bytes == 0
    await reads.close()


async def test_a_read_of_large_events_is_small(broker: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """What many resumes read at once is bounded in bytes, and not only in events."""
    monkeypatch.setattr(reads_module, "TARGET_READ_BYTES", 100_000)
    start = broker.head
    for number in range(600):
        await broker.append([Draft("ab"[number % 2], bytes(10_000), 1, Retention(10_000))])
    reads = HistoryCache(broker)
    assert len(await everything(reads, "a", start, broker.head)) == 300
    broker.read_bytes.clear()
    assert len(await everything(reads, "b", start, broker.head)) == 300
    assert max(broker.read_bytes) <= 100_000
    await reads.close()


async def test_channels_that_wait_for_a_read_are_bounded(
    broker: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More resumes than the log can serve are refused, and those after them are served."""
    monkeypatch.setattr(reads_module, "MAX_PENDING_CHANNELS", 2)
    reads = HistoryCache(broker)
    topics: dict[str, DeclaredChannel] = dict(CATALOG.declared)
    with pytest.raises(Unavailable):
        await reads.load(topics, EventId(0, 0), broker.head)
    assert len(await everything(reads, "a", EventId(0, 0), broker.head)) == 500
    await reads.close()
