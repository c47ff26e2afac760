"""``memory://``: the log of a single process, lost when it ends."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from gateway.broker.base import (
    MAX_RECENT_IDS,
    MIN_DEDUPLICATION_KEYS,
    Broker,
    HistoryPage,
    HistorySpan,
    SpanIds,
    has_key_conflict,
)
from gateway.broker.memory_shared_store import MemorySharedStore
from gateway.config.model.config import Config
from gateway.core.clock import unix_ms
from gateway.core.errors import IdempotencyKeyReused
from gateway.core.event import (
    CONTROL_CHANNEL_PREFIX,
    DELETED_OFFSET,
    AppendedIds,
    Draft,
    Event,
    EventId,
    FencingToken,
    SourceOffset,
    pack_id,
)
from gateway.core.history import History
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

EVENT_OVERHEAD_BYTES = 400
"""Bytes that an event takes beside its payload: measured, rounded up."""


class MemoryBroker(Broker):
    """Appends and delivers in one step, so the follower never lags.

    Ids of an earlier process lie before the start of this log: a client that resumes from one receives a gap.
    """

    type = "memory"

    def __init__(
        self,
        *,
        history_bytes: int,
        clock: Callable[[], int] = unix_ms,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        super().__init__(background)
        self._clock = clock
        self._head = EventId(clock(), 0)
        self._history: History[Event] = History(max_bytes=history_bytes, start=self._head, clock=clock)
        self._deduplication_keys: OrderedDict[bytes, tuple[EventId, str | None]] = OrderedDict()
        self._offsets: dict[str, str] = {}
        self.shared_store = MemorySharedStore(clock)

    @property
    def head(self) -> EventId:
        return self._head

    @property
    def is_up(self) -> bool:
        return True

    def apply(self, config: Config) -> None:
        """Retain at most ``limits.history_bytes`` of history, all channels together."""
        self._history.set_max_bytes(config.limits.history_bytes)

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self._delivery.stop()

    async def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None = None, fence: FencingToken | None = None
    ) -> AppendedIds:
        if has_key_conflict(drafts, lambda draft: self._deduplication_keys.get(_digest(draft))):
            raise IdempotencyKeyReused
        ids = AppendedIds()
        events: list[Event] = []
        for draft in drafts:
            key = None if draft.deduplication_key is None else _digest(draft)
            seen = None if key is None else self._deduplication_keys.get(key)
            if seen is not None:
                ids.append(seen[0])
                ids.duplicate_count += 1
                continue
            is_retained = draft.retention.max_events > 0
            # A message between nodes that nobody retains gets no id of its own: a head that moves without
            # events would make an id of another gateway's log look like one of this log.
            is_internal = not is_retained and draft.channel.startswith(CONTROL_CHANNEL_PREFIX)
            event = Event(
                id=self._head if is_internal else self._next_id(),
                channel=draft.channel,
                payload=draft.payload,
                timestamp_ms=draft.timestamp_ms,
                type=draft.type,
                is_retained=is_retained,
            )
            if is_retained:
                self._history.append(event, len(draft.payload) + EVENT_OVERHEAD_BYTES, draft.retention)
            if key is not None:
                self._deduplication_keys[key] = event.id, draft.request_fingerprint
                if len(self._deduplication_keys) > MIN_DEDUPLICATION_KEYS:
                    self._deduplication_keys.popitem(last=False)
            ids.append(event.id)
            events.append(event)
        if offset is not None and offset.value == DELETED_OFFSET:
            self._offsets.pop(offset.key, None)
        elif offset is not None:
            self._offsets[offset.key] = offset.value
        self._delivery.deliver(events)
        return ids

    async def read(
        self, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> Mapping[str, HistoryPage]:
        self._history.expire()
        pages = {}
        for channel, id in after.items():
            events = self._history.items_after(channel, id, until, limit + 1)
            floor = max(id, self._history.floor(channel))
            pages[channel] = HistoryPage(events[:limit], floor, has_more=len(events) > limit)
        return pages

    async def read_recent_ids(self, spans: Sequence[HistorySpan]) -> Sequence[SpanIds]:
        self._history.expire()
        found: list[SpanIds] = []
        room = MAX_RECENT_IDS
        for span in spans:
            count = min(span.limit, room)
            events = self._history.newest_items(span.channel, span.first, span.before, count)
            ids = [pack_id(event.id) for event in reversed(events)]
            room -= len(ids)
            found.append(SpanIds(ids, pack_id(self._history.floor(span.channel)), len(ids) == count))
        return found

    async def read_log_head(self) -> EventId:
        return self._head

    async def read_offset(self, source: str) -> str | None:
        return self._offsets.get(source)

    async def list_partitions(self, source: str) -> list[str]:
        start = f"{source}/"
        return [name.removeprefix(start) for name in self._offsets if name.startswith(start)]

    async def acquire_lease(self, name: str, seconds: float) -> FencingToken | None:
        return FencingToken(name, 1)  # there is no other node

    async def release_lease(self, fence: FencingToken) -> None:
        pass

    def _next_id(self) -> EventId:
        # While the clock is behind the last id, only the sequence number grows.
        now, last = self._clock(), self._head
        self._head = EventId(now, 0) if now > last.ms else EventId(last.ms, last.seq + 1)
        return self._head


def _digest(draft: Draft) -> bytes:
    """Return a digest of a draft's channel and deduplication key; a channel's name contains no NUL."""
    text = f"{draft.channel}\0{draft.deduplication_key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()
