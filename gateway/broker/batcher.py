"""Batches the requests of concurrent callers, so that many of them share one exchange with a slow peer.

While a batch is on its way, requests queue up and form the next one: a batch grows with the load, and a
single request waits for nothing.
"""

import asyncio
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


class Batcher(Generic[T, R]):
    """Sends requests in batches, one batch at a time, in the order of `submit`.

    ``send`` receives a batch and returns one result per request; a result that is an exception is raised
    to that caller alone. If ``send`` raises Unavailable, all callers of the batch receive it. Any other
    exception goes to ``on_failure``, and the callers receive Unavailable. The next batch is sent in any case.
    ``weigh`` returns a request's units and bytes. ``noun`` names the requests in error messages.

    `run` is the sending loop; run it as a supervised task. Not thread-safe.
    """

    def __init__(
        self,
        send: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        limits: BatchLimits,
        *,
        noun: str,
        weigh: Callable[[T], tuple[int, int]],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._send = send
        self._limits = limits
        self._noun = noun
        self._weigh = weigh
        self._on_failure = on_failure
        self._pending: dict[asyncio.Future[R], tuple[T, int, int]] = {}
        self._waiting_count = self._waiting_bytes = 0
        self._wakeup = asyncio.Event()
        self._is_closed = False

    async def submit(self, request: T) -> R:
        """Send a request with the next batch and return its result.

        Raises Unavailable where too many requests wait, where the batch failed, and after `close`. A request
        that is cancelled before its batch is formed is not sent; later it may or may not have had its effect.
        """
        if self._is_closed:
            raise Unavailable(SHUTTING_DOWN)
        units, size = self._weigh(request)
        if self._waiting_count >= self._limits.max_waiting:
            raise Unavailable(f"{self._waiting_count} {self._noun} are waiting already", retry_after=2)
        if self._waiting_count and self._waiting_bytes + size > self._limits.max_waiting_bytes:
            raise Unavailable(
                f"{self._waiting_bytes} bytes of {self._noun} are waiting already", retry_after=2
            )
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._pending[result] = request, units, size
        self._waiting_count += 1
        self._waiting_bytes += size
        self._wakeup.set()
        try:
            return await result
        finally:
            self._pending.pop(result, None)
            self._waiting_count -= 1
            self._waiting_bytes -= size

    async def run(self) -> None:
        """Send batches until `close` was called and no request is left.

        If cancelled, the callers of the batch under way receive Unavailable; the others stay queued.
        """
        while True:
            while self._pending:
                await self._send_batch(self._take_batch())
            if self._is_closed:
                return
            self._wakeup.clear()
            await self._wakeup.wait()

    def close(self) -> None:
        """Reject new requests, and let `run` return once those that wait are sent; harmless when repeated."""
        self._is_closed = True
        self._wakeup.set()

    def reject_pending(self) -> None:
        """Raise Unavailable to the callers whose requests were not sent; call it after `run` has ended."""
        _reject(self._pending, SHUTTING_DOWN)
        self._pending.clear()

    def _take_batch(self) -> dict[asyncio.Future[R], T]:
        batch: dict[asyncio.Future[R], T] = {}
        units = size = 0
        for result, (request, request_units, request_size) in self._pending.items():
            if batch and (units >= self._limits.batch_units or size >= self._limits.batch_bytes):
                break
            batch[result] = request
            units += request_units
            size += request_size
        for result in batch:
            del self._pending[result]
        return batch

    async def _send_batch(self, batch: dict[asyncio.Future[R], T]) -> None:
        try:
            for caller, result in zip(batch, await self._send(list(batch.values())), strict=True):
                if caller.done():
                    continue
                if isinstance(result, Exception):
                    caller.set_exception(result)
                else:
                    caller.set_result(result)
        except Unavailable as error:
            _reject(batch, error.message)
        except asyncio.CancelledError:
            _reject(batch, SHUTTING_DOWN)
            raise
        except Exception as error:
            self._on_failure(error)
            _reject(batch, f"the {self._noun} failed; the gateway's logging has the cause")


def _reject(callers: Iterable[asyncio.Future[R]], message: str) -> None:
    for caller in callers:
        if not caller.done():
            caller.set_exception(Unavailable(message))
