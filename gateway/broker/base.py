"""The ordered event log: what every broker promises. ``tests/broker/contract.py`` puts one through it.

**Order.** `append` gives each draft the next id of one global order. Ids never go backwards, whatever
the clock does, and every follower on every node is given every event in id order.

**Batches.** `append` is atomic: all drafts and the cursor are in the log, or none is. Drafts keep their
order. Once it returned, the events are in the log as safely as this broker can keep them; when it
raised, or was cancelled, they may or may not be, and an append with the same keys settles which.

**Deduplication.** A draft with a ``key`` that the same channel was given before, within the last
`MIN_DEDUPLICATION_KEYS` keys, is not appended again: its place in the answer holds the first one's id. If both
have a ``fingerprint`` and these differ, the whole batch is refused.

**History.** Each channel keeps what its drafts' `Retention` says, and knows the *floor*: the id of the
last event that it does not hold any more. `read` compares with it, so a hole is always told and never
guessed. A channel without history is live only: `read` knows nothing of it.

**Followers.** `follow` names two functions that are called on the event loop, never at once, and that do
not wait. ``deliver`` is given batches of events, in order. ``lost`` is given an id when the events up
to it cannot be delivered, because this node was cut off or too slow: who needs them reads them. `head`
is the id up to which the follower was served (at first: of the log when following began), so
``read(..., until=head)`` plus what the follower is given from then on is the log without a seam.

**Leases.** Each name is leased to one node at a time, for so many seconds since it last asked. A `FencingToken`
proves the lease: an append with one that is not the latest of its name is refused whole, so a node that
stood still while another one took over can append nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from gateway.broker.shared_store import SharedStore
from gateway.core.event import AppendedIds, Draft, Event, EventId, FencingToken, SourceOffset

MIN_DEDUPLICATION_KEYS = 100_000
"""How many deduplication keys a broker remembers at least."""

IDLE_CHANNEL_TTL_MS = 86_400_000
"""How long (milliseconds) a shared log remembers a channel after its last event is gone: a day.

A client that comes back later, with an id from before, receives a gap on any channel that is forgotten.
"""

MAX_RECENT_IDS = 2000
"""Ids that one `BrokerConfig.recent` returns at the most: 6 ms of Redis, at 3 us for each event of 1 KB."""

OnEvents = Callable[[Sequence[Event]], None]
OnGap = Callable[[EventId], None]


class AppendBatch(NamedTuple):
    """What one `BrokerConfig.append` was given, on its way to where it is written."""

    drafts: Sequence[Draft]
    offset: SourceOffset | None
    fence: FencingToken | None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """What `BrokerConfig.read` found in one channel: ``events`` in id order, whole from ``floor`` on."""

    events: Sequence[Event]
    floor: EventId
    """The id asked for; or a later one, if events up to there were dropped."""
    has_more: bool = False
    """True if the limit cut the page; read on after ``events[-1].id``."""


class HistorySpan(NamedTuple):
    """A part of one channel's history: the newest ``limit`` events with ``first <= id < before``."""

    channel: str
    first: EventId
    before: EventId | None
    """None: up to the newest event."""
    limit: int


@dataclass(frozen=True, slots=True)
class SpanIds:
    """The ids of a span's newest events, packed (`gateway.core.event.pack_id`), the newest first."""

    ids: Sequence[int]
    floor: int
    """Packed: the channel holds no event up to this id any more, though ``ids`` may name some."""
    is_cut: bool
    """Whether the span may hold older ones: there are ``limit`` of them, or the answer was full."""


class Broker(ABC):
    """See the module's docstring for the contract."""

    type: ClassVar[str]
    """``memory``, ``sqlite`` or ``redis``, for people."""

    shared_store: SharedStore
    """What nodes share beside the log."""

    last_error: str = ""
    """The last cause for which the log could not be reached."""

    @property
    @abstractmethod
    def head(self) -> EventId:
        """The id of the last event that the follower was given."""

    @property
    @abstractmethod
    def is_up(self) -> bool:
        """Whether the log can be reached just now."""

    @abstractmethod
    async def start(self) -> None:
        """Connect. Raises StartupError where the log can never be used as it is configured."""

    @abstractmethod
    async def close(self) -> None:
        """Stop following and let go of everything; harmless when repeated."""

    @abstractmethod
    def follow(self, on_events: OnEvents, on_gap: OnGap) -> None:
        """Give every event from now on to ``deliver``. Called once, after `start`."""

    @abstractmethod
    async def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None = None, fence: FencingToken | None = None
    ) -> AppendedIds:
        """Append a batch, and store how far its source has read, in one transaction.

        Returns the id of each draft. Raises Fenced if the lease went to another node, KeyReused for a key
        with another fingerprint, Unavailable for temporary trouble. Cancelling leaves open whether the batch
        is in the log.
        """

    @abstractmethod
    async def read(
        self, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> Mapping[str, HistoryPage]:
        """Return of each channel the first ``limit`` events with ``after < id <= until``.

        Raises Unavailable for temporary trouble. Cancelling is safe.
        """

    @abstractmethod
    async def read_recent_ids(self, spans: Sequence[HistorySpan]) -> Sequence[SpanIds]:
        """Return the ids of the newest events in each span, without the events.

        All answers together hold at most `MAX_RECENT_IDS` ids; where that is too few, the later spans get fewer.
        Raises Unavailable. Cancelling is safe.
        """

    @abstractmethod
    async def read_log_head(self) -> EventId:
        """Return the id of the last event in the log, whether the follower has it already or not."""

    @abstractmethod
    async def read_offset(self, source: str) -> str | None:
        """Return the position last stored for a source. Raises Unavailable. Cancelling is safe."""

    @abstractmethod
    async def list_partitions(self, source: str) -> list[str]:
        """Return the parts of a source that have a position: all that is stored under ``source/``.

        Raises Unavailable. Cancelling is safe.
        """

    @abstractmethod
    async def acquire_lease(self, name: str, seconds: float) -> FencingToken | None:
        """Take a lease, or keep it for so much longer; None while it is another node's.

        Raises Unavailable. Cancelling leaves open whether the lease is taken.
        """

    @abstractmethod
    async def release_lease(self, fence: FencingToken) -> None:
        """Give a lease back, so that another node need not wait. Raises Unavailable. Cancelling is safe."""
