"""What a source is, what it is given, and what is known about it."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol

from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.errors import Fenced, Unavailable
from gateway.core.event import Fence, Record
from gateway.webhooks.formats.base import Outcome

RETRY_SECONDS = 0.3
"""How long a reader waits while the log is away, jittered."""

SourceStatus = Literal["starting", "up", "down", "off"]


@dataclass(slots=True)
class SourceState:
    """How a source is doing; times are unix milliseconds."""

    name: str
    type: str
    critical: bool
    status: SourceStatus = "starting"
    since: int = 0
    last_event: int | None = None
    last_error: str | None = None
    received: int = 0
    duplicates: int = 0
    """Events that were sent again, and not made again."""
    restarts: int = 0
    lag: int | None = None
    """Records that wait upstream, where the source can tell."""
    rejected: dict[str, int] = field(default_factory=dict)


class Gap(NamedTuple):
    """Records of a source, or of one of its topics, that may be lost."""

    since: int | None
    """After which moment, in unix milliseconds."""
    topic: str | None = None
    missing: int | None = None
    """How many, where that is known."""


class Feed(Protocol):
    """What a running source calls. What appends may raise Unavailable while the log is away."""

    def connected(self) -> None:
        """Say that records are flowing from now on; this node may read the source for all."""

    async def publish(
        self,
        records: Sequence[Record],
        position: str | None = None,
        fence: Fence | None = None,
        *,
        part: str = "",
        gap: Gap | None = None,
    ) -> None:
        """Append a gap, what the records become, and with them how far this part of the source was read.

        Records that can never become events are counted and dropped. Raises Fenced if another node
        reads the source by now.
        """

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        """Append the records, and return of each the ids of its events, or why there are none.

        With ``atomic`` all of them or none: it raises the first refusal. Nothing is counted as refused.
        """

    def reject(self, reason: str, why: str = "", **about: str | None) -> None:
        """Count something that was refused before it became a record; the log gets the rest."""

    def repeated(self, events: int) -> None:
        """Count events that were sent again, and are in the log already."""

    async def leading(self) -> Fence:
        """Wait until this node is the one that reads the source. Cancelling is safe."""

    @property
    def is_leading(self) -> bool:
        """Whether it is just now."""

    def renew(self) -> None:
        """Give the lease up and ask for it again: an append under way finds its fence too old."""

    async def position(self, part: str = "") -> str | None:
        """Return how far a part of the source was read, by whichever node."""

    async def parts(self) -> list[str]:
        """Return the parts of the source that have a position, from whichever node."""

    def lags(self, records: int) -> None:
        """Say how many records wait upstream."""

    @property
    def missed_since(self) -> int | None:
        """Since when (unix ms) clients listened that this source had not reached yet."""


async def read_under_lease(feed: Feed, read: Callable[[Fence], Awaitable[None]]) -> None:
    """Read whenever this node has the lease, until cancelled; ``read`` ends by an error.

    Whether the last batch of a failed append is in the log is open. It cannot come later, because its
    lease is given up first, so the next turn may ask the log where to go on.
    """
    while True:
        fence = await feed.leading()
        try:
            await read(fence)
        except (Fenced, Unavailable):
            feed.renew()
            await asyncio.sleep(jittered(RETRY_SECONDS, 0.5))


class Source(ABC):
    """One upstream."""

    reads_once: ClassVar[bool] = True
    """Whether one node reads it for all of them, by a lease."""

    def retopic(self, topics: Sequence[Template]) -> bool:
        """Read other topics from now on, without a pause; False from a source that must be started again."""
        return False

    @abstractmethod
    async def run(self, feed: Feed) -> None:
        """Read until cancelled. Any exception means: start me again later.

        Cancelling is safe at any time and closes all connections.
        """
