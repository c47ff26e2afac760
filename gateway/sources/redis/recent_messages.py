"""Keeps the last messages of a pub/sub connection, with offsets that all nodes understand.

Redis pub/sub gives its messages no ids, so two nodes that subscribe to the same server have no common name
for a message. But every subscriber of one server receives the same messages in the same order. So the nodes
publish *markers* among them: "the third record after marker 7f3a" is the same record everywhere. This offset
is stored in the log with the records before it. A node that takes over finds the offset among its own
messages and continues after it: nothing is lost, and nothing comes twice.

How it works. Records and markers are numbered as they arrive. An offset names the latest marker before it, so
every node that has received this marker can resolve it. Records before the first marker of a connection are
dropped: a node that takes over needs them only if the stored offset is before that marker, and then it
could not resolve the offset anyway.
"""

import asyncio
from bisect import bisect_right
from collections import OrderedDict, deque
from dataclasses import dataclass

from gateway.core.event import Record

TAKEOVER_RETENTION_SECONDS = 60.0
"""How long records are kept for a takeover: longer than a lease, and than most outages of the log."""

WRITTEN_RETENTION_SECONDS = 10.0
"""How long the lease's holder keeps records that it appended: a failover may lose the log's last writes."""

MAX_BUFFERED_BYTES = 64 * 1024 * 1024
"""Bytes of records that are kept; the oldest are dropped first, which is a gap if they are not in the log."""

RECORD_OVERHEAD_BYTES = 400
"""Bytes that a record takes besides its payload and topic (314 were measured for a payload of 9)."""

MAX_MARKERS = 1000
"""Markers that are kept; offsets after older ones can no longer be resolved."""


@dataclass(frozen=True, slots=True)
class MarkerOffset:
    """The position after the ``count``-th record after a marker, for nodes that read the same topics."""

    topics_fingerprint: str
    marker: str
    count: int
    reached_ms: int
    """When it was reached, in unix milliseconds."""

    def __str__(self) -> str:
        return f"{self.topics_fingerprint}/{self.marker}/{self.count}/{self.reached_ms}"

    @classmethod
    def parse(cls, text: str) -> "MarkerOffset | None":
        """Return the offset that ``text`` spells, or None."""
        try:
            topics, marker, count, ms = text.split("/")
            return cls(topics, marker, int(count), int(ms))
        except ValueError:
            return None


class RecentMessages:
    """The records of one connection since its first marker, by number."""

    def __init__(self, topics_fingerprint: str) -> None:
        self.first_number = 0
        """The number of the oldest record that is kept."""
        self.next_number = 0
        """The number that the next record gets."""
        self.written_until = 0
        """Records below this number are in the log; it may be ahead of `next_number` after a takeover."""
        self._topics_fingerprint = topics_fingerprint
        self._records: deque[tuple[float, Record]] = deque()
        self._bytes = 0
        self._markers: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._changed = asyncio.Event()

    @property
    def records_since_marker(self) -> int:
        """How many records arrived after the last marker."""
        return self.next_number - next(reversed(self._markers.values()))[0] if self._markers else 0

    def switch_topics(self, topics_fingerprint: str) -> None:
        """Change the topics whose records are added, right before the next marker."""
        self._topics_fingerprint = topics_fingerprint

    def add_marker(self, marker: str) -> None:
        """Add a marker that just arrived."""
        self._markers[marker] = self.next_number, self._topics_fingerprint
        self._markers.move_to_end(marker)
        if len(self._markers) > MAX_MARKERS:
            self._markers.popitem(last=False)
        self._changed.set()

    def has_seen_marker(self, marker: str) -> bool:
        """Return whether a marker arrived."""
        return marker in self._markers

    def add_record(self, record: Record, now: float) -> None:
        """Add a record that just arrived; ``now`` is the event loop's time."""
        if not self._markers:
            return
        self._records.append((now, record))
        self._bytes += _record_bytes(record)
        self.next_number += 1
        while self._bytes > MAX_BUFFERED_BYTES:
            self._drop_oldest()
        self._changed.set()

    def drop_expired(self, now: float, *, has_lease: bool) -> None:
        """Drop the records that no takeover can need any more; ``now`` is the event loop's time."""
        until, seconds = (
            (self.written_until, WRITTEN_RETENTION_SECONDS)
            if has_lease
            else (self.next_number, TAKEOVER_RETENTION_SECONDS)
        )
        while self._records and self.first_number < until and self._records[0][0] < now - seconds:
            self._drop_oldest()

    def first_number_since(self, then: float) -> int:
        """Return the number of the first record that arrived after a moment of the event loop's time."""
        return self.first_number + sum(1 for arrived_at, _ in self._records if arrived_at <= then)

    def find_number(self, offset: MarkerOffset) -> int | None:
        """Return the number of the first record after an offset; None if it is unknown or was dropped."""
        start, topics = self._markers.get(offset.marker, (None, ""))
        if start is None or offset.topics_fingerprint != topics or start + offset.count < self.first_number:
            return None
        return start + offset.count

    def offset_at(self, number: int, ms: int) -> MarkerOffset:
        """Return the offset before record ``number``, reached at ``ms`` (unix); needs a marker before it."""
        markers = list(self._markers.values())
        position = max(0, bisect_right(markers, number, key=lambda marker: marker[0]) - 1)
        start, topics = markers[position]
        return MarkerOffset(topics, list(self._markers)[position], number - start, ms)

    def records(self, number: int, limit: int) -> list[Record]:
        """Return at most ``limit`` records from ``number`` on."""
        skip = number - self.first_number
        count = min(limit, self.next_number - number)
        return [self._records[position][1] for position in range(skip, skip + count)]

    async def wait_for_change(self) -> None:
        """Wait until a record or a marker arrives, if none did since the last call. Cancelling is safe."""
        await self._changed.wait()
        self._changed.clear()

    def _drop_oldest(self) -> None:
        self._bytes -= _record_bytes(self._records.popleft()[1])
        self.first_number += 1


def _record_bytes(record: Record) -> int:
    return len(record.payload) + len(record.topic) + RECORD_OVERHEAD_BYTES
