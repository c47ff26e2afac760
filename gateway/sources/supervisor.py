"""Keeps one source running: starts it, restarts it after every failure, and stops it."""

import asyncio
from collections.abc import Sequence

import structlog

from gateway.config.template import Template
from gateway.core.backoff import Backoff
from gateway.core.clock import unix_ms
from gateway.core.errors import GatewayError, SourceError
from gateway.net.tls_errors import humanize_tls_error
from gateway.observability.task_supervisor import TaskSupervisor
from gateway.sources.context import Source, SourceContext

log = structlog.get_logger("gateway.sources")


MAX_ERROR_CHARACTERS = 300
"""Characters of an error that are logged and shown."""

HEALTHY_MS = 10_000
"""How long (milliseconds) a source must have been up for its next failure to be retried at once."""


class Supervisor:
    """Owns the tasks of one source: its run, and the election if one node reads it for all."""

    def __init__(self, source: Source, context: SourceContext, background: TaskSupervisor) -> None:
        self.context = context
        self.state = context.state
        self.is_exclusive = source.is_exclusive
        self._source = source
        self._background = background
        self._backoff = Backoff()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the tasks. Needs a running loop."""
        self.state.set_status("starting", unix_ms())
        self._tasks = [self._background.start_task("source", self._run)]
        if self.is_exclusive:
            self._tasks.append(self._background.start_task("election", self.context.election.run))

    async def stop(self) -> None:
        """End the source, then release its lease; harmless when repeated."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
            await asyncio.wait([task])  # not `await task`: its cancellation must not hide the caller's

    def update_topics(self, topics: Sequence[Template]) -> bool:
        """Switch the source to other topics without a pause; False if it has to be restarted for that."""
        return self._source.update_topics(topics)

    def mark_serving(self) -> None:
        """Note that clients may subscribe from now on: records missed before the source is up are a gap."""
        if self.state.status != "up":
            self.context.missed_since_ms = unix_ms()

    @property
    def has_lease(self) -> bool:
        """Whether this node holds the source's lease."""
        return self.context.has_lease

    def last_record_ms(self) -> int | None:
        """When the last record came (unix ms), 0 for never; None while another node reads the source."""
        return (self.state.last_record_ms or 0) if self.has_lease or not self.is_exclusive else None

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while True:
            error: Exception | None = None
            try:
                # A task of its own: a cancellation that a client library raises by itself (aiokafka) comes
                # out of it like ours, and `cancelling` tells them apart.
                await asyncio.create_task(self._source.run(self.context), name=f"run {self.state.name}")
            except asyncio.CancelledError:
                if task.cancelling():
                    raise
                error = SourceError("the client library cancelled its own task")
            except Exception as caught:
                error = caught
                if not isinstance(caught, (GatewayError, OSError)):  # those are the upstream's failures
                    self._background.record_failure("source", caught)
            self._handle_failure(error)
            await asyncio.sleep(self._backoff.next_delay())

    def _handle_failure(self, error: Exception | None) -> None:
        self.context.election.resign()
        self.context.first_attempt_done.set()
        if self.state.status == "up" and unix_ms() - self.state.status_since_ms >= HEALTHY_MS:
            self._backoff.reset()  # not on connecting: one that fails right after it would spin, with gaps
        text = "ended" if error is None else humanize_tls_error(str(error)) or type(error).__name__
        text = text[:MAX_ERROR_CHARACTERS]
        # One line when it breaks and one whenever the cause changes, not one per attempt.
        if self.state.status != "down" or self.state.last_error != text:
            log.warning("source_down", source=self.state.name, error=text, retrying=True)
        self.state.last_error = text
        self.state.restarts += 1
        self.state.set_status("down", unix_ms())
