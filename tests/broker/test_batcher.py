"""Batches of concurrent requests: their bounds, and what callers receive when a batch fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway.broker.batcher import Batcher
from gateway.core.errors import StaleFencingToken, Unavailable
from tests.support.deadline import safety_net
from tests.support.gateway import eventually


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reject more than 6 requests or 100 bytes."""
    monkeypatch.setattr("gateway.broker.batcher.MAX_WAITING", 6)
    monkeypatch.setattr("gateway.broker.batcher.MAX_WAITING_BYTES", 100)


class Peer:
    """Records batches, and answers each request with itself once the gate is open."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def send(self, requests: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(requests))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [StaleFencingToken("stale") if each == "stale" else each for each in requests]


@asynccontextmanager
async def running(
    send: Callable[[Sequence[str]], Awaitable[Sequence[str | Exception]]],
    failures: list[Exception] | None = None,
) -> AsyncIterator[Batcher[str, str]]:
    """Run a batcher; a request is one unit and as many bytes as characters."""
    batcher: Batcher[str, str] = Batcher(
        "requests", lambda request: (1, len(request)), batch_units=3, batch_bytes=50
    )
    task = asyncio.create_task(batcher.run(send, ([] if failures is None else failures).append))
    try:
        async with safety_net():
            yield batcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_requests_queue_up_into_batches_in_order() -> None:
    """Appends of one sender must not overtake each other, and a batch must end at its limits."""
    peer = Peer()
    async with running(peer.send) as batcher:
        results = await asyncio.gather(
            *(batcher.submit(each) for each in ("a", "b", "c", "d", "e" * 50, "f"))
        )
    assert results == ["a", "b", "c", "d", "e" * 50, "f"]
    assert peer.batches == [["a", "b", "c"], ["d", "e" * 50], ["f"]]


@pytest.mark.parametrize(
    ("requests", "message"), [(["x"] * 6, "6 requests"), (["x" * 60, "y" * 40], "100 bytes")]
)
async def test_waiting_requests_are_bounded(requests: list[str], message: str) -> None:
    """A peer that hangs must not fill the memory: more requests are rejected, and later accepted again."""
    peer = Peer()
    peer.gate.clear()
    async with running(peer.send) as batcher:
        waiting = [asyncio.create_task(batcher.submit(each)) for each in requests]
        await eventually(lambda: peer.batches)
        with pytest.raises(Unavailable, match=message):
            await batcher.submit("more")
        peer.gate.set()
        assert await asyncio.gather(*waiting) == requests
        assert await batcher.submit("z" * 1000) == "z" * 1000


async def test_a_cancelled_request_is_sent_and_holds_up_no_other() -> None:
    """A caller that gives up must neither block the requests behind its own nor lose its event."""
    peer = Peer()
    peer.gate.clear()
    async with running(peer.send) as batcher:
        first = asyncio.create_task(batcher.submit("first"))
        await eventually(lambda: peer.batches)
        second, third = (asyncio.create_task(batcher.submit(each)) for each in ("second", "third"))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        peer.gate.set()
        assert await third == "third"
    assert peer.batches == [["first"], ["second", "third"]]


async def test_a_failure_reaches_the_callers_it_concerns() -> None:
    """One bad request must fail alone, a failed batch as a whole, and the next one must work."""
    peer, failures = Peer(), list[Exception]()
    async with running(peer.send, failures) as batcher:
        results = await asyncio.gather(batcher.submit("a"), batcher.submit("stale"), return_exceptions=True)
        assert results[0] == "a"
        assert isinstance(results[1], StaleFencingToken)
        for error in (Unavailable("down"), ValueError("broken")):
            peer.error = error
            for result in await asyncio.gather(
                batcher.submit("a"), batcher.submit("b"), return_exceptions=True
            ):
                assert isinstance(result, Unavailable)
        peer.error = None
        assert await batcher.submit("a") == "a"
    assert [type(each) for each in failures] == [ValueError]


async def test_no_caller_waits_for_ever_at_the_stop() -> None:
    """Requests under way and requests that wait are rejected; a close alone sends them first."""
    peer = Peer()
    peer.gate.clear()
    async with running(peer.send) as batcher:
        waiting = [asyncio.create_task(batcher.submit(str(number))) for number in range(5)]
        await eventually(lambda: peer.batches)
    batcher.close()
    batcher.reject_pending()
    assert all(
        isinstance(each, Unavailable) for each in await asyncio.gather(*waiting, return_exceptions=True)
    )
    with pytest.raises(Unavailable):
        await batcher.submit("late")

    peer.gate.set()
    async with running(peer.send) as batcher:
        waiting = [asyncio.create_task(batcher.submit(str(number))) for number in range(5)]
        await asyncio.sleep(0)
        batcher.close()
        assert await asyncio.gather(*waiting) == ["0", "1", "2", "3", "4"]
