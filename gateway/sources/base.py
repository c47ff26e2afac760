"""The interface of sources: `Source`, the `SourceContext` that it calls, and the state that it reports."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol

from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.errors import SourceError, StaleFencingToken, Unavailable
from gateway.core.event import AppendedIds, Draft, EventId, FencingToken, Record, SourceOffset
from gateway.webhooks.formats.base import Outcome

RETRY_SECONDS = 0.3
"""Pause of a reader while the log is unavailable, before jitter."""

SourceStatus = Literal["starting", "up", "down", "off"]


@dataclass(slots=True)
class SourceState:
    """The state of a source, as ``/status`` shows it; times are unix milliseconds."""

    name: str
    type: str
    is_critical: bool
    status: SourceStatus = "starting"
    status_since_ms: int = 0
    last_record_ms: int | None = None
    last_error: str | None = None
    received: int = 0
    duplicates: int = 0
    """Events that were sent again and dropped."""
    restarts: int = 0
    lag: int | None = None
    """Records that wait upstream; None where the source cannot count them."""
    rejected: dict[str, int] = field(default_factory=dict)

    def set_status(self, status: SourceStatus, now_ms: int) -> None:
        """Change the status; its time stays while the status does."""
        if self.status != status:
            self.status, self.status_since_ms = status, now_ms


class SourceGap(NamedTuple):
    """A range of records, of a source or of one of its topics, that may be lost."""

    since: int | None
    """Unix milliseconds after which records may be missing."""
    topic: str | None = None
    missing: int | None = None
    """The number of missing records, if known."""


class SourceLog(Protocol):
    """The part of a broker that sources use; see `gateway.broker.base.Broker` for the contract."""

    @property
    def head(self) -> EventId: ...

    async def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None, fence: FencingToken | None, /
    ) -> AppendedIds: ...

    async def read_offset(self, source: str, /) -> str | None: ...

    async def list_partitions(self, source: str, /) -> list[str]: ...

    async def acquire_lease(self, name: str, seconds: float, /) -> FencingToken | None: ...

    async def release_lease(self, fence: FencingToken, /) -> None: ...


class SourceContext(Protocol):
    """The gateway as a running source sees it. What reaches the log raises Unavailable while it is down."""

    def report_connected(self) -> None:
        """Report that records flow from now on, so that this node may compete for the lease."""

    async def publish(
        self,
        records: Sequence[Record],
        offset: str | None = None,
        fence: FencingToken | None = None,
        *,
        partition: str = "",
        gap: SourceGap | None = None,
    ) -> None:
        """Append a gap, the events of the records, and the offset reached in a partition, as one batch.

        Records that can never become events are counted and dropped. Raises StaleFencingToken if another
        node holds the lease by now.
        """

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        """Append the records; return for each the ids of its events, or the error that prevented them.

        ``atomic`` appends all or none, and raises the first error, which names the record's index. The
        caller counts rejections.
        """

    def count_rejection(self, reason: str, message: str = "", **details: str | None) -> None:
        """Count and log input that was rejected before it became a record; ``details`` go to the log line."""

    def count_duplicates(self, events: int) -> None:
        """Count events that were sent again and are in the log already."""

    async def wait_for_lease(self) -> FencingToken:
        """Wait until this node holds the source's lease. Cancelling is safe."""

    @property
    def has_lease(self) -> bool:
        """Whether this node holds the source's lease."""

    def reacquire_lease(self) -> None:
        """Release the lease and acquire it anew, so that an append under way is rejected as stale."""

    async def read_offset(self, partition: str = "") -> str | None:
        """Return the offset that any node last stored for a partition."""

    async def list_partitions(self) -> list[str]:
        """Return the partitions of this source that have a stored offset."""

    def report_lag(self, records: int) -> None:
        """Report how many records wait upstream."""

    @property
    def missed_since_ms(self) -> int | None:
        """Unix ms since when clients have been served although this source was not connected yet."""


async def read_under_lease(context: SourceContext, read: Callable[[FencingToken], Awaitable[None]]) -> None:
    """Call ``read`` whenever this node acquires the lease, until cancelled; ``read`` ends by an exception.

    After a failed append nobody knows whether its batch is in the log. It cannot arrive later, because the
    lease is released first, so the next call of ``read`` can rely on the stored offset.
    """
    while True:
        fence = await context.wait_for_lease()
        try:
            await read(fence)
        except (StaleFencingToken, Unavailable):
            context.reacquire_lease()
            await asyncio.sleep(jittered(RETRY_SECONDS, 0.5))


@contextmanager
def upstream_errors(
    upstream: str,
    timeout: float,
    *client_errors: type[Exception],
    describe: Callable[[str], str] = lambda text: text,
) -> Iterator[None]:
    """Turn timeouts and a client library's errors into SourceError; of an ExceptionGroup, the first error.

    ``timeout`` is the deadline (seconds) to name; ``describe`` may add to the library's message.
    """
    caught_types: tuple[type[Exception], ...] = (ExceptionGroup, TimeoutError, *client_errors)
    try:
        yield
    except caught_types as caught:
        error: Exception = caught
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, TimeoutError):
            raise SourceError(f"{upstream} gave no answer within {timeout:g} s") from None
        if isinstance(error, client_errors):
            raise SourceError(f"{upstream}: {describe(str(error) or type(error).__name__)}") from None
        raise error from None


class Source(ABC):
    """One upstream: reads records and publishes them through a `SourceContext`."""

    is_exclusive: ClassVar[bool] = True
    """Whether only the node that holds the source's lease reads it."""

    def update_topics(self, topics: Sequence[Template]) -> bool:
        """Switch to other topics without a pause; False if the source has to be restarted for that."""
        return False

    @abstractmethod
    async def run(self, context: SourceContext) -> None:
        """Read until cancelled. After any exception the supervisor starts it again.

        Cancelling is safe at any time and closes all connections.
        """
