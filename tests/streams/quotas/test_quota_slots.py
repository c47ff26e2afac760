"""Seats on a board that fails: nobody hangs, nobody is refused for it, and nothing stays taken."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway.broker.memory_shared_store import MemorySharedStore
from gateway.broker.shared_store import QuotaSlot
from gateway.core.clock import unix_ms
from gateway.core.errors import Draining, Unavailable
from gateway.streams.quotas import user_quotas as users
from gateway.streams.quotas.user_quotas import UserLimitReached, UserQuotas
from tests.support.deadline import safety_net
from tests.support.gateway import eventually


class ControlledSharedStore(MemorySharedStore):
    """A board that others share, and that does what a test wants."""

    is_shared = True

    def __init__(self) -> None:
        super().__init__(unix_ms)
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def acquire_slots(self, slots: Sequence[QuotaSlot], seconds: float) -> list[bool]:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await super().acquire_slots(slots, seconds)

    async def release_slots(self, slots: Sequence[QuotaSlot]) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        await super().release_slots(slots)


@asynccontextmanager
async def counting(board: ControlledSharedStore, limit: int = 2) -> AsyncIterator[UserQuotas]:
    counted = UserQuotas(board, limit)
    counted.start()
    try:
        yield counted
    finally:
        board.gate.set()
        await counted.stop()


async def enter(counted: UserQuotas, member: str) -> None:
    counted.acquire("user", member)
    try:
        await counted.reserve("user", member)
    except BaseException:
        counted.release("user", member)
        raise


@pytest.mark.parametrize(
    "error", [Unavailable("away"), OSError(23, "too many open files"), ValueError("odd")]
)
async def test_a_board_that_fails_lets_this_node_decide(error: Exception) -> None:
    """Whatever it is: each who asks gets an answer, and the next one too."""
    board = ControlledSharedStore()
    async with counting(board) as counted:
        board.error = error
        async with safety_net():
            await enter(counted, "a")
            await enter(counted, "b")
        with pytest.raises(UserLimitReached):
            await enter(counted, "c")
        board.error = None
        counted.release("user", "a")
        async with safety_net():
            await enter(counted, "c")


async def test_seats_that_could_not_be_given_back_are_given_back_later() -> None:
    """A hiccup of the log must not cost users their seats for a minute."""
    board = ControlledSharedStore()
    async with counting(board) as counted:
        await enter(counted, "a")
        board.error = Unavailable("away")
        counted.release("user", "a")
        await asyncio.sleep(0.05)
        assert board._slots
        board.error = None
        await eventually(lambda: not board._slots)


async def test_seats_are_given_back_while_others_are_asked_for() -> None:
    """Somebody who opens and closes all the time must not keep others out."""
    board = ControlledSharedStore()
    async with counting(board, 1) as counted:
        await enter(counted, "victim")
        counted.release("user", "victim")
        busy = True

        async def spam(number: int) -> None:
            while busy:
                counted.acquire(f"spammer {number}", "x")
                await counted.reserve(f"spammer {number}", "x")
                counted.release(f"spammer {number}", "x")

        spammers = [asyncio.create_task(spam(number)) for number in range(20)]
        try:
            async with safety_net():
                await enter(counted, "victim again")
        finally:
            busy = False
            await asyncio.gather(*spammers)


async def test_a_board_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while this node's own count decides."""
    monkeypatch.setattr(users, "RESERVE_TIMEOUT_SECONDS", 0.05)
    board = ControlledSharedStore()
    async with counting(board) as counted:
        board.gate.clear()
        async with safety_net():
            await enter(counted, "a")


async def test_a_stop_answers_all_who_wait() -> None:
    """They are told that the node drains, and wait for nothing."""
    board = ControlledSharedStore()
    counted = UserQuotas(board, 1)
    counted.start()
    board.gate.clear()
    waiting = [asyncio.create_task(enter(counted, str(number))) for number in range(1)]
    await asyncio.sleep(0.01)
    late = asyncio.create_task(counted.reserve("other", "x"))
    await asyncio.sleep(0.01)
    board.gate.set()
    stopping = asyncio.create_task(counted.stop())
    results = await asyncio.gather(*waiting, late, return_exceptions=True)
    await stopping
    assert all(each is None or isinstance(each, Draining) for each in results), results


@pytest.mark.parametrize("error", [Unavailable("away"), OSError(23, "too many open files")])
async def test_seats_to_give_back_hold_up_no_question(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """They come first, and while the board is away they would come first for ever."""
    monkeypatch.setattr(users, "RESERVE_TIMEOUT_SECONDS", 3600.0)
    board = ControlledSharedStore()
    async with counting(board) as counted, safety_net():
        await enter(counted, "gone")
        board.error = error
        counted.release("user", "gone")
        for member in ("one", "two"):
            await enter(counted, member)
        assert counted._pending_reservations == []
        board.error = None


async def test_seats_to_give_back_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients come and go for as long as the board is away; what is not given back ends by itself."""
    monkeypatch.setattr(users, "MAX_PENDING_RELEASES", 10)
    board = ControlledSharedStore()
    async with counting(board) as counted, safety_net():
        board.error = Unavailable("away")
        for number in range(100):
            counted.acquire(f"user{number}", "a")
            counted.release(f"user{number}", "a")
            if number % 20 == 0:
                await asyncio.sleep(0)  # some are being given back just now
            assert len(counted._pending_releases) <= 10
        await eventually(lambda: len(counted._pending_releases) == 10)
