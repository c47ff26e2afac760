"""Keeps a source running: starts it, starts it again for ever, stops it, and knows how it is."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from gateway.backoff import Backoff
from gateway.event import Cursor, EventId, Record
from gateway.sources.base import Source, SourceState, SourceStatus
from gateway.sources.publisher import Publisher

log = structlog.get_logger("gateway.sources")


HEALTHY_MS = 10_000
"""How long (milliseconds) a source must have been up for its next failure to be retried at once."""


class Supervisor:
    """Owns the task of one source, and is the `Feed` that the source talks to.

    A source that broke may have missed records until it is connected again. Where it was last known
    to be whole is kept across any number of tries, and the gap is in the log before the first record
    after it.
    """

    def __init__(
        self,
        source: Source,
        publisher: Publisher,
        clock: Callable[[], int],
    ) -> None:
        self._source = source
        self._publisher = publisher
        self._clock = clock
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None
        self._heard = clock()
        self._gap_since: int | None = None
        self._tried = asyncio.Event()
        self.state: SourceState = publisher.state

    def start(self, whole_until: int | None = None) -> None:
        """Begin. Needs a running loop.

        ``whole_until`` (unix ms) is up to when a log from before this process is known to be whole.
        """
        self._gap_since = whole_until
        self._change("starting")
        self._task = asyncio.create_task(self._run(), name=f"source {self.state.name}")

    async def stop(self) -> None:
        """End the source and wait for it; harmless when repeated."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def connected(self) -> None:
        since, self._gap_since = self._gap_since, None
        if since is not None:
            try:
                await self._publisher.tell_gap("source_interrupted", since)
            except BaseException:
                self._gap_since = since  # still untold
                raise
            log.info("source_recovered", source=self.state.name, gap_ms=self._clock() - since)
        else:
            log.info("source_up", source=self.state.name)
        self.alive()
        self.state.last_error = None
        self._change("up")
        self._tried.set()

    async def tried(self) -> None:
        """Wait until the first try is over, either way."""
        await self._tried.wait()

    def exposed(self) -> None:
        """Say that from now on somebody may listen: what a first connection misses is a gap too."""
        if self.state.status != "up" and self._gap_since is None:
            self._gap_since = self._heard

    def alive(self) -> None:
        self._heard = self._clock()

    async def publish(self, records: Sequence[Record], cursor: Cursor | None = None) -> None:
        await self._publisher.publish(records, cursor)

    async def publish_all(self, records: Sequence[Record]) -> list[EventId]:
        return await self._publisher.publish_all(records)

    def reject(self, reason: str) -> None:
        self._publisher.reject(reason)

    async def _run(self) -> None:
        while True:
            try:
                await self._source.run(self)
                error: Exception | None = None
            except Exception as caught:
                error = caught
            self._down(error)
            await asyncio.sleep(self._backoff.next())

    def _down(self, error: Exception | None) -> None:
        self._tried.set()
        if self._gap_since is None:
            self._gap_since = self._heard
        if self.state.status == "up" and self._clock() - self.state.since >= HEALTHY_MS:
            self._backoff.reset()  # not at the connection: one that dies at once would spin, with gaps
        text = "ended" if error is None else str(error) or type(error).__name__
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
