"""What sources share: the state they report, the log they write to, and errors of their upstreams."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from gateway.core.errors import SourceError
from gateway.core.event import AppendedIds, Draft, EventId, FencingToken, SourceOffset

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
