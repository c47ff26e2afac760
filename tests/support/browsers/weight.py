"""Which process of a browser is a tab's: the one that grows when the tab allocates."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.process import Process
from tests.support.browsers.tab import ALLOCATE

WEIGHT = 128 << 20
"""Bytes; nothing else that an empty page does comes near it."""


async def process_of(browser: Process, evaluate: Callable[..., Awaitable[Any]]) -> int:
    """Return the process id of the tab that ``evaluate`` reaches. Raises AssertionError if none grew."""
    before = {pid: _resident(pid) for pid in browser.family()}
    await evaluate(ALLOCATE, WEIGHT)
    grown = [pid for pid, bytes in before.items() if _resident(pid) - bytes > WEIGHT // 2]
    assert len(grown) == 1, f"these grew: {grown}"
    return grown[0]


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # it has ended
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
