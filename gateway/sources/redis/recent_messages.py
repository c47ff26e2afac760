"""The last records of an upstream that keeps none, each at a place that all nodes agree on.

Redis pub/sub gives its messages no ids, and so two nodes that listen to the same server cannot say
which of them they mean. But every subscriber of one server sees the same messages in the same order. So
nodes publish *markers* among them: "the third record after marker 7f3a" is the same record everywhere.
That place is stored in the log with the records that led up to it. When another node takes over, it finds
the place in its own tail and goes on behind it: nothing is lost and nothing comes twice.

How it works. Records and markers are numbered as they come. A place names the latest marker before it, so
whoever has seen that marker can find it. What came before the first marker of a connection is left
out: a node that had not got that far stored no place behind the marker, one that had names it.
"""

import asyncio
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.core.event import Record

TAKEOVER_RETENTION_SECONDS = 60.0
"""How long records stay for a takeover: longer than a lease, and than a log is away as a rule."""

WRITTEN_RETENTION_SECONDS = 10.0
"""How long the reader keeps what it wrote into the log: for a failover that loses the log's last writes."""

MAX_BUFFERED_BYTES = 64 * 1024 * 1024
"""Bytes of records that may wait for the log; the oldest go first, and that is a gap."""

RECORD_OVERHEAD_BYTES = 400
"""Bytes that a record takes beside its payload and topic (314 were measured for a payload of 9)."""

MAX_MARKERS = 1000
"""How many markers are remembered."""


@dataclass(frozen=True, slots=True)
class MarkerOffset:
    """Behind the ``count``-th record after a marker, of nodes that read the same topics (``plan``)."""

    topics_fingerprint: str
    marker: str
    count: int
    reached_ms: int
    """When it was reached, in unix milliseconds."""

    def __str__(self) -> str:
        return f"{self.topics_fingerprint}/{self.marker}/{self.count}/{self.reached_ms}"

    @classmethod
    def parse(cls, text: str) -> "MarkerOffset | None":
        """Return the place that ``text`` spells, or None."""
        try:
            plan, marker, count, ms = text.split("/")
            return cls(plan, marker, int(count), int(ms))
        except ValueError:
            return None


class RecentMessages:
    """One connection's records since its first marker, by number."""

    def __init__(self, topics_fingerprint: str) -> None:
        self.first_number = 0
        """The number of the oldest record that is held."""
        self.next_number = 0
        """The number that the next record gets."""
        self.written_until = 0
        """The number behind what this node knows to be in the log; ahead of ``end`` where it is late."""
        self._topics_fingerprint = topics_fingerprint
        self._records: deque[tuple[float, Record]] = deque()
        self._bytes = 0
        self._markers: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._changed = asyncio.Event()

    @property
    def has_marker(self) -> bool:
        """Whether a marker was seen, so that records have places."""
        return bool(self._markers)

    @property
    def records_since_marker(self) -> int:
        """How many records came after the last marker."""
        return self.next_number - next(reversed(self._markers.values()))[0] if self._markers else 0

    def switch_topics(self, topics_fingerprint: str) -> None:
        """Count the records of other topics from the next marker on; before it, add none of them."""
        self._topics_fingerprint = topics_fingerprint

    def add_marker(self, marker: str) -> None:
        """Note a marker that just came."""
        self._markers[marker] = self.next_number, self._topics_fingerprint
        self._markers.move_to_end(marker)
        if len(self._markers) > MAX_MARKERS:
            self._markers.popitem(last=False)
        self._changed.set()

    def has_seen_marker(self, marker: str) -> bool:
        """Tell whether a marker came."""
        return marker in self._markers

    def add_records(self, records: Sequence[Record], now: float) -> None:
        """Note records that just came; ``now`` is the loop's time."""
        if not self._markers:
            return
        for record in records:
            self._records.append((now, record))
            self._bytes += _record_bytes(record)
        self.next_number += len(records)
        while self._bytes > MAX_BUFFERED_BYTES:
            self._drop_oldest()
        self._changed.set()

    def drop_expired(self, now: float, *, has_lease: bool) -> None:
        """Drop the records that no takeover can need any more; ``now`` is the loop's time."""
        until, seconds = (
            (self.written_until, WRITTEN_RETENTION_SECONDS)
            if has_lease
            else (self.next_number, TAKEOVER_RETENTION_SECONDS)
        )
        while self._records and self.first_number < until and self._records[0][0] < now - seconds:
            self._drop_oldest()

    def first_number_since(self, then: float) -> int:
        """Return the number of the first record that came after a moment of the loop's time."""
        return self.first_number + sum(1 for came, _ in self._records if came <= then)

    def find_number(self, offset: MarkerOffset) -> int | None:
        """Return the number of the record behind a place; None if it cannot be known, or is gone."""
        start, plan = self._markers.get(offset.marker, (None, ""))
        if start is None or offset.topics_fingerprint != plan or start + offset.count < self.first_number:
            return None
        return start + offset.count

    def offset_at(self, number: int, ms: int) -> MarkerOffset:
        """Return the place before record ``number``; a marker must have come before it."""
        marks = list(self._markers.values())
        position = max(0, bisect_right(marks, number, key=lambda mark: mark[0]) - 1)
        start, plan = marks[position]
        return MarkerOffset(plan, list(self._markers)[position], number - start, ms)

    def records(self, number: int, limit: int) -> list[Record]:
        """Return at most ``limit`` records from ``number`` on."""
        skip = number - self.first_number
        count = min(limit, self.next_number - number)
        return [self._records[position][1] for position in range(skip, skip + count)]

    async def wait_for_change(self) -> None:
        """Wait until something came since this was last waited for. Cancelling is safe."""
        await self._changed.wait()
        self._changed.clear()

    def _drop_oldest(self) -> None:
        self._bytes -= _record_bytes(self._records.popleft()[1])
        self.first_number += 1


def _record_bytes(record: Record) -> int:
    """Return about how many bytes a record takes."""
    return len(record.payload) + len(record.topic) + RECORD_OVERHEAD_BYTES
