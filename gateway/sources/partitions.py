"""Helpers of sources with partitions: discovery, stored offsets, and appends to several at once."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from gateway.config.template import Template
from gateway.core.event import FencingToken
from gateway.sources.context import SourceContext

P = TypeVar("P")
"""A partition: a Redis stream's key, or a partition of a Kafka topic."""

OffsetT = TypeVar("OffsetT")


async def discover_partitions(
    context: SourceContext,
    patterns: Sequence[Template],
    list_partitions: Callable[[Template], Awaitable[Iterable[P]]],
) -> tuple[dict[P, bool], list[str]]:
    """Return the partitions of all patterns, and the names of the patterns that were not watched before.

    True stands for a partition that appeared under a watched pattern, and is therefore read from its
    beginning. Pass the names to `mark_watched` once the partitions' offsets are stored.
    """
    found: dict[P, bool] = {}
    unwatched = []
    for pattern in patterns:
        name = f"*{pattern.redis_pattern}"
        is_watched = await context.read_offset(name) is not None
        if not is_watched:
            unwatched.append(name)
        for partition in await list_partitions(pattern):
            found[partition] = found.get(partition, False) or is_watched
    return found, unwatched


async def mark_watched(context: SourceContext, names: Iterable[str], fence: FencingToken) -> None:
    """Store that these patterns are watched from now on, by whichever node."""
    for name in names:
        await context.publish([], "watched", fence, partition=name)


async def read_stored_offset(
    context: SourceContext, partition: str, parse: Callable[[str], OffsetT | None]
) -> OffsetT | None:
    """Return the stored offset of a partition, or None if there is none that ``parse`` understands."""
    text = await context.read_offset(partition)
    return None if text is None else parse(text)


async def gather_all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await all of it, then raise the first error: nothing may run on after the caller has gone on."""
    jobs = list(work)
    if len(jobs) == 1:  # the common case of one busy stream: no task (bench row: ingest)
        await jobs[0]
        return
    for result in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
