"""Nothing grows with what callers, senders and upstreams send: a minute of the soak, with small caches."""

import os
from pathlib import Path

import pytest

from tests.soak.run import LOGS, soak, table

pytestmark = [pytest.mark.extended, pytest.mark.timeout(900)]

MINUTES = float(os.environ.get("SOAK_MINUTES", "1"))
CACHES = 150
"""Entries that a cache may hold: each visit of a run is a new name, so all are full in the first third."""


@pytest.mark.parametrize("log", LOGS)
async def test_everything_is_flat_after_warm_up(log: str, tmp_path: Path) -> None:
    """A gateway that runs for months must not need more memory, rows or keys than after its first hour."""
    found = await soak(log, tmp_path, minutes=MINUTES, steady=30, rate=15, caches=CACHES, idle=3)
    assert not found.growing, table(found)
    visits = ("bearer", "job", "keyed_post", "public_post", "signed_post", "stranger", "ticket")
    assert min(found.done[kind] for kind in visits) > 2 * CACHES, found.done
    assert found.done["failed"] < sum(found.done.values()) / 100, found.done
