"""The history against a model that forgets nothing and computes what should be left."""

import weakref
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gateway.core import history as module
from gateway.core.event import EventId, Retention
from gateway.core.history import History

START = EventId(1000, 0)
END = EventId(10**12, 0)


@dataclass(frozen=True, weakref_slot=True, slots=True)
class Thing:
    id: EventId
    channel: str
    size: int


class Clock:
    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        return self.now


RETENTIONS = {
    "counted": Retention(3),
    "timed": Retention(100, max_age_ms=50),
    "both": Retention(4, max_age_ms=80),
}

steps = st.lists(
    st.tuples(st.sampled_from(sorted(RETENTIONS)), st.integers(0, 30), st.integers(1, 40)), max_size=80
)


@given(steps, st.sampled_from([100, 10**6]))
def test_what_is_kept_and_what_is_reported_as_lost(plan: list[tuple[str, int, int]], max_bytes: int) -> None:
    """Nothing younger than the limits is dropped but for bytes, and the floor never hides a loss."""
    clock = Clock()
    history: History[Thing] = History(max_bytes=max_bytes, start=START, clock=clock)
    everything: list[Thing] = []
    for number, (channel, wait, size) in enumerate(plan):
        clock.now += wait
        thing = Thing(EventId(clock.now, number), channel, size)
        everything.append(thing)
        history.append(thing, size, RETENTIONS[channel])
    history.expire()
    assert history.total_bytes <= max_bytes
    held = 0
    for channel, retention in RETENTIONS.items():
        all_of_it = [thing for thing in everything if thing.channel == channel]
        left = history.items_after(channel, EventId(0, 0), END, 10**6)
        held += sum(thing.size for thing in left)
        assert left == all_of_it[len(all_of_it) - len(left) :], "what is left is the newest, in order"
        assert len(left) <= retention.max_events
        if retention.max_age_ms is not None:
            assert all(thing.id.ms + retention.max_age_ms > clock.now for thing in left)
        floor = history.floor(channel)
        assert floor == (all_of_it[-len(left) - 1].id if len(left) < len(all_of_it) else START)
        if max_bytes == 10**6:
            young = [
                thing
                for thing in all_of_it
                if retention.max_age_ms is None or thing.id.ms + retention.max_age_ms > clock.now
            ]
            assert left == young[max(0, len(young) - retention.max_events) :]
        assert history.newest_items(channel, EventId(0, 0), None, 2) == left[-2:]
    assert held == history.total_bytes


def test_reading_by_pages_gives_everything_once() -> None:
    """after and until are exclusive and inclusive, so pages join without a seam."""
    history: History[Thing] = History(max_bytes=10**6, start=START, clock=Clock())
    things = [Thing(EventId(2000, number), "a", 1) for number in range(2000)]
    for thing in things:
        history.append(thing, 1, Retention(1500))
    got, after = [], EventId(0, 0)
    while page := history.items_after("a", after, things[-2].id, 7):
        got += page
        after = page[-1].id
    assert got == things[500:-1]


def test_forgetting_a_channel_gives_its_bytes_back() -> None:
    """A ring whose last watcher left costs nothing."""
    history: History[Thing] = History(max_bytes=10**6, start=START, clock=Clock())
    opened = EventId(1500, 0)
    assert history.floor("a", opened) == opened
    assert history.channel_count == 0, "a channel without an item costs nothing"
    history.append(Thing(EventId(2000, 0), "a", 10), 10, Retention(5), opened)
    assert history.floor("a") == opened
    history.drop_channel("a")
    assert (history.total_bytes, len(history), history.channel_count) == (0, 0, 0)


def test_floors_of_emptied_channels_are_bounded_and_never_optimistic(monkeypatch: object) -> None:
    """A million users' emptied channels must not be a leak; a forgotten floor may only move up."""
    monkeypatch.setattr(module, "MAX_EMPTY_CHANNELS", 10)  # type: ignore[attr-defined]
    clock = Clock()
    history: History[Thing] = History(max_bytes=10**6, start=START, clock=clock)
    for number in range(50):
        history.append(Thing(EventId(clock.now, number), f"user.{number}", 1), 1, Retention(1, max_age_ms=1))
    made = clock.now
    clock.now += 10
    history.expire()
    assert history.channel_count == 10
    assert all(history.floor(f"user.{number}") >= EventId(made, number) for number in range(50))


def test_what_was_dropped_is_not_kept_alive() -> None:
    """The byte limit must bound memory and not only a number: a dropped item has no reference left."""
    history: History[Thing] = History(max_bytes=10**6, start=START, clock=Clock())
    first = Thing(EventId(2000, 0), "a", 1)
    alive = weakref.ref(first)
    history.append(first, 1, Retention(1))
    del first
    history.append(Thing(EventId(2000, 1), "a", 1), 1, Retention(1))
    assert alive() is None


def test_what_was_forgotten_is_not_kept_alive() -> None:
    """A ring's events must go with its last watcher, also those whose time is not over yet."""
    history: History[Thing] = History(max_bytes=10**6, start=START, clock=Clock())
    first = Thing(EventId(2000, 0), "a", 1)
    alive = weakref.ref(first)
    history.append(first, 1, Retention(100, max_age_ms=10**6))
    del first
    history.drop_channel("a")
    assert alive() is None


def test_expiry_is_one_entry_per_channel_whatever_comes_and_goes() -> None:
    """Channels that are watched, left and watched again must not pile up work for ever."""
    clock = Clock()
    history: History[Thing] = History(max_bytes=10**6, start=START, clock=clock)
    keep = Retention(100, max_age_ms=10**6)
    for number in range(5000):
        clock.now += 1
        history.append(Thing(EventId(clock.now, number), "a", 1), 1, keep, EventId(clock.now, 0))
        history.drop_channel("a")
    assert len(history._expiry_heap) < 1100
