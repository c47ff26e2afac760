"""The board in the log's file: two tables beside it."""

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from gateway.broker.shared_store import QuotaSlot, SharedStore

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

RunOnDatabase = Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]


class SqliteSharedStore(SharedStore):
    """``ask`` runs a function in a thread, ``change`` in a transaction too."""

    def __init__(
        self, run: RunOnDatabase, run_in_transaction: RunOnDatabase, clock: Callable[[], int]
    ) -> None:
        self._run = run
        self._run_in_transaction = run_in_transaction
        self._clock = clock
        self._boot_id = boot_id()

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        now = self._clock()

        def put(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM notes WHERE until <= ?", (now,))
            db.execute("REPLACE INTO notes VALUES (?, ?, ?)", (name, value, now + round(seconds * 1000)))

        await self._run_in_transaction(put)

    async def get(self, name: str) -> bytes | None:
        now = self._clock()

        def get(db: sqlite3.Connection) -> bytes | None:
            row = db.execute("SELECT value FROM notes WHERE name = ? AND until > ?", (name, now)).fetchone()
            return None if row is None else bytes(row[0])

        found: bytes | None = await self._run(get)
        return found

    async def acquire_slots(self, slots: Sequence[QuotaSlot], seconds: float) -> list[bool]:
        boot, now = self._boot_id, seconds_since_boot()

        def take(db: sqlite3.Connection) -> list[bool]:
            db.execute("DELETE FROM seats WHERE until <= ?", (now,))
            return [_acquire_slot(db, seat, boot, now + seconds) for seat in slots]

        had: list[bool] = await self._run_in_transaction(take)
        return had

    async def release_slots(self, slots: Sequence[QuotaSlot]) -> None:
        rows = [(seat.name, seat.member) for seat in slots]
        await self._run_in_transaction(
            lambda db: db.executemany("DELETE FROM seats WHERE name = ? AND member = ?", rows)
        )


def _is_taken(db: sqlite3.Connection, slot: QuotaSlot) -> bool:
    found = db.execute("SELECT 1 FROM seats WHERE name = ? AND member = ?", (slot.name, slot.member))
    return found.fetchone() is not None


def _is_full(db: sqlite3.Connection, slot: QuotaSlot) -> bool:
    if not slot.limit:
        return True
    last = db.execute("SELECT 1 FROM seats WHERE name = ? LIMIT 1 OFFSET ?", (slot.name, slot.limit - 1))
    return last.fetchone() is not None


def boot_id() -> str:
    """Return what names this boot of the kernel (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def seconds_since_boot() -> float:
    """Return seconds of a clock that all processes of a boot share and nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _acquire_slot(db: sqlite3.Connection, slot: QuotaSlot, boot: str, until: float) -> bool:
    if slot.limit is not None and not _is_taken(db, slot) and _is_full(db, slot):
        db.execute("DELETE FROM seats WHERE name = ? AND boot <> ?", (slot.name, boot))
        if _is_full(db, slot):
            return False
    db.execute("REPLACE INTO seats VALUES (?, ?, ?, ?)", (slot.name, slot.member, boot, until))
    return True
