"""Shared stores: expired entries and slots must not pile up."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gateway.broker import memory_shared_store as memory_store
from gateway.broker.memory_shared_store import MemorySharedStore
from gateway.broker.shared_store import QuotaSlot
from gateway.broker.sqlite import shared_store as sqlite_store
from gateway.broker.sqlite.broker import SqliteBroker
from gateway.core.clock import unix_ms


async def test_quotas_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota per subject that ever bought a ticket would fill the memory."""
    monkeypatch.setattr(memory_store, "MAX_QUOTA_NAMES", 3)
    store = MemorySharedStore(unix_ms)
    for number in range(10):
        assert await store.acquire_slots([QuotaSlot(f"tickets:{number}", "a", 1)], 60.0) == [True]
    assert len(store._slots) == 3


async def test_expired_slots_leave_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expired slots of a quota that is never acquired again would fill the file."""
    clock = [1000.0]
    monkeypatch.setattr(sqlite_store, "seconds_since_boot", lambda: clock[0])
    broker = SqliteBroker(tmp_path / "log.db", clock=unix_ms)
    await broker.start()
    try:
        assert await broker.shared_store.acquire_slots(
            [QuotaSlot("a", "x", 1), QuotaSlot("a", "y", 1)], 60.0
        ) == [True, False]
        clock[0] += 61
        assert await broker.shared_store.acquire_slots([QuotaSlot("b", "x", 1)], 60.0) == [True]
        with closing(sqlite3.connect(tmp_path / "log.db")) as file:
            assert file.execute("SELECT name FROM seats").fetchall() == [("b",)]
    finally:
        await broker.close()
