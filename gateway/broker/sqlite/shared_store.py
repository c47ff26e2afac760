"""The board in the log's file: two tables beside it."""

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from gateway.broker.shared_store import Board, Seat

SCHEMA = """
CREATE TABLE notes (name TEXT PRIMARY KEY, value BLOB NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX notes_until ON notes (until);
CREATE TABLE seats (
    name TEXT NOT NULL,
    member TEXT NOT NULL,
    boot TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (name, member)
) WITHOUT ROWID;
CREATE INDEX seats_until ON seats (until);
"""

Work = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]


class SqliteBoard(Board):
    """``ask`` runs a function in a thread, ``change`` in a transaction too."""

    def __init__(self, ask: Work, change: Work, clock: Callable[[], int]) -> None:
        self._ask = ask
        self._change = change
        self._clock = clock
        self._boot = boot_id()

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        now = self._clock()

        def put(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM notes WHERE until <= ?", (now,))
            db.execute("REPLACE INTO notes VALUES (?, ?, ?)", (name, value, now + round(seconds * 1000)))

        await self._change(put)

    async def get(self, name: str) -> bytes | None:
        now = self._clock()

        def get(db: sqlite3.Connection) -> bytes | None:
            row = db.execute("SELECT value FROM notes WHERE name = ? AND until > ?", (name, now)).fetchone()
            return None if row is None else bytes(row[0])

        found: bytes | None = await self._ask(get)
        return found

    async def seats(self, wanted: Sequence[Seat], seconds: float) -> list[bool]:
        boot, now = self._boot, boot_time()

        def take(db: sqlite3.Connection) -> list[bool]:
            db.execute("DELETE FROM seats WHERE until <= ?", (now,))
            return [_take(db, seat, boot, now + seconds) for seat in wanted]

        had: list[bool] = await self._change(take)
        return had

    async def leave(self, seats: Sequence[Seat]) -> None:
        rows = [(seat.name, seat.member) for seat in seats]
        await self._change(lambda db: db.executemany("DELETE FROM seats WHERE name = ? AND member = ?", rows))


def _is_taken(db: sqlite3.Connection, seat: Seat) -> bool:
    found = db.execute("SELECT 1 FROM seats WHERE name = ? AND member = ?", (seat.name, seat.member))
    return found.fetchone() is not None


def _is_full(db: sqlite3.Connection, seat: Seat) -> bool:
    if not seat.limit:
        return True
    last = db.execute("SELECT 1 FROM seats WHERE name = ? LIMIT 1 OFFSET ?", (seat.name, seat.limit - 1))
    return last.fetchone() is not None


def boot_id() -> str:
    """Return what names this boot of the kernel (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def boot_time() -> float:
    """Return seconds of a clock that all processes of a boot share and nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _take(db: sqlite3.Connection, seat: Seat, boot: str, until: float) -> bool:
    if seat.limit is not None and not _is_taken(db, seat) and _is_full(db, seat):
        db.execute("DELETE FROM seats WHERE name = ? AND boot <> ?", (seat.name, boot))
        if _is_full(db, seat):
            return False
    db.execute("REPLACE INTO seats VALUES (?, ?, ?, ?)", (seat.name, seat.member, boot, until))
    return True
