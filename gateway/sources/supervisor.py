"""Keeps a source running: starts it, starts it again for ever, stops it, and knows how it is."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from gateway.config.template import Template
from gateway.core.backoff import Backoff
from gateway.core.errors import GatewayError, SourceError
from gateway.core.event import Fence, Record
from gateway.net.tls_errors import in_plain_words
from gateway.observability.background import UNCOUNTED, Background
from gateway.sources.base import Gap, Source, SourceState, SourceStatus
from gateway.sources.election import Election, Leases
from gateway.sources.publisher import Publisher, cursor_name
from gateway.webhooks.formats.base import Outcome

log = structlog.get_logger("gateway.sources")


MAX_ERROR = 300
"""Characters of an error that are shown."""

HEALTHY_MS = 10_000
"""How long (milliseconds) a source must have been up for its next failure to be retried at once."""


class Supervisor:
    """Owns the tasks of one source, and is the `Feed` that the source talks to."""

    def __init__(
        self,
        source: Source,
        publisher: Publisher,
        leases: Leases,
        position: Callable[[str], Awaitable[str | None]],
        parts: Callable[[str], Awaitable[list[str]]],
        clock: Callable[[], int],
        background: Background = UNCOUNTED,
    ) -> None:
        self._source = source
        self._background = background
        self._publisher = publisher
        self._position = position
        self._parts = parts
        self._clock = clock
        self._backoff = Backoff()
        self._tasks: list[asyncio.Task[None]] = []
        self._tried = asyncio.Event()
        self._election = Election(publisher.state.name, leases)
        self.missed_since: int | None = None
        self.state: SourceState = publisher.state

    def start(self) -> None:
        """Begin. Needs a running loop."""
        self._change("starting")
        self._tasks = [self._background.start("source", self._run)]
        if self.reads_once:
            self._tasks.append(self._background.start("election", self._election.run))

    async def stop(self) -> None:
        """End the source, then give its lease to another node; harmless when repeated."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
            await asyncio.wait([task])  # not `await task`: its cancellation must not hide the caller's

    def retopic(self, topics: Sequence[Template]) -> bool:
        """Let the source read other topics without a pause; False if it cannot."""
        return self._source.retopic(topics)

    def connected(self) -> None:
        log.info("source_up", source=self.state.name)
        self.state.last_error = None
        self._change("up")
        self._election.stand()
        self._tried.set()

    async def tried(self) -> None:
        """Wait until the first try is over, either way."""
        await self._tried.wait()

    def exposed(self) -> None:
        """Say that from now on somebody may listen: what a first connection misses is a gap."""
        if self.state.status != "up":
            self.missed_since = self._clock()

    async def publish(
        self,
        records: Sequence[Record],
        position: str | None = None,
        fence: Fence | None = None,
        *,
        part: str = "",
        gap: Gap | None = None,
    ) -> None:
        await self._publisher.publish(records, position, fence, part, gap)
        if gap is not None:
            self.missed_since = None
            about = {name: value for name, value in gap._asdict().items() if value is not None}
            log.warning("source_gap_told", source=self.state.name, **about)

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        return await self._publisher.publish_each(records, atomic=atomic)

    def repeated(self, events: int) -> None:
        self._publisher.repeated(events)

    def reject(self, reason: str, why: str = "", **about: str | None) -> None:
        self._publisher.reject(reason, why, **about)

    @property
    def reads_once(self) -> bool:
        """Whether one node reads the source for all of them."""
        return self._source.reads_once

    def renew(self) -> None:
        self._election.renew()

    async def leading(self) -> Fence:
        return await self._election.won()

    @property
    def is_leading(self) -> bool:
        return self._election.fence is not None

    def heard(self) -> int | None:
        """When the last record came (unix ms), 0 for never; None while another node reads the source."""
        return (self.state.last_event or 0) if self.is_leading or not self.reads_once else None

    async def position(self, part: str = "") -> str | None:
        return await self._position(cursor_name(self.state.name, part))

    async def parts(self) -> list[str]:
        return await self._parts(self.state.name)

    def lags(self, records: int) -> None:
        self.state.lag = records

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while True:
            error: Exception | None = None
            try:
                # A task of its own: clients' own cancellations (aiokafka) come out of it like ours.
                await asyncio.create_task(self._source.run(self), name=f"run {self.state.name}")
            except asyncio.CancelledError:
                if task.cancelling():
                    raise
                error = SourceError("its client gave up")
            except Exception as caught:
                error = caught
                if not isinstance(caught, (GatewayError, OSError)):  # those are troubles of the upstream
                    self._background.failed("source", caught)
            self._down(error)
            await asyncio.sleep(self._backoff.next())

    def _down(self, error: Exception | None) -> None:
        self._election.resign()
        self._tried.set()
        if self.state.status == "up" and self._clock() - self.state.since >= HEALTHY_MS:
            self._backoff.reset()  # not at the connection: one that dies at once would spin, with gaps
        text = "ended" if error is None else in_plain_words(str(error)) or type(error).__name__
        text = text[:MAX_ERROR]
        # One line when it breaks and one whenever the cause changes, not one per try.
        if self.state.status != "down" or self.state.last_error != text:
            log.warning("source_down", source=self.state.name, error=text, retrying=True)
        self.state.last_error = text
        self.state.restarts += 1
        self._change("down")

    def _change(self, status: SourceStatus) -> None:
        if self.state.status != status:
            self.state.status = status
            self.state.since = self._clock()
