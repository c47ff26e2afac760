"""Offsets in Redis streams, against a model of what Redis counts."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.sources.redis.stream_offset import (
    START_OFFSET,
    UNKNOWN_COUNT,
    RedisStreamOffset,
    StreamInfo,
    advance,
    check_idle_stream,
    parse_entry_id,
)


class Stream:
    """The entries that Redis keeps, and the number of those removed before they were read."""

    def __init__(self) -> None:
        self.ids: list[tuple[int, int]] = []
        self.added = 0
        self.last = self.deleted = (0, 0)
        self.lost = 0

    def add(self) -> None:
        self.added += 1
        self.last = (self.added, 0)
        self.ids.append(self.last)

    def trim(self, place: RedisStreamOffset) -> None:
        self.lost += self.ids.pop(0) > place.id

    def delete(self, id: tuple[int, int], place: RedisStreamOffset) -> None:
        self.ids.remove(id)
        self.deleted = max(self.deleted, id)
        self.lost += id > place.id

    @property
    def info(self) -> StreamInfo:
        first, newest = (self.ids[0], self.ids[-1]) if self.ids else (self.last, self.last)
        return StreamInfo(len(self.ids), self.added, self.last, self.deleted, first, newest)

    def after(self, place: RedisStreamOffset, count: int) -> list[tuple[int, int]]:
        return [id for id in self.ids if id > place.id][:count]


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "trim", "read", "rest", "delete read", "delete"]), st.integers(0, 8)),
    max_size=60,
)


@given(STEPS, st.integers(0, 5))
def test_every_entry_that_was_trimmed_unread_is_counted(steps: list[tuple[str, int]], before: int) -> None:
    """The gaps of a stream would not add up to the entries that were trimmed unread."""
    stream = Stream()
    for _ in range(before):
        stream.add()
    place = START_OFFSET
    told = 0
    for what, number in [*steps, ("add", 1), ("read", 1000)]:
        if what == "add":
            for _ in range(number):
                stream.add()
        elif what == "trim":
            while len(stream.ids) > number:
                stream.trim(place)
        elif what == "delete read" and (old := [id for id in stream.ids if id <= place.id]):
            stream.delete(old[number % len(old)], place)
        elif what == "delete" and stream.ids:
            stream.delete(stream.ids[number % len(stream.ids)], place)
        elif what == "read" and (ids := stream.after(place, max(1, number))):
            place, missing = advance(place, ids, stream.info)
            told = UNKNOWN_COUNT if UNKNOWN_COUNT in (told, missing) else told + missing
        elif what == "rest" and not stream.after(place, 1):
            place, missing = check_idle_stream(place, stream.info)
            told = UNKNOWN_COUNT if UNKNOWN_COUNT in (told, missing) else told + missing
    assert told == stream.lost or (told == UNKNOWN_COUNT and stream.lost)


@given(STEPS)
def test_without_trimming_nothing_is_ever_told(steps: list[tuple[str, int]]) -> None:
    """A false gap would make every page load everything again."""
    stream, place = Stream(), START_OFFSET
    for what, number in steps:
        if what == "add":
            for _ in range(number):
                stream.add()
        elif what == "read" and (ids := stream.after(place, max(1, number))):
            place, missing = advance(place, ids, stream.info)
            assert missing == 0
            assert place.count == int(place.id[0])
        elif what == "delete read" and (old := [id for id in stream.ids if id <= place.id]):
            stream.delete(old[number % len(old)], place)
        elif what == "rest" and not stream.after(place, 1):
            place, missing = check_idle_stream(place, stream.info)
            assert missing == 0


def test_a_stream_that_was_begun_anew() -> None:
    """New entries with ids below the stored offset would never be read."""
    place = RedisStreamOffset((500, 0), 20)
    assert check_idle_stream(place, StreamInfo(2, 2, (7, 0), (0, 0), (5, 0), (7, 0))) == (
        RedisStreamOffset((7, 0), 2),
        UNKNOWN_COUNT,
    )
    assert check_idle_stream(place, None) == (START_OFFSET, UNKNOWN_COUNT)
    assert check_idle_stream(START_OFFSET, None) == (START_OFFSET, 0)
    # With later ids it goes on, and the count tells that it is another one.
    assert advance(place, [(600, 0)], StreamInfo(1, 1, (600, 0), (0, 0), (600, 0), (600, 0))) == (
        RedisStreamOffset((600, 0), 1),
        UNKNOWN_COUNT,
    )
    assert advance(place, [(600, 0)], StreamInfo(1, 3, (600, 0), (599, 0), (600, 0), (600, 0))) == (
        RedisStreamOffset((600, 0), 3),
        UNKNOWN_COUNT,
    )


def test_places_as_text() -> None:
    """A stored offset could not be read back, or a foreign one would be misread."""
    place = RedisStreamOffset((1, 2), UNKNOWN_COUNT)
    assert RedisStreamOffset.parse(str(place)) == place
    assert [RedisStreamOffset.parse(text) for text in ("", "x", "1-2", "1-x/3", "plan/m/1/2")] == [None] * 5
    assert parse_entry_id(b"5") == (5, 0)
