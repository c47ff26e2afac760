"""The suite that every broker must pass. Subclass `Contract` and give it a ``broker`` fixture.

A broker comes with a ``clock`` that the tests set, in unix milliseconds, wherever time matters.
"""

import asyncio
from collections.abc import Sequence

from gateway.broker.base import Broker
from gateway.event import Cursor, Draft, Event, EventId, Retention

KEEP = Retention(1000)
ZERO = EventId(0, 0)
FAR = EventId(10**14, 0)


class Clock:
    """A wall clock that a test moves."""

    def __init__(self, now: int = 1_763_870_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def draft(
    channel: str, payload: bytes = b"1", *, retention: Retention = KEEP, key: str | None = None
) -> Draft:
    return Draft(channel=channel, payload=payload, timestamp=1, retention=retention, key=key)


class Follower:
    """Collects what the broker delivers."""

    def __init__(self, broker: Broker) -> None:
        self.events: list[Event] = []
        self.batches = 0
        broker.follow(self.take)

    def take(self, events: Sequence[Event]) -> None:
        self.batches += 1
        self.events.extend(events)

    async def until(self, count: int) -> list[Event]:
        async with asyncio.timeout(10):
            while len(self.events) < count:
                await asyncio.sleep(0.005)
        return self.events


class Contract:
    """Each test is one sentence of the contract in `gateway.broker.base`."""

    async def test_ids_are_one_order_over_all_channels(self, broker: Broker) -> None:
        """Guarantee 1: ids grow across channels and batches, and followers see that order."""
        follower = Follower(broker)
        ids = []
        for number in range(20):
            ids += await broker.append([draft(f"c{number % 3}"), draft("c0")])
        assert ids == sorted(set(ids))
        events = await follower.until(40)
        assert [event.id for event in events] == ids
        assert broker.head == ids[-1] == await broker.latest()

    async def test_an_event_is_what_the_draft_said(self, broker: Broker) -> None:
        """Nothing of a draft is lost or re-encoded on the way."""
        follower = Follower(broker)
        payload = b'{"big":12345678901234567890123, "nul":"\\u0000", "\xc3\xbc":1.0}'
        (id,) = await broker.append([Draft("c", payload, 42, KEEP, type="t", key="k")])
        expected = Event(id, "c", payload, 42, type="t", kept=True)
        assert await follower.until(1) == [expected]
        assert list((await broker.read(["c"], ZERO, FAR, 10)).events) == [expected]

    async def test_ids_never_go_back_with_the_clock(self, broker: Broker, clock: Clock) -> None:
        """An hour back, and the order goes on; forward again, and ids follow the clock."""
        (first,) = await broker.append([draft("c")])
        clock.now -= 3_600_000
        later = await broker.append([draft("c"), draft("c")])
        assert first < later[0] < later[1]
        clock.now += 7_200_000
        (last,) = await broker.append([draft("c")])
        assert last > later[1]
        assert last.ms == clock.now

    async def test_a_key_is_appended_once_per_channel(self, broker: Broker) -> None:
        """A retried post yields the first one's ids and no event, also within one batch."""
        follower = Follower(broker)
        first = await broker.append([draft("c", key="k"), draft("d", key="k"), draft("c", b"2")])
        again = await broker.append(
            [draft("c", b"x", key="k"), draft("d", key="k"), draft("c", b"3", key="n")]
        )
        assert again[:2] == first[:2]
        assert (await broker.append([draft("e", key="z"), draft("e", key="z")]))[1] == broker.head
        events = await follower.until(5)
        assert [event.channel for event in events] == ["c", "d", "c", "c", "e"]

    async def test_cursors_are_stored_with_the_batch(self, broker: Broker) -> None:
        """A source that restarts reads on from here; an empty batch may carry one too."""
        assert await broker.cursor("s") is None
        await broker.append([draft("c")], Cursor("s", "17"))
        assert await broker.cursor("s") == "17"
        await broker.append([], Cursor("s", "18"))
        await broker.append([], Cursor("t", "1"))
        assert (await broker.cursor("s"), await broker.cursor("t")) == ("18", "1")

    async def test_read_merges_channels_in_order_and_pages(self, broker: Broker) -> None:
        """Pages join without a seam, over several channels, up to and with ``until``."""
        ids = []
        for number in range(30):
            ids += await broker.append([draft(("a", "b", "other")[number % 3], str(number).encode())])
        wanted = [id for number, id in enumerate(ids) if number % 3 != 2]
        got: list[EventId] = []
        after, more = ZERO, True
        while more:
            found = await broker.read(["a", "b"], after, wanted[-2], 4)
            assert len(found.events) <= 4
            got += [event.id for event in found.events]
            after, more = got[-1], found.more
        assert got == wanted[:-1]
        assert not (await broker.read(["a", "nobody"], ids[-1], FAR, 5)).events

    async def test_history_by_count_tells_what_it_lost(self, broker: Broker) -> None:
        """A gap exactly where something after the id is gone, with the oldest that is held."""
        ids = [(await broker.append([draft("c", retention=Retention(3))]))[0] for _ in range(6)]
        for position, id in enumerate(ids):
            found = await broker.read(["c"], id, FAR, 10)
            assert [event.id for event in found.events] == ids[max(position + 1, 3) :]
            assert dict(found.gaps) == ({"c": ids[3]} if position < 2 else {})

    async def test_history_by_age_tells_what_it_lost(self, broker: Broker, clock: Clock) -> None:
        """Old events are gone without an append to push them out, and the gap says so."""
        keep = Retention(1000, age_ms=10_000)
        (old,) = await broker.append([draft("c", retention=keep)])
        clock.now += 6_000
        (young,) = await broker.append([draft("c", retention=keep)])
        clock.now += 6_000
        found = await broker.read(["c"], EventId(old.ms - 1, 0), FAR, 10)
        assert [event.id for event in found.events] == [young]
        assert "c" in found.gaps
        assert not (await broker.read(["c"], old, FAR, 10)).gaps

    async def test_a_channel_without_history_is_live_only(self, broker: Broker) -> None:
        """Followers get it, not marked as kept; readers are told that something passed."""
        follower = Follower(broker)
        (before,) = await broker.append([draft("other")])
        (id,) = await broker.append([draft("c", retention=Retention(0))])
        event = (await follower.until(2))[1]
        assert (event.id, event.kept) == (id, False)
        found = await broker.read(["c"], before, FAR, 10)
        assert not found.events
        assert dict(found.gaps) == {"c": None}
        assert not (await broker.read(["c"], id, FAR, 10)).gaps

    async def test_newest_counts_back_over_all_channels(self, broker: Broker) -> None:
        """last=N means N events of the stream, not of each channel."""
        ids = [(await broker.append([draft(("a", "b")[number % 2])]))[0] for number in range(6)]
        for count in range(1, 9):
            after = await broker.newest(["a", "b"], count)
            found = await broker.read(["a", "b"], after, FAR, 100)
            assert [event.id for event in found.events] == ids[-count:]
        assert await broker.newest(["a", "b"], 0) >= ids[-1]
        assert await broker.newest(["nobody"], 3) >= ids[-1]

    async def test_a_future_id_finds_nothing_and_is_beyond_latest(self, broker: Broker) -> None:
        """How a resume tells a forged id from one of another node."""
        await broker.append([draft("c")])
        assert not (await broker.read(["c"], FAR, FAR, 10)).events
        assert await broker.latest() < FAR

    async def test_concurrent_appends_keep_batches_whole(self, broker: Broker) -> None:
        """Batches may come in any order, but none is interleaved or lost."""
        follower = Follower(broker)

        async def one(number: int) -> list[EventId]:
            return await broker.append([draft("c", f"{number}/{part}".encode()) for part in range(3)])

        answers = await asyncio.gather(*(one(number) for number in range(50)))
        events = await follower.until(150)
        assert [event.id for event in events] == sorted(id for ids in answers for id in ids)
        by_id = {event.id: event.payload.decode() for event in events}
        for number, ids in enumerate(answers):
            assert [by_id[id] for id in ids] == [f"{number}/{part}" for part in range(3)]

    async def test_closing_twice_is_harmless(self, broker: Broker) -> None:
        """Shutdown paths cross."""
        await broker.close()
        await broker.close()
