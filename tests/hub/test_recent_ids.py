"""Where ``last=N`` begins: exact, shared by all who ask, and fair."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from gateway.broker.base import HistorySpan, SpanIds
from gateway.broker.memory import MemoryBroker
from gateway.core.errors import Unavailable
from gateway.core.event import Draft, EventId, Retention
from gateway.hub import recent_ids
from gateway.hub.recent_ids import RecentIds

pytestmark = pytest.mark.idle_clock


class Counting(MemoryBroker):
    """The memory broker as if over a network, with every read noted."""

    def __init__(self) -> None:
        self.now = 1_790_000_000_000
        super().__init__(history_bytes=10**8, clock=lambda: self.now)
        self.reads: list[Sequence[HistorySpan]] = []
        self.ids = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def read_recent_ids(self, spans: Sequence[HistorySpan]) -> Sequence[SpanIds]:
        self.reads.append(spans)
        await asyncio.sleep(0.001)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        answers = await super().read_recent_ids(spans)
        self.ids += sum(len(answer.ids) for answer in answers)
        return answers


async def fill(broker: MemoryBroker, channels: Sequence[str], events: int, keep: Retention) -> None:
    for number in range(events):
        await broker.append([Draft(channels[number % len(channels)], b"1", 1, keep)])


async def kept_ids(broker: MemoryBroker, channels: Sequence[str]) -> list[EventId]:
    pages = await broker.read(dict.fromkeys(channels, EventId(0, 0)), EventId(10**14, 0), 10**6)
    return sorted(event.id for page in pages.values() for event in page.events)


@pytest.mark.parametrize("seed", range(8))
async def test_exactly_the_last_events_lie_behind_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """last=N gives N events over all channels, whatever was asked, appended and dropped before."""
    monkeypatch.setattr(recent_ids, "MIN_FIRST_READ_IDS", 4)
    monkeypatch.setattr(recent_ids, "MAX_TAIL_IDS", 700)
    monkeypatch.setattr("gateway.broker.memory.MAX_RECENT_IDS", 30)
    randomly = random.Random(seed)
    broker = Counting()
    found = RecentIds(broker)
    retentions = {
        "few": Retention(7),
        "many": Retention(300),
        "aged": Retention(300, 5_000),
        "rare": Retention(50, 60_000),
        "none": Retention(0),
    }

    async def ask() -> None:
        names = randomly.sample(list(retentions), randomly.randint(1, len(retentions)))
        count = randomly.choice([0, 1, 2, 3, 5, 10, 40, 100, 1000])
        after = await found.find_start({name: retentions[name].max_events for name in names}, count)
        kept = await kept_ids(broker, [name for name in names if name != "none"])
        got = [] if after is None else [id for id in kept if id > after]
        assert got == (kept[-count:] if count else [])

    for _ in range(300):
        if randomly.random() < 0.3:
            broker.now += randomly.choice([0, 1, 500, 3_000])
        name = randomly.choice(["few", "many", "many", "aged", "aged", "none"])
        if randomly.random() < 0.03:
            name = "rare"
        for _ in range(randomly.choice([0, 1, 1, 12])):
            await broker.append([Draft(name, b"1", 1, retentions[name])])
        await ask()
        assert found._id_count == sum(len(tail.ids) for tail in found._tails.values())
    await found.close()


async def test_an_event_from_before_the_request_is_counted() -> None:
    """A page that posts and then subscribes with last=1 sees its own event, also while others ask."""
    broker = Counting()
    found = RecentIds(broker)
    await fill(broker, ["a"], 100, Retention(1000))
    others = [asyncio.create_task(found.find_start({"a": 1000}, number)) for number in range(1, 90)]
    await asyncio.sleep(0)
    (id,) = await broker.append([Draft("a", b"new", 1, Retention(1000))])
    after = await found.find_start({"a": 1000}, 1)
    assert after is not None
    assert [each for each in await kept_ids(broker, ["a"]) if each > after] == [id]
    await asyncio.gather(*others)
    await found.close()


async def test_requests_share_one_read_whatever_their_number() -> None:
    """1,000 pages that load at once, each with another last=N, cost the log a handful of reads."""
    broker = Counting()
    found = RecentIds(broker)
    await fill(broker, ["a", "b"], 2000, Retention(1000))
    await asyncio.gather(*(found.find_start({"a": 1000, "b": 1000}, number) for number in range(1, 1001)))
    assert len(broker.reads) <= 5
    assert broker.ids <= 2100
    broker.ids = 0
    await asyncio.gather(*(found.find_start({"a": 1000, "b": 1000}, number) for number in range(1, 1001)))
    assert broker.ids <= 10, "only what is newer is read"
    await found.close()


async def test_a_deep_request_reads_little_of_each_of_many_channels() -> None:
    """last=1000 on fifty channels needs 1,000 ids and not 50,000."""
    broker = Counting()
    found = RecentIds(broker)
    names = [f"c{number}" for number in range(50)]
    await fill(broker, names, 50_000, Retention(1000))
    broker.ids = 0
    after = await found.find_start(dict.fromkeys(names, 1000), 1000)
    assert after is not None
    assert broker.ids <= 4000
    await found.close()


async def test_a_greedy_address_does_not_delay_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address that asks for very many channels takes its turn like any other."""
    monkeypatch.setattr(recent_ids, "MAX_CHANNELS_PER_READ", 20)
    monkeypatch.setattr(recent_ids, "ADDRESS_SHARE_CHANNELS", 10)
    broker = Counting()
    found = RecentIds(broker)
    await fill(broker, ["mine"], 10, Retention(10))
    greedy = [
        asyncio.create_task(found.find_start({f"c{number}-{each}": 10 for each in range(50)}, 5, "greedy"))
        for number in range(40)
    ]
    await asyncio.sleep(0)
    assert await found.find_start({"mine": 10}, 1, "other") is not None
    assert len(broker.reads) <= 2
    await asyncio.gather(*greedy)
    await found.close()


