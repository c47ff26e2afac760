"""`SharedStore` in the log's file: the tables ``notes`` and ``seats``."""

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.broker.shared_store import QuotaSlot, SharedStore
from gateway.broker.sqlite.connections import SqliteConnections
from gateway.broker.sqlite.event_log import SqliteEventLog


class SqliteSharedStore(SharedStore):
    """The store of all processes on one file. ``clock`` returns unix milliseconds."""

    def __init__(self, connections: SqliteConnections, clock: Callable[[], int]) -> None:
        self._connections = connections
        self._clock = clock
        self._boot_id = boot_id()

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        now = self._clock()
        row = (name, value, now + round(seconds * 1000))

        def put(store: SqliteEventLog) -> None:
            store.db.execute("DELETE FROM notes WHERE until <= ?", (now,))
            store.db.execute("REPLACE INTO notes VALUES (?, ?, ?)", row)

        await self._connections.change(put)

    async def get(self, name: str) -> bytes | None:
        query, values = "SELECT value FROM notes WHERE name = ? AND until > ?", (name, self._clock())
        row = await self._connections.read(lambda store: store.db.execute(query, values).fetchone())
        return None if row is None else bytes(row[0])

    async def acquire_slots(self, slots: Sequence[QuotaSlot], seconds: float) -> list[bool]:
        boot, now = self._boot_id, seconds_since_boot()

        def acquire(store: SqliteEventLog) -> list[bool]:
            store.db.execute("DELETE FROM seats WHERE until <= ?", (now,))
            return [_acquire_slot(store.db, slot, boot, now + seconds) for slot in slots]

        return await self._connections.change(acquire)

    async def release_slots(self, slots: Sequence[QuotaSlot]) -> None:
        rows = [(slot.name, slot.member) for slot in slots]
        statement = "DELETE FROM seats WHERE name = ? AND member = ?"
        await self._connections.change(lambda store: store.db.executemany(statement, rows))


def boot_id() -> str:
    """Return the id of this boot of the kernel (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def seconds_since_boot() -> float:
    """Return seconds of a clock that all processes of a boot share and nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _acquire_slot(db: sqlite3.Connection, slot: QuotaSlot, boot: str, until: float) -> bool:
    if slot.limit is not None and not _is_held(db, slot) and _is_full(db, slot.name, slot.limit):
        db.execute("DELETE FROM seats WHERE name = ? AND boot <> ?", (slot.name, boot))
        if _is_full(db, slot.name, slot.limit):
            return False
    db.execute("REPLACE INTO seats VALUES (?, ?, ?, ?)", (slot.name, slot.member, boot, until))
    return True


def _is_held(db: sqlite3.Connection, slot: QuotaSlot) -> bool:
    found = db.execute("SELECT 1 FROM seats WHERE name = ? AND member = ?", (slot.name, slot.member))
    return found.fetchone() is not None


def _is_full(db: sqlite3.Connection, name: str, limit: int) -> bool:
    last = db.execute("SELECT 1 FROM seats WHERE name = ? LIMIT 1 OFFSET ?", (name, limit - 1))
    return limit == 0 or last.fetchone() is not None
