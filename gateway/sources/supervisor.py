"""Keeps a source running: starts it, starts it again for ever, stops it, and knows how it is."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from gateway.config.template import Template
from gateway.core.backoff import Backoff
from gateway.core.errors import GatewayError, SourceError
from gateway.core.event import FencingToken, Record
from gateway.net.tls_errors import humanize_tls_error
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.sources.base import Source, SourceGap, SourceState, SourceStatus
from gateway.sources.election import Election, LeaseOperations
from gateway.sources.publisher import Publisher, offset_key
from gateway.webhooks.formats.base import Outcome

log = structlog.get_logger("gateway.sources")


MAX_ERROR_CHARACTERS = 300
"""Characters of an error that are shown."""

HEALTHY_MS = 10_000
"""How long (milliseconds) a source must have been up for its next failure to be retried at once."""


class Supervisor:
    """Owns the tasks of one source, and is the `StatusStream` that the source talks to."""

    def __init__(
        self,
        source: Source,
        publisher: Publisher,
        leases: LeaseOperations,
        read_offset: Callable[[str], Awaitable[str | None]],
        list_partitions: Callable[[str], Awaitable[list[str]]],
        clock: Callable[[], int],
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._source = source
        self._background = background
        self._publisher = publisher
        self._read_stored_offset = read_offset
        self._list_stored_partitions = list_partitions
        self._clock = clock
        self._backoff = Backoff()
        self._tasks: list[asyncio.Task[None]] = []
        self._first_attempt_done = asyncio.Event()
        self._election = Election(publisher.state.name, leases)
        self.missed_since_ms: int | None = None
        self.state: SourceState = publisher.state

    def start(self) -> None:
        """Begin. Needs a running loop."""
        self._set_status("starting")
        self._tasks = [self._background.start_task("source", self._run)]
        if self.is_exclusive:
            self._tasks.append(self._background.start_task("election", self._election.run))

    async def stop(self) -> None:
        """End the source, then give its lease to another node; harmless when repeated."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
            await asyncio.wait([task])  # not `await task`: its cancellation must not hide the caller's

    def update_topics(self, topics: Sequence[Template]) -> bool:
        """Let the source read other topics without a pause; False if it cannot."""
        return self._source.update_topics(topics)

    def report_connected(self) -> None:
        log.info("source_up", source=self.state.name)
        self.state.last_error = None
        self._set_status("up")
        self._election.enter()
        self._first_attempt_done.set()

    async def wait_first_attempt(self) -> None:
        """Wait until the first try is over, either way."""
        await self._first_attempt_done.wait()

    def mark_serving(self) -> None:
        """Say that from now on somebody may listen: what a first connection misses is a gap."""
        if self.state.status != "up":
            self.missed_since_ms = self._clock()

    async def publish(
        self,
        records: Sequence[Record],
        offset: str | None = None,
        fence: FencingToken | None = None,
        *,
        partition: str = "",
        gap: SourceGap | None = None,
    ) -> None:
        await self._publisher.publish(records, offset, fence, partition, gap)
        if gap is not None:
            self.missed_since_ms = None
            about = {name: value for name, value in gap._asdict().items() if value is not None}
            log.warning("source_gap_reported", source=self.state.name, **about)

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        return await self._publisher.publish_each(records, atomic=atomic)

    def count_duplicates(self, events: int) -> None:
        self._publisher.count_duplicates(events)

    def count_rejection(self, reason: str, message: str = "", **details: str | None) -> None:
        self._publisher.count_rejection(reason, message, **details)

    @property
    def is_exclusive(self) -> bool:
        """Whether one node reads the source for all of them."""
        return self._source.is_exclusive

    def reacquire_lease(self) -> None:
        self._election.reacquire()

    async def wait_for_lease(self) -> FencingToken:
        return await self._election.wait_for_lease()

    @property
    def has_lease(self) -> bool:
        return self._election.fence is not None

    def last_record_ms(self) -> int | None:
        """When the last record came (unix ms), 0 for never; None while another node reads the source."""
        return (self.state.last_record_ms or 0) if self.has_lease or not self.is_exclusive else None

    async def read_offset(self, partition: str = "") -> str | None:
        return await self._read_stored_offset(offset_key(self.state.name, partition))

    async def list_partitions(self) -> list[str]:
        return await self._list_stored_partitions(self.state.name)

    def report_lag(self, records: int) -> None:
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
                    self._background.record_failure("source", caught)
            self._handle_failure(error)
            await asyncio.sleep(self._backoff.next_delay())

    def _handle_failure(self, error: Exception | None) -> None:
        self._election.resign()
        self._first_attempt_done.set()
        if self.state.status == "up" and self._clock() - self.state.status_since_ms >= HEALTHY_MS:
            self._backoff.reset()  # not at the connection: one that dies at once would spin, with gaps
        text = "ended" if error is None else humanize_tls_error(str(error)) or type(error).__name__
        text = text[:MAX_ERROR_CHARACTERS]
        # One line when it breaks and one whenever the cause changes, not one per try.
        if self.state.status != "down" or self.state.last_error != text:
            log.warning("source_down", source=self.state.name, error=text, retrying=True)
        self.state.last_error = text
        self.state.restarts += 1
        self._set_status("down")

    def _set_status(self, status: SourceStatus) -> None:
        if self.state.status != status:
            self.state.status = status
            self.state.status_since_ms = self._clock()
