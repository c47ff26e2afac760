"""What a source is, what it is given, and what is known about it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol

from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.errors import StaleFencingToken, Unavailable
from gateway.core.event import FencingToken, Record
from gateway.webhooks.formats.base import Outcome

RETRY_SECONDS = 0.3
"""How long a reader waits while the log is away, jittered."""

SourceStatus = Literal["starting", "up", "down", "off"]


@dataclass(slots=True)
class SourceState:
    """How a source is doing; times are unix milliseconds."""

    name: str
    type: str
    is_critical: bool
    status: SourceStatus = "starting"
    status_since_ms: int = 0
    last_record_ms: int | None = None
    last_error: str | None = None
    received: int = 0
    duplicates: int = 0
    """Events that were sent again, and not made again."""
    restarts: int = 0
    lag: int | None = None
    """Records that wait upstream, where the source can tell."""
    rejected: dict[str, int] = field(default_factory=dict)


class SourceGap(NamedTuple):
    """Records of a source, or of one of its topics, that may be lost."""

    since: int | None
    """After which moment, in unix milliseconds."""
    topic: str | None = None
    missing: int | None = None
    """How many, where that is known."""


class SourceContext(Protocol):
    """What a running source calls. What appends may raise Unavailable while the log is away."""

    def report_connected(self) -> None:
        """Say that records are flowing from now on; this node may read the source for all."""

    async def publish(
        self,
        records: Sequence[Record],
        offset: str | None = None,
        fence: FencingToken | None = None,
        *,
        partition: str = "",
        gap: SourceGap | None = None,
    ) -> None:
        """Append a gap, what the records become, and with them how far this part of the source was read.

        Records that can never become events are counted and dropped. Raises Fenced if another node
        reads the source by now.
        """

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        """Append the records, and return of each the ids of its events, or why there are none.

        With ``atomic`` all of them or none: it raises the first refusal. Nothing is counted as refused.
        """

    def count_rejection(self, reason: str, message: str = "", **details: str | None) -> None:
        """Count something that was refused before it became a record; the log gets the rest."""

    def count_duplicates(self, events: int) -> None:
        """Count events that were sent again, and are in the log already."""

    async def wait_for_lease(self) -> FencingToken:
        """Wait until this node is the one that reads the source. Cancelling is safe."""

    @property
    def has_lease(self) -> bool:
        """Whether it is just now."""

    def reacquire_lease(self) -> None:
        """Give the lease up and ask for it again: an append under way finds its fence too old."""

    async def read_offset(self, partition: str = "") -> str | None:
        """Return how far a part of the source was read, by whichever node."""

    async def list_partitions(self) -> list[str]:
        """Return the parts of the source that have a position, from whichever node."""

    def report_lag(self, records: int) -> None:
        """Say how many records wait upstream."""

    @property
    def missed_since_ms(self) -> int | None:
        """Since when (unix ms) clients listened that this source had not reached yet."""


async def read_under_lease(context: SourceContext, read: Callable[[FencingToken], Awaitable[None]]) -> None:
    """Read whenever this node has the lease, until cancelled; ``read`` ends by an error.

    Whether the last batch of a failed append is in the log is open. It cannot come later, because its
    lease is given up first, so the next turn may ask the log where to go on.
    """
    while True:
        fence = await context.wait_for_lease()
        try:
            await read(fence)
        except (StaleFencingToken, Unavailable):
            context.reacquire_lease()
            await asyncio.sleep(jittered(RETRY_SECONDS, 0.5))


class Source(ABC):
    """One upstream."""

    is_exclusive: ClassVar[bool] = True
    """Whether one node reads it for all of them, by a lease."""

    def update_topics(self, topics: Sequence[Template]) -> bool:
        """Read other topics from now on, without a pause; False from a source that must be started again."""
        return False

    @abstractmethod
    async def run(self, context: SourceContext) -> None:
        """Read until cancelled. Any exception means: start me again later.

        Cancelling is safe at any time and closes all connections.
        """
