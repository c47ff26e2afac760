"""Boards: what has ended leaves nothing behind, however many names there were."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.broker import memory as memory_board
from gateway.broker.memory import MemoryBoard
from gateway.broker.shared_store import Seat
from gateway.broker.sqlite import shared_store as sqlite_board
from gateway.broker.sqlite.broker import SqliteBroker
from gateway.core.clock import unix_ms


async def test_names_of_seats_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each subject that ever bought a ticket has one."""
    monkeypatch.setattr(memory_board, "NAMES", 3)
    board = MemoryBoard(unix_ms)
    for number in range(10):
        assert await board.seats([Seat(f"tickets:{number}", "a", 1)], 60.0) == [True]
    assert len(board._seats) == 3


async def test_ended_seats_leave_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a name that nobody asks for again."""
    clock = [1000.0]
    monkeypatch.setattr(sqlite_board, "boot_time", lambda: clock[0])
    broker = SqliteBroker(tmp_path / "log.db", clock=unix_ms)
    await broker.start()
    try:
        assert await broker.board.seats([Seat("a", "x", 1), Seat("a", "y", 1)], 60.0) == [True, False]
        clock[0] += 61
        assert await broker.board.seats([Seat("b", "x", 1)], 60.0) == [True]
        with closing(sqlite3.connect(tmp_path / "log.db")) as file:
            assert file.execute("SELECT name FROM seats").fetchall() == [("b",)]
    finally:
        await broker.close()
