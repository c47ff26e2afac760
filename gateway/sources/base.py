"""What a source is, what it is given, and what is known about it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from gateway.event import Cursor, EventId, Record

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
    restarts: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


class Feed(Protocol):
    """What a running source calls. All of it may raise Unavailable while the broker is away."""

    async def connected(self) -> None:
        """Say that records are flowing from now on. If any may have been missed, this tells the gap."""

    def alive(self) -> None:
        """Say that the upstream was heard of just now."""

    async def publish(self, records: Sequence[Record], cursor: Cursor | None = None) -> None:
        """Append what the records become. Those that can never become events are counted and dropped."""

    async def publish_all(self, records: Sequence[Record]) -> list[EventId]:
        """Append all records or none, and return the ids of their events. Raises Rejected, uncounted."""

    def reject(self, reason: str) -> None:
        """Count something that was refused before it became a record."""


class Source(ABC):
    """One upstream."""

    @abstractmethod
    async def run(self, feed: Feed) -> None:
        """Read until cancelled. Any exception means: start me again later.

        Cancelling is safe at any time and closes all connections.
        """
