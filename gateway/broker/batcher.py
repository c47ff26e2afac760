"""Batches the requests of concurrent callers, so that many of them share one exchange with a slow peer.

While a batch is on its way, requests queue up and form the next one: a batch grows with the load, and a
single request waits for nothing.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.core.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")

SHUTTING_DOWN = "the gateway is shutting down"


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of a `Batcher`, in units (what a unit is, ``weigh`` decides) and in bytes."""

    max_waiting: int
    """Requests that may wait, those under way included."""
    max_waiting_bytes: int
    """Their bytes; a single larger request is accepted while no other waits."""
    batch_units: int
    """Units after which a batch is closed; a request is never divided."""
    batch_bytes: int
    """Bytes after which a batch is closed."""


@dataclass(slots=True, eq=False)
class Pending(Generic[T, R]):
    """A request and the future that its caller waits for."""

    request: T
    units: int
    size: int
    result: "asyncio.Future[R]"


class Batcher(Generic[T, R]):
    """Queues requests in the order of `submit`, and settles their callers.

    Either `run` sends the batches, as a supervised task; or a thread calls `take_batch`, between two batches
    without the event loop, and ``wake`` wakes it. ``wake`` is called on the loop when a request joins an
    empty queue. ``weigh`` returns a request's units and bytes, ``noun`` names the requests in error messages.
    """

    def __init__(
        self,
        limits: BatchLimits,
        *,
        noun: str,
        weigh: Callable[[T], tuple[int, int]],
        wake: Callable[[], object] | None = None,
    ) -> None:
        self.is_closed = False
        self._limits = limits
        self._noun = noun
        self._weigh = weigh
        self._pending: deque[Pending[T, R]] = deque()
        self._waiting_count = self._waiting_bytes = 0
        self._wakeup = asyncio.Event()
        self._wake = wake or self._wakeup.set

    async def submit(self, request: T) -> R:
        """Queue a request and return its result.

        Raises Unavailable where too many requests wait, where the batch failed, and after `close`. A request
        is sent even if its caller is cancelled.
        """
        if self.is_closed:
            raise Unavailable(SHUTTING_DOWN)
        units, size = self._weigh(request)
        if self._waiting_count >= self._limits.max_waiting:
            raise Unavailable(f"{self._waiting_count} {self._noun} are waiting already", retry_after=2)
        if self._waiting_count and self._waiting_bytes + size > self._limits.max_waiting_bytes:
            raise Unavailable(
                f"{self._waiting_bytes} bytes of {self._noun} are waiting already", retry_after=2
            )
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._pending.append(Pending(request, units, size, result))
        if len(self._pending) == 1:
            self._wake()
        self._waiting_count += 1
        self._waiting_bytes += size
        try:
            return await result
        finally:
            self._waiting_count -= 1
            self._waiting_bytes -= size

    def close(self) -> None:
        """Reject new requests; those that wait can still be sent. Harmless when repeated."""
        self.is_closed = True
        self._wake()

    def take_batch(self) -> list[Pending[T, R]]:
        """Remove the next batch from the queue and return it; empty if no request waits.

        Any one thread may call this, since only `submit` adds requests and nothing else removes them.
        """
        batch: list[Pending[T, R]] = []
        units = size = 0
        while self._pending and units < self._limits.batch_units and size < self._limits.batch_bytes:
            batch.append(pending := self._pending.popleft())
            units += pending.units
            size += pending.size
        return batch

    async def run(
        self,
        send: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Send batches, one at a time, until `close` was called and no request is left.

        ``send`` returns one result per request, for `settle`. If it raises Unavailable, all callers of the
        batch receive it; any other exception goes to ``on_failure``, and the callers receive Unavailable. If
        cancelled, the callers of the batch under way receive Unavailable; the others stay queued.
        """
        while True:
            batch = self.take_batch()
            if not batch:
                if self.is_closed:
                    return
                self._wakeup.clear()
                await self._wakeup.wait()
                continue
            try:
                settle(batch, await send([pending.request for pending in batch]))
            except Unavailable as error:
                reject(batch, error.message)
            except asyncio.CancelledError:
                reject(batch, SHUTTING_DOWN)
                raise
            except Exception as error:
                on_failure(error)
                reject(batch, f"the {self._noun} failed; the gateway's logging has the cause")

    def reject_pending(self) -> None:
        """Raise Unavailable to the callers whose requests were not sent; call it after the last batch."""
        reject(self._pending, SHUTTING_DOWN)
        self._pending.clear()


def settle(batch: Iterable[Pending[T, R]], results: Iterable[R | Exception]) -> None:
    """Return each result to its caller; one that is an exception is raised to that caller alone."""
    for pending, result in zip(batch, results, strict=True):
        if pending.result.done():
            continue
        if isinstance(result, Exception):
            pending.result.set_exception(result)
        else:
            pending.result.set_result(result)


def reject(batch: Iterable[Pending[T, R]], message: str) -> None:
    """Raise Unavailable to all callers of a batch."""
    for pending in batch:
        if not pending.result.done():
            pending.result.set_exception(Unavailable(message))
