"""Seats on a board that fails: nobody hangs, nobody is refused for it, and nothing stays taken."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway.broker.memory import MemoryBoard
from gateway.broker.shared_store import Seat
from gateway.core.clock import unix_ms
from gateway.core.errors import Draining, Unavailable
from gateway.streams.quotas import users
from gateway.streams.quotas.users import UserFull, Users
from tests.support.deadline import safety_net
from tests.support.gateway import eventually


class Board(MemoryBoard):
    """A board that others share, and that does what a test wants."""

    is_shared = True

    def __init__(self) -> None:
        super().__init__(unix_ms)
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def seats(self, wanted: Sequence[Seat], seconds: float) -> list[bool]:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await super().seats(wanted, seconds)

    async def leave(self, seats: Sequence[Seat]) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        await super().leave(seats)


@asynccontextmanager
async def counting(board: Board, limit: int = 2) -> AsyncIterator[Users]:
    counted = Users(board, limit)
    counted.start()
    try:
        yield counted
    finally:
        board.gate.set()
        await counted.stop()


async def enter(counted: Users, member: str) -> None:
    counted.enter("user", member)
    try:
        await counted.confirm("user", member)
    except BaseException:
        counted.leave("user", member)
        raise


@pytest.mark.parametrize(
    "error", [Unavailable("away"), OSError(23, "too many open files"), ValueError("odd")]
)
async def test_a_board_that_fails_lets_this_node_decide(error: Exception) -> None:
    """Whatever it is: each who asks gets an answer, and the next one too."""
    board = Board()
    async with counting(board) as counted:
        board.error = error
        async with safety_net():
            await enter(counted, "a")
            await enter(counted, "b")
        with pytest.raises(UserFull):
            await enter(counted, "c")
        board.error = None
        counted.leave("user", "a")
        async with safety_net():
            await enter(counted, "c")


async def test_seats_that_could_not_be_given_back_are_given_back_later() -> None:
    """A hiccup of the log must not cost users their seats for a minute."""
    board = Board()
    async with counting(board) as counted:
        await enter(counted, "a")
        board.error = Unavailable("away")
        counted.leave("user", "a")
        await asyncio.sleep(0.05)
        assert board._seats
        board.error = None
        await eventually(lambda: not board._seats)


async def test_seats_are_given_back_while_others_are_asked_for() -> None:
    """Somebody who opens and closes all the time must not keep others out."""
    board = Board()
    async with counting(board, 1) as counted:
        await enter(counted, "victim")
        counted.leave("user", "victim")
        busy = True

        async def spam(number: int) -> None:
            while busy:
                counted.enter(f"spammer {number}", "x")
                await counted.confirm(f"spammer {number}", "x")
                counted.leave(f"spammer {number}", "x")

        spammers = [asyncio.create_task(spam(number)) for number in range(20)]
        try:
            async with safety_net():
                await enter(counted, "victim again")
        finally:
            busy = False
            await asyncio.gather(*spammers)


async def test_a_board_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while this node's own count decides."""
    monkeypatch.setattr(users, "CONFIRM_SECONDS", 0.05)
    board = Board()
    async with counting(board) as counted:
        board.gate.clear()
        async with safety_net():
            await enter(counted, "a")


async def test_a_stop_answers_all_who_wait() -> None:
    """They are told that the node drains, and wait for nothing."""
    board = Board()
    counted = Users(board, 1)
    counted.start()
    board.gate.clear()
    waiting = [asyncio.create_task(enter(counted, str(number))) for number in range(1)]
    await asyncio.sleep(0.01)
    late = asyncio.create_task(counted.confirm("other", "x"))
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
    monkeypatch.setattr(users, "CONFIRM_SECONDS", 3600.0)
    board = Board()
    async with counting(board) as counted, safety_net():
        await enter(counted, "gone")
        board.error = error
        counted.leave("user", "gone")
        for member in ("one", "two"):
            await enter(counted, member)
        assert counted._asking == []
        board.error = None


async def test_seats_to_give_back_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients come and go for as long as the board is away; what is not given back ends by itself."""
    monkeypatch.setattr(users, "LEAVING", 10)
    board = Board()
    async with counting(board) as counted, safety_net():
        board.error = Unavailable("away")
        for number in range(100):
            counted.enter(f"user{number}", "a")
            counted.leave(f"user{number}", "a")
            if number % 20 == 0:
                await asyncio.sleep(0)  # some are being given back just now
            assert len(counted._leaving) <= 10
        await eventually(lambda: len(counted._leaving) == 10)
