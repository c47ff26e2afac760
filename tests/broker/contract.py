"""The suite that every broker must pass. Subclass `Contract` and define a ``broker`` fixture.

A broker comes with a ``clock`` that the tests set, in unix milliseconds, wherever time matters.
"""

import asyncio
from collections.abc import Sequence

import pytest

from gateway.broker.base import MAX_RECENT_IDS, Broker, HistorySpan
from gateway.core.errors import IdempotencyKeyReused, StaleFencingToken, Unavailable
from gateway.core.event import DELETED_OFFSET, Draft, Event, EventId, Retention, SourceOffset, pack_id
from tests.support.deadline import safety_net

KEEP = Retention(1000)
ZERO = EventId(0, 0)
FAR = EventId(10**14, 0)


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, now: int = 1_763_870_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def draft(
    channel: str,
    payload: bytes = b"1",
    *,
    retention: Retention = KEEP,
    key: str | None = None,
    fingerprint: str | None = None,
) -> Draft:
    return Draft(channel, payload, 1, retention, deduplication_key=key, request_fingerprint=fingerprint)


class Follower:
    """Collects what the broker delivers."""

    def __init__(self, broker: Broker) -> None:
        self.events: list[Event] = []
        self.batches = 0
        self.lost: list[EventId] = []
        broker.follow(self.take, self.lost.append)

    def take(self, events: Sequence[Event]) -> None:
        self.batches += 1
        self.events.extend(events)

    async def until(self, count: int) -> list[Event]:
        async with safety_net():
            while len(self.events) < count:
                await asyncio.sleep(0.005)
        return self.events


async def read(
    broker: Broker, channel: str, after: EventId = ZERO, limit: int = 10
) -> tuple[list[EventId], EventId | None]:
    """Return the ids of a channel's first page, and its floor if that is a gap."""
    page = (await broker.read({channel: after}, FAR, limit))[channel]
    return [event.id for event in page.events], page.floor if page.floor > after else None


