"""Places in pub/sub: what one node wrote and the next one writes is every record once, or a gap is told."""

import asyncio
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.event import Record
from gateway.sources.redis import recent_messages as tail_module
from gateway.sources.redis.recent_messages import MarkerOffset, RecentMessages
from tests.support.deadline import safety_net

Heard = list[int | str]
"""What a server sends to all: numbers are records, words are markers."""


def hear(tail: RecentMessages, heard: Heard) -> None:
    for what in heard:
        if isinstance(what, str):
            tail.add_marker(what)
        else:
            tail.add_record(Record("t", b"%d" % what), now=0.0)


def numbers(tail: RecentMessages, start: int) -> list[int]:
    return [int(record.payload) for record in tail.records(start, 10_000)]


server = st.lists(st.booleans(), max_size=60).map(
    lambda plan: [f"m{place}" if is_marker else place for place, is_marker in enumerate(plan)]
)


@given(server, st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_whoever_takes_over_goes_on_exactly_there(
    heard: Heard, joined_first: int, joined_second: int, reached: int
) -> None:
    """Two nodes that joined at different times, the first dies anywhere: every record once, in order."""
    heard = ["begin", *heard]
    first, second = RecentMessages("p"), RecentMessages("p")
    hear(first, heard[joined_first:])
    hear(second, heard[joined_second:])
    if not any(isinstance(each, str) for each in heard[joined_first:]):
        return
    stop = min(reached, first.next_number)
    written = numbers(first, 0)[:stop]
    place = MarkerOffset.parse(str(first.offset_at(stop, 7)))
    assert place is not None
    assert place.reached_ms == 7
    start = second.find_number(place)
    wanted = numbers(first, 0)
    if start is not None:
        assert written + numbers(second, start) == wanted
    else:
        # Only a node that joined later than that can fail to know the place. What it has, from its
        # own first marker on, the first one had not reached: told as a gap, and nothing comes twice.
        assert joined_second > joined_first
        assert not set(written) & set(numbers(second, 0))


def test_a_node_that_lags_waits_for_what_the_log_has_already() -> None:
    """The dead reader was ahead of this one's socket: the next records to come are not new."""
    first, second = RecentMessages("p"), RecentMessages("p")
    hear(first, ["m", 1, 2, 3])
    hear(second, ["m", 1])
    start = second.find_number(first.offset_at(3, 0))
    assert start == 3
    assert numbers(second, start) == []
    hear(second, [2, 3, "n", 4])
    assert numbers(second, start) == [4]
    assert second.offset_at(start, 0) == MarkerOffset("p", "n", 0, 0)


def test_nodes_that_read_other_topics_do_not_understand_each_other() -> None:
    """A roll-out changes what counts as a record, so a place means something else."""
    first, second = RecentMessages("p"), RecentMessages("q")
    hear(first, ["m", 1])
    hear(second, ["m", 1])
    assert second.find_number(first.offset_at(1, 0)) is None
    assert MarkerOffset.parse("nonsense") is None
    assert MarkerOffset.parse("a/b/c/d") is None


def test_records_go_when_they_are_old_and_written_or_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded; what was not written goes last, and who asks for it is told that it is gone."""
    tail = RecentMessages("p")
    hear(tail, ["m", 1, 2, 3])
    tail.written_until = 2
    tail.drop_expired(tail_module.WRITTEN_RETENTION_SECONDS + 1, has_lease=False)
    assert tail.first_number == 0, "another node reads: this one does not know what it wrote"
    tail.drop_expired(tail_module.WRITTEN_RETENTION_SECONDS + 1, has_lease=True)
    assert (tail.first_number, tail.next_number) == (2, 3)
    assert tail.find_number(MarkerOffset("p", "m", 1, 0)) is None
    assert tail.find_number(MarkerOffset("p", "m", 2, 0)) == 2
    tail.drop_expired(tail_module.TAKEOVER_RETENTION_SECONDS + 1, has_lease=False)
    assert tail.first_number == 3
    monkeypatch.setattr(tail_module, "MAX_BUFFERED_BYTES", 5 * (tail_module.RECORD_OVERHEAD_BYTES + 3))
    hear(tail, [10, 11, 12, 13, 14, 15])
    assert numbers(tail, tail.first_number) == [11, 12, 13, 14, 15]


def test_what_a_record_takes_is_counted() -> None:
    """A flood of tiny messages must not take thirty times what the bound says."""
    tail, count = RecentMessages("p"), 20_000
    tail.add_marker("m")
    tracemalloc.start()
    for number in range(count):
        tail.add_record(Record(f"topic:{number}", b"%9d" % number), now=0.0)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken <= tail._bytes <= 2 * taken


async def test_a_change_is_noticed_once() -> None:
    """The writer sleeps between records and misses none."""
    tail = RecentMessages("p")
    tail.add_marker("m")
    async with safety_net():
        await tail.wait_for_change()
    waiting = asyncio.create_task(tail.wait_for_change())
    await asyncio.sleep(0)
    assert not waiting.done()
    tail.add_record(Record("t", b"1"), now=0.0)
    async with safety_net():
        await waiting


def test_topics_that_change_at_a_marker_keep_the_places_before_it() -> None:
    """A reload on two nodes, one after the other: places of the same topics are understood, others are gaps."""
    first, second = RecentMessages("old"), RecentMessages("old")
    hear(first, ["a", 1, 2])
    hear(second, ["a", 1, 2])
    before = first.offset_at(2, 0)
    first.switch_topics("new")
    hear(first, ["b", 3])
    hear(second, ["b", 3])
    between = first.offset_at(3, 0)
    second.switch_topics("new")
    hear(first, ["c", 4])
    hear(second, ["c", 4])
    after = first.offset_at(4, 0)
    assert [place.topics_fingerprint for place in (before, between, after)] == ["old", "new", "new"]
    found = [second.find_number(place) for place in (before, between, after)]
    assert found == [2, None, 4]
    assert numbers(second, 2) == [3, 4] and numbers(second, 4) == []