async def test_what_waits_is_bounded_for_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood from one address is refused, while there is room for others."""
    monkeypatch.setattr(recent_ids, "MAX_PENDING_CHANNELS_PER_ADDRESS", 100)
    monkeypatch.setattr(recent_ids, "MAX_PENDING_CHANNELS", 300)
    broker = Counting()
    found = RecentIds(broker)
    broker.gate.clear()

    def ask(number: int, address: str) -> "asyncio.Task[EventId | None]":
        wanted = {f"{address}{number}-{each}": 10 for each in range(10)}
        return asyncio.create_task(found.find_start(wanted, 5, address))

    flood = [ask(number, "greedy") for number in range(1000)]
    await asyncio.sleep(0.01)
    assert len(found._pending) <= 110
    others = [ask(number, f"other{number}") for number in range(15)]
    await asyncio.sleep(0.01)
    broker.gate.set()
    assert await asyncio.gather(*others) == [None] * 15
    failed = [each for each in await asyncio.gather(*flood, return_exceptions=True) if each is not None]
    assert len(failed) >= 980
    assert all(isinstance(error, Unavailable) for error in failed)
    await found.close()


async def test_requests_of_clients_that_left_are_dropped() -> None:
    """A client that hangs up at once must not go on costing reads."""
    broker = Counting()
    found = RecentIds(broker)
    broker.gate.clear()
    first = asyncio.create_task(found.find_start({"first": 10}, 5))
    await asyncio.sleep(0.01)
    left = [asyncio.create_task(found.find_start({f"c{number}": 10}, 5)) for number in range(1000)]
    stays = asyncio.create_task(found.find_start({"c7": 10}, 5))
    await asyncio.sleep(0.01)
    for each in left:
        each.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    broker.gate.set()
    assert await first is await stays is None
    assert [[span.channel for span in read] for read in broker.reads] == [["first"], ["c7"]]
    assert not found._pending
    await found.close()


async def test_a_log_that_does_not_answer_is_a_reason_to_come_back_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client gets `unavailable` in time, and nothing waits any more."""
    monkeypatch.setattr(recent_ids, "DEADLINE_SECONDS", 0.05)
    broker = Counting()
    found = RecentIds(broker)
    broker.gate.clear()
    with pytest.raises(Unavailable):
        await found.find_start({"a": 10}, 5)
    assert not found._pending
    await found.close()


@pytest.mark.parametrize("trouble", [Unavailable("away"), RuntimeError("a fault")])
async def test_trouble_reaches_those_who_wait_and_nobody_later(trouble: Exception) -> None:
    """A read that fails, for whatever reason, is over with those who waited for it."""
    broker = Counting()
    found = RecentIds(broker)
    broker.error = trouble
    failed = await asyncio.gather(
        *(found.find_start({"a": 10, "b": 10}, number) for number in range(1, 6)), return_exceptions=True
    )
    assert all(isinstance(error, Unavailable) for error in failed)
    broker.error = None
    assert await found.find_start({"a": 10}, 5) is None
    await found.close()


async def test_tails_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many channels nor long histories fill the memory."""
    monkeypatch.setattr(recent_ids, "MAX_TAILS", 50)
    monkeypatch.setattr(recent_ids, "MAX_TAIL_IDS", 1000)
    broker = Counting()
    found = RecentIds(broker)
    await fill(broker, ["long"], 3000, Retention(10_000))
    await fill(broker, ["short"], 10, Retention(10))
    await found.find_start({"long": 10_000}, 3000)
    await found.find_start({"short": 10}, 10)
    assert found._id_count <= 1000
    for number in range(20):
        await found.find_start({f"c{number}-{each}": 10 for each in range(50)}, 5)
    assert len(found._tails) <= 50
    await found.close()


async def test_a_tail_does_not_grow_with_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy channel whose clients ask for one event is not remembered whole."""
    broker = Counting()
    found = RecentIds(broker)
    for _ in range(50):
        await fill(broker, ["a"], 10, Retention(20))
        await found.find_start({"a": 20}, 1)
    assert found._id_count <= 40
    await found.close()
