"""A timer wheel: visits many items at regular intervals with one timer for all of them.

The items are dealt into buckets, and each tick visits one bucket: with 15,000 items, fewer than 500. So the
work is spread evenly, no item has a timer of its own, and while there are no items nothing ticks.
"""

import asyncio
from collections.abc import Mapping
from itertools import count
from typing import Generic, TypeVar

from gateway.observability.task_supervisor import TaskName, TaskSupervisor

T = TypeVar("T")


class BucketSweep(Generic[T]):
    """Calls `_visit` for each item once per round of `round_seconds`. Subclasses say what a visit does.

    A failed visit is logged and counted under ``task_name`` and handed to `_on_visit_failed`; the other items
    are visited all the same.
    """

    def __init__(
        self, task_name: TaskName, background: TaskSupervisor, *, buckets: int, tick_seconds: float
    ) -> None:
        self.tick_seconds = tick_seconds
        """Seconds between two ticks; a new value holds from the next tick on."""
        self._task_name = task_name
        self._background = background
        self._guarded_tick = background.guard_callback(task_name, self._tick)
        self._bucket_of: dict[T, int] = {}
        self._buckets: list[dict[T, None]] = [{} for _ in range(buckets)]
        self._bucket_numbers = count()
        self._next_bucket = 0
        self._timer: asyncio.TimerHandle | None = None
        self._next_tick_at = 0.0

    def __len__(self) -> int:
        return len(self._bucket_of)

    @property
    def items(self) -> Mapping[T, int]:
        """The items, each with the number of its bucket."""
        return self._bucket_of

    @property
    def round_seconds(self) -> float:
        """Seconds between two visits of an item."""
        return self.tick_seconds * len(self._buckets)

    def add(self, item: T) -> None:
        """Visit an item from now on. Needs a running loop. Pair with `remove`."""
        number = self._bucket_of[item] = next(self._bucket_numbers) % len(self._buckets)
        self._buckets[number][item] = None
        if self._timer is None:
            self._next_tick_at = asyncio.get_running_loop().time()
            self._schedule()

    def remove(self, item: T) -> None:
        """Visit an item no more. Harmless when repeated."""
        number = self._bucket_of.pop(item, None)
        if number is not None:
            del self._buckets[number][item]

    def stop(self) -> None:
        """Stop ticking; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _visit(self, item: T, now: float) -> None:
        """Do the work for one item; ``now`` is the loop's time."""
        raise NotImplementedError

    def _on_visit_failed(self, item: T) -> None:
        """React to an exception of `_visit`."""

    def _on_tick(self, now: float, late_seconds: float) -> None:
        """Do what is due at each tick, before the visits."""

    def _schedule(self) -> None:
        self._next_tick_at += self.tick_seconds
        self._timer = asyncio.get_running_loop().call_at(self._next_tick_at, self._guarded_tick)

    def _tick(self) -> None:
        if not self._bucket_of:
            self._timer = None
            return
        now = asyncio.get_running_loop().time()
        late_seconds = now - self._next_tick_at
        # Ticks that were missed are not made up for: after an hour's pause that would be a burst.
        self._next_tick_at = max(self._next_tick_at, now - self.tick_seconds)
        self._schedule()
        self._on_tick(now, late_seconds)
        bucket = self._buckets[self._next_bucket]
        self._next_bucket = (self._next_bucket + 1) % len(self._buckets)
        for item in list(bucket):
            try:
                self._visit(item, now)
            except Exception as error:
                self._background.record_failure(self._task_name, error)
                self._on_visit_failed(item)
