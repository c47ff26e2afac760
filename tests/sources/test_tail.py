"""Places in pub/sub: what one node wrote and the next one writes is every record once, or a gap is told."""

import asyncio
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.event import Record
from gateway.sources.redis import recent_messages as tail_module
from gateway.sources.redis.recent_messages import Place, Tail
from tests.support.deadline import safety_net

Heard = list[int | str]
"""What a server sends to all: numbers are records, words are markers."""


def hear(tail: Tail, heard: Heard) -> None:
    for what in heard:
        if isinstance(what, str):
            tail.mark(what)
        else:
            tail.add([Record("t", b"%d" % what)], now=0.0)


def numbers(tail: Tail, start: int) -> list[int]:
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
    first, second = Tail("p"), Tail("p")
    hear(first, heard[joined_first:])
    hear(second, heard[joined_second:])
    if not first.is_anchored:
        return
    stop = min(reached, first.end)
    written = numbers(first, 0)[:stop]
    place = Place.parse(str(first.place(stop, 7)))
    assert place is not None
    assert place.ms == 7
    start = second.find(place)
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
    first, second = Tail("p"), Tail("p")
    hear(first, ["m", 1, 2, 3])
    hear(second, ["m", 1])
    start = second.find(first.place(3, 0))
    assert start == 3
    assert numbers(second, start) == []
    hear(second, [2, 3, "n", 4])
    assert numbers(second, start) == [4]
    assert second.place(start, 0) == Place("p", "n", 0, 0)


def test_nodes_that_read_other_topics_do_not_understand_each_other() -> None:
    """A roll-out changes what counts as a record, so a place means something else."""
    first, second = Tail("p"), Tail("q")
    hear(first, ["m", 1])
    hear(second, ["m", 1])
    assert second.find(first.place(1, 0)) is None
    assert Place.parse("nonsense") is None
    assert Place.parse("a/b/c/d") is None


def test_records_go_when_they_are_old_and_written_or_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded; what was not written goes last, and who asks for it is told that it is gone."""
    tail = Tail("p")
    hear(tail, ["m", 1, 2, 3])
    tail.written = 2
    tail.forget(tail_module.WRITTEN_SECONDS + 1, is_leading=False)
    assert tail.first == 0, "another node reads: this one does not know what it wrote"
    tail.forget(tail_module.WRITTEN_SECONDS + 1, is_leading=True)
    assert (tail.first, tail.end) == (2, 3)
    assert tail.find(Place("p", "m", 1, 0)) is None
    assert tail.find(Place("p", "m", 2, 0)) == 2
    tail.forget(tail_module.KEPT_SECONDS + 1, is_leading=False)
    assert tail.first == 3
    monkeypatch.setattr(tail_module, "KEPT_BYTES", 5 * (tail_module.RECORD_OVERHEAD + 3))
    hear(tail, [10, 11, 12, 13, 14, 15])
    assert numbers(tail, tail.first) == [11, 12, 13, 14, 15]


def test_what_a_record_takes_is_counted() -> None:
    """A flood of tiny messages must not take thirty times what the bound says."""
    tail, count = Tail("p"), 20_000
    tail.mark("m")
    tracemalloc.start()
    tail.add([Record(f"topic:{number}", b"%9d" % number) for number in range(count)], now=0.0)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken <= tail._bytes <= 2 * taken


async def test_a_change_is_noticed_once() -> None:
    """The writer sleeps between records and misses none."""
    tail = Tail("p")
    tail.mark("m")
    async with safety_net():
        await tail.change()
    waiting = asyncio.create_task(tail.change())
    await asyncio.sleep(0)
    assert not waiting.done()
    tail.add([Record("t", b"1")], now=0.0)
    async with safety_net():
        await waiting


def test_topics_that_change_at_a_marker_keep_the_places_before_it() -> None:
    """A reload on two nodes, one after the other: places of the same topics are understood, others are gaps."""
    first, second = Tail("old"), Tail("old")
    hear(first, ["a", 1, 2])
    hear(second, ["a", 1, 2])
    before = first.place(2, 0)
    first.replan("new")
    hear(first, ["b", 3])
    hear(second, ["b", 3])
    between = first.place(3, 0)
    second.replan("new")
    hear(first, ["c", 4])
    hear(second, ["c", 4])
    after = first.place(4, 0)
    assert [place.plan for place in (before, between, after)] == ["old", "new", "new"]
    found = [second.find(place) for place in (before, between, after)]
    assert found == [2, None, 4]
    assert numbers(second, 2) == [3, 4] and numbers(second, 4) == []