class Contract:
    """Each test is one sentence of the contract in `gateway.broker.base`."""

    async def test_ids_are_one_order_over_all_channels(self, broker: Broker) -> None:
        """Guarantee 1: ids grow across channels and batches, and followers see that order."""
        follower = Follower(broker)
        ids: list[EventId] = []
        for number in range(20):
            ids += await broker.append([draft(f"c{number % 3}"), draft("c0")])
        assert ids == sorted(set(ids))
        events = await follower.until(40)
        assert [event.id for event in events] == ids
        assert broker.head == ids[-1] == await broker.read_log_head()

    async def test_an_event_is_what_the_draft_said(self, broker: Broker) -> None:
        """A field of an event would be lost or re-encoded on its way to the client."""
        follower = Follower(broker)
        payload = b'{"big":12345678901234567890123, "nul":"\\u0000", "\xc3\xbc":1.0}'
        (id,) = await broker.append([Draft("c", payload, 42, KEEP, type="t", deduplication_key="k")])
        expected = Event(id, "c", payload, 42, type="t", is_retained=True)
        assert await follower.until(1) == [expected]
        assert list((await broker.read({"c": ZERO}, FAR, 10))["c"].events) == [expected]

    async def test_ids_never_go_back_with_the_clock(self, broker: Broker, clock: Clock) -> None:
        """A clock that is set back by an hour must not break the order of ids."""
        (first,) = await broker.append([draft("c")])
        clock.now -= 3_600_000
        later = await broker.append([draft("c"), draft("c")])
        assert first < later[0] < later[1]
        clock.now += 7_200_000
        (last,) = await broker.append([draft("c")])
        assert last > later[1]
        assert last.ms == clock.now

    async def test_a_key_is_appended_once_per_channel(self, broker: Broker) -> None:
        """A retried post would be delivered twice."""
        follower = Follower(broker)
        first = await broker.append([draft("c", key="k"), draft("d", key="k"), draft("c", b"2")])
        again = await broker.append(
            [draft("c", b"x", key="k"), draft("d", key="k"), draft("c", b"3", key="n")]
        )
        assert again[:2] == first[:2]
        assert (first.duplicate_count, again.duplicate_count) == (0, 2)
        one, two = await broker.append([draft("e", key="z"), draft("e", key="z")])
        assert one == two
        events = await follower.until(5)
        assert [event.channel for event in events] == ["c", "d", "c", "c", "e"]

    async def test_a_key_with_another_fingerprint_is_a_conflict(self, broker: Broker) -> None:
        """A sender that reuses an Idempotency-Key by mistake would lose an event without an error."""
        follower = Follower(broker)
        first = await broker.append([draft("c", key="k", fingerprint="one"), draft("d", key="plain")])
        assert await broker.append([draft("c", key="k", fingerprint="one")]) == first[:1]
        with pytest.raises(IdempotencyKeyReused):
            await broker.append([draft("c"), draft("c", key="k", fingerprint="two")])
        assert await broker.append([draft("c", key="k")]) == first[:1], (
            "the channel's own key compares nothing"
        )
        assert await broker.append([draft("d", key="plain", fingerprint="x")]) == first[1:]
        (last,) = await broker.append([draft("c", key="another", fingerprint="two")])
        assert [event.id for event in await follower.until(3)] == [*first, last], (
            "nothing of the batch is there"
        )

    async def test_offsets_are_stored_with_the_batch(self, broker: Broker) -> None:
        """A source that restarts would repeat records or skip some."""
        assert await broker.read_offset("s") is None
        await broker.append([draft("c")], SourceOffset("s", "17"))
        assert await broker.read_offset("s") == "17"
        await broker.append([], SourceOffset("s", "18"))
        await broker.append([], SourceOffset("t", "1"))
        assert (await broker.read_offset("s"), await broker.read_offset("t")) == ("18", "1")

    async def test_partitions_of_a_source_are_listed_and_deleted(self, broker: Broker) -> None:
        """Offsets of deleted streams and partitions would stay in the log for ever."""
        for name in ("s", "s/a", "s/b/c", "s0/a", "s*/a", "S/a", "t/a"):
            await broker.append([], SourceOffset(name, "1"))
        assert sorted(await broker.list_partitions("s")) == ["a", "b/c"]
        await broker.append([draft("c")], SourceOffset("s/a", DELETED_OFFSET))
        await broker.append([], SourceOffset("s/never", DELETED_OFFSET))
        assert (await broker.list_partitions("s"), await broker.read_offset("s/a")) == (["b/c"], None)
        assert (await broker.list_partitions("t"), await broker.list_partitions("u")) == (["a"], [])

    async def test_read_pages_through_each_channel(self, broker: Broker) -> None:
        """A client that resumes would miss or repeat events between two pages."""
        ids: dict[str, list[EventId]] = {"a": [], "b": [], "other": []}
        for number in range(30):
            channel = ("a", "b", "other")[number % 3]
            ids[channel] += await broker.append([draft(channel, str(number).encode())])
        until = ids["b"][-2]
        got: dict[str, list[EventId]] = {"a": [], "b": []}
        after = {"a": EventId(ids["a"][0].ms - 1, 0), "b": ids["b"][0]}
        while after:
            for channel, page in (await broker.read(after, until, 4)).items():
                assert len(page.events) <= 4
                got[channel] += [event.id for event in page.events]
                after[channel] = page.events[-1].id if page.events else until
                if not page.has_more:
                    del after[channel]
        assert got["a"] == [id for id in ids["a"] if id <= until]
        assert got["b"] == ids["b"][1:-1]
        assert (await read(broker, "nobody", ids["b"][-1])) == ([], None)

    async def test_history_by_count_reports_gaps(self, broker: Broker) -> None:
        """A client would miss expired events without a gap, or receive a gap for nothing."""
        ids = [(await broker.append([draft("c", retention=Retention(3))]))[0] for _ in range(6)]
        for position, id in enumerate(ids):
            expected = ids[max(position + 1, 3) :], ids[2] if position < 2 else None
            assert await read(broker, "c", id) == expected

    async def test_history_by_age_reports_gaps(self, broker: Broker, clock: Clock) -> None:
        """Events would outlive their maximum age until the next append."""
        keep = Retention(1000, max_age_ms=10_000)
        (old,) = await broker.append([draft("c", retention=keep)])
        clock.now += 6_000
        (young,) = await broker.append([draft("c", retention=keep)])
        clock.now += 6_000
        assert await read(broker, "c", EventId(old.ms - 1, 0)) == ([young], old)
        assert await read(broker, "c", old) == ([young], None)
        clock.now += 6_000
        assert await read(broker, "c", old) == ([], young)
        assert await read(broker, "c", young) == ([], None)

    async def test_an_id_from_before_the_log_is_a_gap(self, broker: Broker, clock: Clock) -> None:
        """A log that was lost would look like one without new events."""
        await broker.append([draft("c")])
        for channel in ("c", "nobody"):
            assert (await read(broker, channel, EventId(clock.now - 10_000_000, 0)))[1] is not None

    async def test_a_channel_without_history_is_live_only(self, broker: Broker) -> None:
        """Events of a live-only channel would be stored, or not delivered."""
        follower = Follower(broker)
        (before,) = await broker.append([draft("other")])
        (id,) = await broker.append([draft("c", retention=Retention(0))])
        event = (await follower.until(2))[1]
        assert (event.id, event.is_retained) == (id, False)
        assert (await read(broker, "c", before))[0] == []

    async def test_recent_ids_are_those_of_the_newest_events(self, broker: Broker) -> None:
        """last=N would begin at the wrong event."""
        ids = [(await broker.append([draft(("a", "b")[number % 2])]))[0] for number in range(10)]
        of_a = [pack_id(id) for id in ids[::2]]
        spans = [
            HistorySpan("a", EventId(0, 0), None, 3),
            HistorySpan("a", EventId(0, 0), ids[4], 9),
            HistorySpan("a", ids[4], None, 9),
            HistorySpan("b", EventId(0, 0), None, 5),
            HistorySpan("nobody", EventId(0, 0), None, 5),
        ]
        answers = await broker.read_recent_ids(spans)
        assert [list(each.ids) for each in answers] == [
            of_a[:1:-1],
            of_a[1::-1],
            of_a[:1:-1],
            [pack_id(id) for id in ids[::-2]],
            [],
        ]
        assert answers[0].is_cut
        assert [each.is_cut for each in answers[1:3]] == [False, False]
        assert not answers[4].is_cut

    async def test_recent_ids_come_with_the_floor(self, broker: Broker, clock: Clock) -> None:
        """last=3 would count events that the channel no longer retains."""
        (old,) = await broker.append([draft("c", retention=Retention(100, 10_000))])
        clock.now += 9_000
        (young,) = await broker.append([draft("c", retention=Retention(100, 10_000))])
        clock.now += 5_000
        (answer,) = await broker.read_recent_ids([HistorySpan("c", EventId(0, 0), None, 10)])
        assert [id for id in answer.ids if id > answer.floor] == [pack_id(young)]
        assert answer.floor >= pack_id(old)

    async def test_recent_ids_are_bounded(self, broker: Broker) -> None:
        """One request for many channels would block the log for everybody."""
        for name in "abc":
            await broker.append([draft(name) for _ in range(MAX_RECENT_IDS // 2)])
        spans = [HistorySpan(name, EventId(0, 0), None, MAX_RECENT_IDS) for name in "abc"]
        answers = await broker.read_recent_ids(spans)
        assert [len(each.ids) for each in answers] == [MAX_RECENT_IDS // 2, MAX_RECENT_IDS // 2, 0]
        assert not answers[0].is_cut
        assert answers[2].is_cut

    async def test_a_future_id_finds_nothing_and_is_beyond_latest(self, broker: Broker) -> None:
        """A resume could not tell a forged id from one of another node."""
        await broker.append([draft("c")])
        assert await read(broker, "c", FAR) == ([], None)
        assert await broker.read_log_head() < FAR

    async def test_concurrent_appends_keep_batches_whole(self, broker: Broker) -> None:
        """Concurrent batches would be interleaved or lost."""
        follower = Follower(broker)

        async def one(number: int) -> list[EventId]:
            return await broker.append([draft("c", f"{number}/{part}".encode()) for part in range(3)])

        answers = await asyncio.gather(*(one(number) for number in range(50)))
        events = await follower.until(150)
        assert [event.id for event in events] == sorted(id for ids in answers for id in ids)
        by_id = {event.id: event.payload.decode() for event in events}
        for number, ids in enumerate(answers):
            assert [by_id[id] for id in ids] == [f"{number}/{part}" for part in range(3)]

    async def test_a_follower_that_raises_misses_no_event_without_a_gap(self, broker: Broker) -> None:
        """An exception in the node would lose an event without a gap, or fail its append."""
        delivered: list[EventId] = []
        lost: list[EventId] = []
        failures = iter([ValueError("a fault of the node"), None])
        reports = iter([RuntimeError("and another one"), None])

        def take(events: Sequence[Event]) -> None:
            if (error := next(failures, None)) is not None:
                raise error
            delivered.extend(event.id for event in events)

        def lose(until: EventId) -> None:
            if (error := next(reports, None)) is not None:
                raise error
            lost.append(until)

        broker.follow(take, lose)
        first = await broker.append([draft("c"), draft("c")])
        async with safety_net():
            while not lost:
                await asyncio.sleep(0.005)
        second = await broker.append([draft("c")])
        async with safety_net():
            while second[0] not in delivered and second[0] > max(lost):
                await asyncio.sleep(0.005)
        assert all((id in delivered) != (id <= max(lost)) for id in first + second)
        assert len(delivered) == len(set(delivered))
        assert broker.head >= second[0]

    async def test_a_lease_is_renewed_and_released(self, broker: Broker) -> None:
        """A node would lose its lease while it renews it."""
        fence = await broker.acquire_lease("s", 30)
        assert fence is not None
        assert await broker.acquire_lease("s", 30) == fence
        assert await broker.append([draft("c")], SourceOffset("s", "1"), fence)
        await broker.release_lease(fence)
        await broker.release_lease(fence)
        again = await broker.acquire_lease("s", 30)
        assert again is not None
        assert again.number >= fence.number

    async def test_every_append_ends_at_the_stop(self, broker: Broker) -> None:
        """A sender would wait for ever for an append at shutdown."""
        under_way = [asyncio.create_task(broker.append([draft("c")])) for _ in range(300)]
        await asyncio.sleep(0)
        await broker.close()
        async with safety_net():
            answers = await asyncio.gather(*under_way, return_exceptions=True)
        assert all(isinstance(answer, (list, Unavailable)) for answer in answers)

    async def test_closing_twice_is_harmless(self, broker: Broker) -> None:
        """Two shutdown paths that cross would raise an error."""
        await broker.close()
        await broker.close()


class SharedContract(Contract):
    """The contract between the nodes of a shared log. ``other`` is a second broker on the same log."""

    async def test_nodes_share_one_log(self, broker: Broker, other: Broker) -> None:
        """Clients of two nodes would see different orders or ids."""
        followers = [Follower(broker), Follower(other)]

        async def write(node: Broker) -> None:
            for _ in range(50):
                await node.append([draft("c"), draft("d", retention=Retention(0)), draft("e")])

        await asyncio.gather(write(broker), write(other))
        for follower in followers:
            await follower.until(300)
        one, two = ([event.id for event in follower.events] for follower in followers)
        assert one == two == sorted(set(one))
        assert not followers[0].lost
        assert not followers[1].lost

    async def test_followers_get_more_than_history_holds(self, broker: Broker, other: Broker) -> None:
        """A burst larger than the history would not reach connected clients."""
        follower = Follower(other)
        ids = await broker.append([draft("c", retention=Retention(2)) for _ in range(20)])
        assert [event.id for event in await follower.until(20)] == ids
        assert not follower.lost

    async def test_one_node_has_the_lease(self, broker: Broker, other: Broker) -> None:
        """Two nodes would read the same source at once, or none after a crash."""
        first = await broker.acquire_lease("s", 30)
        assert first is not None
        assert await other.acquire_lease("s", 30) is None
        await broker.release_lease(first)
        second = await other.acquire_lease("s", 0.2)
        assert second is not None
        assert second.number > first.number
        async with safety_net():
            while (third := await broker.acquire_lease("s", 30)) is None:
                await asyncio.sleep(0.02)
        assert third.number > second.number

    async def test_a_stale_lease_holder_appends_nothing(self, broker: Broker, other: Broker) -> None:
        """A suspended node that wakes up would append records a second time."""
        old = await broker.acquire_lease("s", 0.05)
        async with safety_net():
            while (new := await other.acquire_lease("s", 30)) is None:
                await asyncio.sleep(0.02)
        await other.append([draft("c", b"new")], SourceOffset("s", "2"), new)
        follower = Follower(broker)
        results = await asyncio.gather(
            broker.append([draft("c", b"zombie"), draft("d", b"zombie")], SourceOffset("s", "1"), old),
            broker.append([draft("c", b"bystander")]),
            return_exceptions=True,
        )
        assert isinstance(results[0], StaleFencingToken)
        await broker.release_lease(old)  # type: ignore[arg-type]
        assert await broker.read_offset("s") == "2"
        await other.append([draft("c", b"still")], None, new)
        while follower.events[-1:] == [] or follower.events[-1].payload != b"still":
            await follower.until(len(follower.events) + 1)
        assert b"zombie" not in [event.payload for event in follower.events]
