"""Long work in turns of the event loop, so that streams are written in between."""

import asyncio
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_turns(work: Iterable[T]) -> list[T]:
    """Return all of ``work``; the loop turns after each piece of it. Cancelling is safe."""
    done = []
    for piece in work:
        done.append(piece)
        await asyncio.sleep(0)
    return done
