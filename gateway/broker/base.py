"""The ordered event log: what every broker promises. ``tests/broker/contract.py`` puts one through it.

**Order.** `append` gives each draft the next id of one global order. Ids never go backwards, whatever
the clock does, and every follower on every node is given every event in id order.

**Batches.** `append` is atomic: all drafts and the cursor are in the log, or none is. Drafts keep their
order. Once it returned, the events are in the log as safely as this broker can keep them; when it
raised, or was cancelled, they may or may not be, and an append with the same keys settles which.

**Deduplication.** A draft with a ``key`` that the same channel was given before, within the last
`DEDUPLICATION_KEYS` keys, is not appended again: its place in the answer holds the first one's id.

**History.** Each channel keeps what its drafts' `Retention` says, and a *floor*: the id after which
nothing was dropped. `read` compares with it, so a hole is always told and never guessed.

**Followers.** `follow` names a function that is called on the event loop with batches of events, in
order, never twice at once, and that does not wait. `head` is the id of the last event that it was
given (before the first: of the log when following began), so ``read(..., until=head)`` plus
what the function is given from then on is the log without a seam.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.event import Cursor, Draft, Event, EventId

DEDUPLICATION_KEYS = 100_000
"""How many deduplication keys a broker remembers at least."""

Deliver = Callable[[Sequence[Event]], None]


@dataclass(frozen=True, slots=True)
class Slice:
    """What `Broker.read` found. ``events`` are in id order over all channels that were asked for."""

    events: Sequence[Event]
    more: bool = False
    """True if the limit cut the slice; read on after ``events[-1].id``."""
    gaps: Mapping[str, EventId | None] = field(default_factory=dict)
    """Channels that lost events after ``after``, each with the oldest id that it still holds."""


class Broker(ABC):
    """See the module's docstring for the contract."""

    @property
    @abstractmethod
    def head(self) -> EventId:
        """The id of the last event that the follower was given."""

    @property
    @abstractmethod
    def is_up(self) -> bool:
        """Whether the log can be reached just now."""

    @property
    @abstractmethod
    def last_before_start(self) -> int | None:
        """When (unix ms) the log's last event came that is older than this process; None if it has none."""

    @abstractmethod
    async def start(self) -> None:
        """Connect. Raises StartupError where the log can never be used as it is configured."""

    @abstractmethod
    async def close(self) -> None:
        """Stop following and let go of everything; harmless when repeated."""

    @abstractmethod
    def follow(self, deliver: Deliver) -> None:
        """Give every event from now on to ``deliver``. Called once, after `start`."""

    @abstractmethod
    async def append(self, drafts: Sequence[Draft], cursor: Cursor | None = None) -> list[EventId]:
        """Append a batch, and store how far its source has read, in one transaction.

        Returns the id of each draft. Raises Unavailable for temporary trouble. Cancelling leaves open
        whether the batch is in the log.
        """

    @abstractmethod
    async def read(self, channels: Sequence[str], after: EventId, until: EventId, limit: int) -> Slice:
        """Return the first ``limit`` events of these channels with ``after < id <= until``.

        Raises Unavailable for temporary trouble. Cancelling is safe.
        """

    @abstractmethod
    async def newest(self, channels: Sequence[str], count: int) -> EventId:
        """Return the id after which lie exactly the last ``count`` events of these channels that are kept.

        Where fewer are kept, the id lies before all of them. Raises Unavailable. Cancelling is safe.
        """

    @abstractmethod
    async def latest(self) -> EventId:
        """Return the id of the last event in the log, whether the follower has it already or not."""

    @abstractmethod
    async def cursor(self, source: str) -> str | None:
        """Return the position last stored for a source. Raises Unavailable. Cancelling is safe."""
