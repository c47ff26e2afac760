"""The interface of the ordered event log, and its contract; ``tests/broker/contract.py`` tests each broker.

**Order.** `Broker.append` assigns each draft the next id of one global order. Ids never go back, whatever the
clock does, and every follower on every node receives every event in the order of ids.

**Batches.** An append is atomic: either all drafts and the offset are in the log, or none is. Drafts keep
their order. Once it returned, the events are as durable as this broker can make them. If it raised or was
cancelled, they may or may not be in the log; an append with the same deduplication keys settles it.

**Deduplication.** A draft whose deduplication key was used in the same channel before, within the last
`MIN_DEDUPLICATION_KEYS` keys, is not appended again: the result holds the id of the first one. If both
have a request fingerprint and these differ, the whole batch is rejected.

**History.** Each channel retains what its drafts' `gateway.core.event.Retention` says, and knows its *floor*:
the id of the last event that it no longer holds. `Broker.read` returns it, so a gap is always reported. A
channel without history is live only, and `Broker.read` returns nothing of it.

**Followers.** `Broker.follow` registers two functions that are called on the event loop, one at a time, and
must not wait. ``on_events`` receives batches of events, in order. ``on_gap`` receives an id if the events up
to it cannot be delivered, because this node was disconnected or too slow; streams read them instead.
`Broker.head` is the id up to which the follower was served (at first, the log's head at the start), so
``read(..., until=head)`` and the later calls of ``on_events`` together are the log without a hole.

**Leases.** A lease belongs to one node at a time and expires unless it is renewed. A
`gateway.core.event.FencingToken` proves it: an append with a token that is not the latest of its lease is
rejected as a whole, so a node that was suspended while another one took over can append nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from gateway.broker.delivery import Delivery, OnEvents, OnGap
from gateway.broker.shared_store import SharedStore
from gateway.core.errors import IdempotencyKeyReused, StaleFencingToken
from gateway.core.event import AppendedIds, Draft, Event, EventId, FencingToken, SourceOffset
from gateway.observability.task_supervisor import TaskSupervisor

MIN_DEDUPLICATION_KEYS = 100_000
"""How many deduplication keys a broker remembers at least."""

IDLE_CHANNEL_TTL_MS = 86_400_000
"""How long (milliseconds) a shared log remembers a channel after its last event expired: a day.

A client that resumes later, with an older id, receives a gap on any channel that the log forgot.
"""

MAX_RECENT_IDS = 2000
"""Ids that one `Broker.read_recent_ids` returns at most: 6 ms of Redis, at 3 us for each event of 1 KB."""


class AppendBatch(NamedTuple):
    """The arguments of one `Broker.append`."""

    drafts: Sequence[Draft]
    offset: SourceOffset | None
    fence: FencingToken | None

    def payload_bytes(self) -> int:
        """Return the size of all payloads."""
        size = 0
        for draft in self.drafts:  # half the time of sum(); an append takes 13 us (benchmark row: append)
            size += len(draft.payload)
        return size


AppendResult = AppendedIds | StaleFencingToken | IdempotencyKeyReused
"""The ids of a batch, or why nothing of it was appended."""


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Events of one channel in the order of ids, complete after ``floor``."""

    events: Sequence[Event]
    floor: EventId
    """The requested id, or a later one if events up to there are no longer held."""
    has_more: bool = False
    """Whether the limit cut the page; the next one begins after ``events[-1].id``."""


class HistorySpan(NamedTuple):
    """The newest ``limit`` events of a channel with ``first <= id < before``."""

    channel: str
    first: EventId
    before: EventId | None
    """None for no upper bound."""
    limit: int


@dataclass(frozen=True, slots=True)
class SpanIds:
    """The ids of a `HistorySpan`, packed (`gateway.core.event.pack_id`), the newest first."""

    ids: Sequence[int]
    floor: int
    """Packed: the channel holds no event up to this id any more, although ``ids`` may contain some."""
    is_cut: bool
    """Whether the span may hold older events: a limit was reached."""


class Broker(ABC):
    """The event log of one node; the module's docstring is its contract.

    The coroutines from `append` on raise Unavailable for a temporary failure. A cancelled one that writes may
    or may not have had its effect; for the others, cancelling is safe.
    """

    type: ClassVar[str]
    """``memory``, ``sqlite`` or ``redis``, as shown in the status."""

    shared_store: SharedStore
    """Small state that nodes share beside the log."""

    def __init__(self, background: TaskSupervisor) -> None:
        self._delivery = Delivery(background)

    @property
    def last_error(self) -> str:
        """Why the log could not be reached the last time; empty if that never happened."""
        return ""

    @property
    @abstractmethod
    def head(self) -> EventId:
        """The id up to which the follower was served."""

    @property
    @abstractmethod
    def is_up(self) -> bool:
        """Whether the log can be reached just now."""

    @abstractmethod
    async def start(self) -> None:
        """Connect. Raises StartupError if the log can never be used as it is configured."""

    @abstractmethod
    async def close(self) -> None:
        """Stop following and release all resources; harmless when repeated."""

    def follow(self, on_events: OnEvents, on_gap: OnGap) -> None:
        """Deliver every event from now on to ``on_events``. Called once, after `start`."""
        self._delivery.set_handlers(on_events, on_gap)

    @abstractmethod
    async def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None = None, fence: FencingToken | None = None
    ) -> AppendedIds:
        """Append a batch and store the offset of its source, in one transaction; returns each draft's id.

        Raises StaleFencingToken if another node took the lease, and IdempotencyKeyReused for a key that was
        used with another fingerprint.
        """

    @abstractmethod
    async def read(
        self, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> Mapping[str, HistoryPage]:
        """Return the first ``limit`` events of each channel with ``after < id <= until``."""

    @abstractmethod
    async def read_recent_ids(self, spans: Sequence[HistorySpan]) -> Sequence[SpanIds]:
        """Return the ids of the newest events in each span, without the events.

        There are at most `MAX_RECENT_IDS` ids in total; if that is too few, the later spans receive fewer.
        """

    @abstractmethod
    async def read_log_head(self) -> EventId:
        """Return the id of the last event in the log, which may be later than `head`."""

    @abstractmethod
    async def read_offset(self, source: str) -> str | None:
        """Return the offset last stored for a source."""

    @abstractmethod
    async def list_partitions(self, source: str) -> list[str]:
        """Return the partitions of a source that have an offset: the rest of each key below ``source/``."""

    @abstractmethod
    async def acquire_lease(self, name: str, seconds: float) -> FencingToken | None:
        """Acquire or renew a lease for so many seconds; returns None while another node holds it."""

    @abstractmethod
    async def release_lease(self, fence: FencingToken) -> None:
        """Release a lease, so that another node need not wait."""


def has_key_conflict(
    drafts: Iterable[Draft], find_first_use: Callable[[Draft], tuple[object, str | None] | None]
) -> bool:
    """Return whether a draft's key had another fingerprint at its first use, found as id and fingerprint."""
    for draft in drafts:
        if draft.deduplication_key is not None and draft.request_fingerprint is not None:
            seen = find_first_use(draft)
            if seen is not None and seen[1] not in (None, draft.request_fingerprint):
                return True
    return False
