"""Offsets in pub/sub: after a takeover every record is in the log once, or a gap is reported."""

import asyncio
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.event import Record
from gateway.sources.redis import recent_messages as module
from gateway.sources.redis.recent_messages import MarkerOffset, RecentMessages
from tests.support.deadline import safety_net

Messages = list[int | str]
"""What a server sends to all subscribers: numbers are records, words are markers."""


def receive(recent: RecentMessages, messages: Messages) -> None:
    for each in messages:
        if isinstance(each, str):
            recent.add_marker(each)
        else:
            recent.add_record(Record("t", b"%d" % each), now=0.0)


def numbers(recent: RecentMessages, start: int) -> list[int]:
    return [int(record.payload) for record in recent.records(start, 10_000)]


server = st.lists(st.booleans(), max_size=60).map(
    lambda kinds: [f"m{index}" if is_marker else index for index, is_marker in enumerate(kinds)]
)


@given(server, st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_a_takeover_continues_at_the_offset(
    messages: Messages, joined_first: int, joined_second: int, reached: int
) -> None:
    """Two nodes that joined at different times, the first dies anywhere: every record once, in order."""
    messages = ["begin", *messages]
    first, second = RecentMessages("p"), RecentMessages("p")
    receive(first, messages[joined_first:])
    receive(second, messages[joined_second:])
    if not any(isinstance(each, str) for each in messages[joined_first:]):
        return
    reached_number = min(reached, first.next_number)
    written = numbers(first, 0)[:reached_number]
    offset = MarkerOffset.parse(str(first.offset_at(reached_number, 7)))
    assert offset is not None
    assert offset.reached_ms == 7
    start = second.find_number(offset)
    expected = numbers(first, 0)
    if start is not None:
        assert written + numbers(second, start) == expected
    else:
        # Only a node that joined later cannot resolve the offset. Its records, from its own first marker on,
        # were not reached by the first node: they are reported as a gap, and none comes twice.
        assert joined_second > joined_first
        assert not set(written) & set(numbers(second, 0))


def test_a_node_that_lags_skips_records_that_are_in_the_log() -> None:
    """If the previous reader was ahead of this node, its next records would be in the log twice."""
    first, second = RecentMessages("p"), RecentMessages("p")
    receive(first, ["m", 1, 2, 3])
    receive(second, ["m", 1])
    start = second.find_number(first.offset_at(3, 0))
    assert start == 3
    assert numbers(second, start) == []
    receive(second, [2, 3, "n", 4])
    assert numbers(second, start) == [4]
    assert second.offset_at(start, 0) == MarkerOffset("p", "n", 0, 0)


def test_offsets_of_nodes_with_other_topics_are_unknown() -> None:
    """During a rollout, the same offset means another record, and records would be lost or repeated."""
    first, second = RecentMessages("p"), RecentMessages("q")
    receive(first, ["m", 1])
    receive(second, ["m", 1])
    assert second.find_number(first.offset_at(1, 0)) is None
    assert MarkerOffset.parse("nonsense") is None
    assert MarkerOffset.parse("a/b/c/d") is None


def test_old_and_too_many_records_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory would grow without bound, or a dropped record would not be noticed."""
    recent = RecentMessages("p")
    receive(recent, ["m", 1, 2, 3])
    recent.written_until = 2
    recent.drop_expired(module.WRITTEN_RETENTION_SECONDS + 1, has_lease=False)
    assert recent.first_number == 0, "another node reads: this one does not know what is in the log"
    recent.drop_expired(module.WRITTEN_RETENTION_SECONDS + 1, has_lease=True)
    assert (recent.first_number, recent.next_number) == (2, 3)
    assert recent.find_number(MarkerOffset("p", "m", 1, 0)) is None
    assert recent.find_number(MarkerOffset("p", "m", 2, 0)) == 2
    recent.drop_expired(module.TAKEOVER_RETENTION_SECONDS + 1, has_lease=False)
    assert recent.first_number == 3
    monkeypatch.setattr(module, "MAX_BUFFERED_BYTES", 5 * (module.RECORD_OVERHEAD_BYTES + 3))
    receive(recent, [10, 11, 12, 13, 14, 15])
    assert numbers(recent, recent.first_number) == [11, 12, 13, 14, 15]


def test_the_size_of_a_record_is_counted() -> None:
    """A flood of tiny messages would take thirty times the memory of the bound."""
    recent, count = RecentMessages("p"), 20_000
    recent.add_marker("m")
    tracemalloc.start()
    for number in range(count):
        recent.add_record(Record(f"topic:{number}", b"%9d" % number), now=0.0)
    allocated = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert allocated <= recent._bytes <= 2 * allocated


async def test_a_change_is_noticed_once() -> None:
    """The task that appends would miss a record, or spin."""
    recent = RecentMessages("p")
    recent.add_marker("m")
    async with safety_net():
        await recent.wait_for_change()
    waiting = asyncio.create_task(recent.wait_for_change())
    await asyncio.sleep(0)
    assert not waiting.done()
    recent.add_record(Record("t", b"1"), now=0.0)
    async with safety_net():
        await waiting


def test_topics_that_change_at_a_marker_keep_the_offsets_before_it() -> None:
    """When two nodes reload one after the other, a takeover would repeat or lose records."""
    first, second = RecentMessages("old"), RecentMessages("old")
    receive(first, ["a", 1, 2])
    receive(second, ["a", 1, 2])
    before = first.offset_at(2, 0)
    first.switch_topics("new")
    receive(first, ["b", 3])
    receive(second, ["b", 3])
    between = first.offset_at(3, 0)
    second.switch_topics("new")
    receive(first, ["c", 4])
    receive(second, ["c", 4])
    after = first.offset_at(4, 0)
    assert [offset.topics_fingerprint for offset in (before, between, after)] == ["old", "new", "new"]
    found = [second.find_number(offset) for offset in (before, between, after)]
    assert found == [2, None, 4]
    assert numbers(second, 2) == [3, 4] and numbers(second, 4) == []
