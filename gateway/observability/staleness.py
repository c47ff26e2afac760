"""Finds sources and channels that have been silent for longer than their ``stale_after``."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

log = structlog.get_logger("gateway")

CHECK_INTERVAL_SECONDS = 1.0
"""Interval of the check."""


@dataclass(slots=True)
class StalenessWatch:
    """A source or channel with ``stale_after``. Times are unix milliseconds."""

    kind: str
    """``source`` or ``channel``."""
    name: str
    stale_after_seconds: float
    is_critical: bool
    read_last_event_ms: Callable[[], int | None]
    """Returns the time of its last event: 0 for never, None while this node does not receive its events."""
    listening_since_ms: int | None = None
    is_stale: bool = False

    def update(self, now: int) -> bool:
        """Update ``is_stale``, and return whether it changed."""
        last = self.read_last_event_ms()
        if last is None:
            self.listening_since_ms = None
        elif self.listening_since_ms is None:
            self.listening_since_ms = now  # silence counts from the time at which this node began to listen
        was_stale, silent_ms = self.is_stale, 0
        if last is not None and self.listening_since_ms is not None:
            silent_ms = now - max(last, self.listening_since_ms)
        self.is_stale = silent_ms > self.stale_after_seconds * 1000
        return was_stale != self.is_stale


class StalenessMonitor:
    """Updates all watches; `run` is its task."""

    def __init__(self, watches: Iterable[StalenessWatch], clock: Callable[[], int]) -> None:
        self.watches: Sequence[StalenessWatch] = tuple(watches)
        self._clock = clock

    def reconfigure(self, watches: Iterable[StalenessWatch]) -> None:
        """Look after these instead; how those of them are that were there before stays known."""
        before = {(each.kind, each.name): each for each in self.watches}
        self.watches = tuple(watches)
        for each in self.watches:
            known = before.get((each.kind, each.name))
            if known is not None:
                each.listening_since_ms, each.is_stale = known.listening_since_ms, known.is_stale

    def unready_reasons(self) -> list[str]:
        """Return a reason for each critical source or channel that is stale: it makes the node unready."""
        return [
            f"{each.kind} {each.name} is stale" for each in self.watches if each.is_stale and each.is_critical
        ]

    def stale_samples(self, kind: str) -> dict[tuple[str, ...], float]:
        """Return the gauge's samples by name: 1 for stale, 0 for not."""
        return {(each.name,): float(each.is_stale) for each in self.watches if each.kind == kind}

    def is_stale(self, kind: str, name: str) -> bool | None:
        """Tell whether a source or channel is stale; None if it has no ``stale_after``."""
        return next((each.is_stale for each in self.watches if (each.kind, each.name) == (kind, name)), None)

    def update_all(self) -> None:
        """Update all watches, and log each change."""
        now = self._clock()
        for each in self.watches:
            if each.update(now):
                write = log.warning if each.is_stale else log.info
                write(
                    "staleness_started" if each.is_stale else "staleness_ended",
                    **{each.kind: each.name},
                    after=each.stale_after_seconds,
                )

    async def run(self) -> None:
        """Update all watches each second until cancelled."""
        while True:
            self.update_all()
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)
