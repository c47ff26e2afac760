"""Batches the requests of concurrent callers, so that many of them share one exchange with a slow peer.

While a batch is on its way, requests queue up and form the next one: a batch grows with the load, and a
single request waits for nothing.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.core.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")

SHUTTING_DOWN = "the gateway is shutting down"


MAX_WAITING = 10_000
"""Requests that may wait, those under way included, before more are rejected."""

MAX_WAITING_BYTES = 256 * 1024 * 1024
"""Their bytes; a single larger request is accepted while no other waits."""


@dataclass(slots=True, eq=False)
class Pending(Generic[T, R]):
    """A request and the future that its caller waits for."""

    request: T
    units: int
    size: int
    result: "asyncio.Future[R]"


class Batcher(Generic[T, R]):
    """Queues requests, and forms batches in the order of `submit`.

    Either `run` sends the batches, as a supervised task; or a thread calls `take_batch`, without a detour
    through the event loop between two batches. ``wake`` wakes that thread: it is called on the loop when a
    request joins an empty queue. ``weigh`` returns a request's units and bytes, and a batch is closed after
    ``batch_units`` or ``batch_bytes``. ``noun`` names the requests in error messages.
    """

    def __init__(
        self,
        noun: str,
        weigh: Callable[[T], tuple[int, int]],
        *,
        batch_units: int,
        batch_bytes: int,
        wake: Callable[[], object] | None = None,
    ) -> None:
        self.is_closed = False
        self._noun, self._weigh = noun, weigh
        self._batch_units, self._batch_bytes = batch_units, batch_bytes
        self._pending: deque[Pending[T, R]] = deque()
        self._waiting_count = self._waiting_bytes = 0
        self._wakeup = asyncio.Event()
        self._wake = wake or self._wake_run

    async def submit(self, request: T) -> R:
        """Queue a request and return its result.

        Raises Unavailable where too many requests wait, where the batch failed, and after `close`. A request
        is sent even if its caller is cancelled.
        """
        if self.is_closed:
            raise Unavailable(SHUTTING_DOWN)
        units, size = self._weigh(request)
        if self._waiting_count >= MAX_WAITING:
            raise Unavailable(f"{self._waiting_count} {self._noun} are waiting already", retry_after=2)
        if self._waiting_count and self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise Unavailable(
                f"{self._waiting_bytes} bytes of {self._noun} are waiting already", retry_after=2
            )
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._pending.append(Pending(request, units, size, result))
        if len(self._pending) == 1:
            self._wake()
        self._waiting_count += 1
        self._waiting_bytes += size
        return await result

    def close(self) -> None:
        """Reject new requests; those that wait can still be sent. Harmless when repeated."""
        self.is_closed = True
        self._wake()

    def take_batch(self) -> list[Pending[T, R]]:
        """Remove the next batch from the queue and return it; empty if no request waits. For one thread."""
        batch: list[Pending[T, R]] = []
        queue, max_units, max_bytes = self._pending, self._batch_units, self._batch_bytes
        units = size = 0
        while queue and units < max_units and size < max_bytes:
            batch.append(pending := queue.popleft())
            units += pending.units
            size += pending.size
        return batch

    async def run(
        self,
        send: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Send batches, one at a time, until `close` was called and no request is left.

        ``send`` returns one result per request, for `settle`. If it raises Unavailable, the batch is rejected
        with it; other exceptions go to ``on_failure``. Cancelling rejects the batch under way alone.
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
                results = await send([pending.request for pending in batch])
            except Unavailable as error:
                self.reject(batch, error.message)
            except asyncio.CancelledError:
                self.reject(batch, SHUTTING_DOWN)
                raise
            except Exception as error:
                on_failure(error)
                self.reject(batch, f"the {self._noun} failed; the gateway's logging has the cause")
            else:
                self.settle(batch, results)

    def settle(self, batch: Sequence[Pending[T, R]], results: Sequence[R | Exception]) -> None:
        """Return each result to its caller; one that is an exception is raised to that caller alone."""
        self._waiting_count -= len(batch)
        self._waiting_bytes -= sum([pending.size for pending in batch])
        for pending, result in zip(batch, results, strict=True):
            if pending.result.done():  # cancelled
                continue
            if isinstance(result, Exception):
                pending.result.set_exception(result)
            else:
                pending.result.set_result(result)

    def reject(self, batch: Sequence[Pending[T, R]], message: str) -> None:
        """Raise Unavailable to all callers of a batch."""
        self.settle(batch, [Unavailable(message) for _ in batch])

    def reject_pending(self) -> None:
        """Raise Unavailable to the callers whose requests were not sent; call it after the last batch."""
        self.reject(list(self._pending), SHUTTING_DOWN)
        self._pending.clear()

    def _wake_run(self) -> None:
        self._wakeup.set()
