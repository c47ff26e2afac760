"""Large webhook bodies are checked one at a time."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from gateway.core.errors import RecordRejected, Unavailable
from gateway.sources import webhook as module
from gateway.sources.webhook import LARGE_BODY_BYTES, THREADED_BODY_BYTES, BodyChecker


async def test_large_checks_run_one_at_a_time() -> None:
    """Many large posts at once would take a hundred MiB each."""
    checks = BodyChecker()
    running, most = [0], [0]
    lock = threading.Lock()

    def check() -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.01)
        with lock:
            running[0] -= 1
        return threading.get_ident()

    threads = await asyncio.gather(*(checks.run(LARGE_BODY_BYTES + 1, check) for _ in range(6)))
    assert most == [1]
    assert threading.get_ident() not in threads, "the loop goes on meanwhile"
    assert await checks.run(THREADED_BODY_BYTES, threading.get_ident) == threading.get_ident()
    assert await checks.run(LARGE_BODY_BYTES, threading.get_ident) != threading.get_ident()


async def held(checks: BodyChecker) -> tuple["asyncio.Task[None]", Callable[[], None]]:
    """Start a check that blocks; return its task, and a function that ends it."""
    begun, end = threading.Event(), threading.Event()

    def check() -> None:
        begun.set()
        end.wait()

    task = asyncio.create_task(checks.run(LARGE_BODY_BYTES + 1, check))
    await asyncio.to_thread(begun.wait)
    return task, end.set


async def test_waiting_for_a_turn_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender would time out instead of being asked to retry."""
    monkeypatch.setattr(module, "LARGE_BODY_WAIT_SECONDS", 0.01)
    checks = BodyChecker()
    task, end = await held(checks)
    with pytest.raises(Unavailable):
        await checks.run(LARGE_BODY_BYTES + 1, lambda: None)
    assert await checks.run(LARGE_BODY_BYTES, lambda: 1) == 1, "others do not wait"
    end()
    await task
    assert await checks.run(LARGE_BODY_BYTES + 1, lambda: 2) == 2


async def test_the_turn_of_a_sender_that_left_ends_with_its_check() -> None:
    """A cancelled request would block all later large bodies, or let another one in too early."""
    checks = BodyChecker()
    task, end = await held(checks)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    next_one = asyncio.create_task(checks.run(LARGE_BODY_BYTES + 1, lambda: 1))
    await asyncio.sleep(0.01)
    assert not next_one.done()
    end()
    assert await next_one == 1


async def test_a_check_that_fails_ends_its_turn() -> None:
    """After a rejected body, all later large ones would wait in vain."""

    def check() -> None:
        raise RecordRejected("no", code="bad_json")

    checks = BodyChecker()
    for _ in range(3):
        with pytest.raises(RecordRejected):
            await checks.run(LARGE_BODY_BYTES + 1, check)
