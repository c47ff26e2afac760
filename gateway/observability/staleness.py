"""Sources and channels that ought to say something now and then, and have been silent for too long."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

log = structlog.get_logger("gateway")

TICK_SECONDS = 1.0
"""How often is looked."""


@dataclass(slots=True)
class Watched:
    """One that has ``stale_after``. Times are unix milliseconds."""

    kind: str
    """``source`` or ``channel``."""
    name: str
    seconds: float
    critical: bool
    last: Callable[[], int | None]
    """When it last said something: 0 for never, None while this node would not hear it."""
    since: int | None = None
    is_stale: bool = False

    def look(self, now: int) -> bool:
        """Bring ``is_stale`` up to date, and return whether it changed."""
        last = self.last()
        if last is None:
            self.since = None
        elif self.since is None:
            self.since = now  # silence counts from when this node began to listen
        silent = 0 if last is None or self.since is None else now - max(last, self.since)
        was, self.is_stale = self.is_stale, silent > self.seconds * 1000
        return was != self.is_stale


class Freshness:
    """Looks after all of them; `run` is its task."""

    def __init__(self, watched: Iterable[Watched], clock: Callable[[], int]) -> None:
        self.watched: Sequence[Watched] = tuple(watched)
        self._clock = clock

    def reconfigure(self, watched: Iterable[Watched]) -> None:
        """Look after these instead; how those of them are that were there before stays known."""
        before = {(each.kind, each.name): each for each in self.watched}
        self.watched = tuple(watched)
        for each in self.watched:
            known = before.get((each.kind, each.name))
            if known is not None:
                each.since, each.is_stale = known.since, known.is_stale

    def failing(self) -> list[str]:
        """Return what makes a node unready: the stale ones that are critical."""
        return [
            f"{each.kind} {each.name} is stale" for each in self.watched if each.is_stale and each.critical
        ]

    def samples(self, kind: str) -> dict[tuple[str, ...], float]:
        """Return 1 for each stale one and 0 for the others, by name, for a gauge."""
        return {(each.name,): float(each.is_stale) for each in self.watched if each.kind == kind}

    def is_stale(self, kind: str, name: str) -> bool | None:
        """Tell whether one is stale; None where nobody asked to know."""
        return next((each.is_stale for each in self.watched if (each.kind, each.name) == (kind, name)), None)

    def look(self) -> None:
        """Bring all up to date; one line in the log for each that changed."""
        now = self._clock()
        for each in self.watched:
            if each.look(now):
                tell = log.warning if each.is_stale else log.info
                tell(
                    "stale" if each.is_stale else "fresh_again", **{each.kind: each.name}, after=each.seconds
                )

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(TICK_SECONDS)
