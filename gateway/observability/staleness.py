"""Sources and channels that ought to say something now and then, and have been silent for too long."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

log = structlog.get_logger("gateway")

CHECK_INTERVAL_SECONDS = 1.0
"""How often is looked."""


@dataclass(slots=True)
class StalenessWatch:
    """One that has ``stale_after``. Times are unix milliseconds."""

    kind: str
    """``source`` or ``channel``."""
    name: str
    stale_after_seconds: float
    is_critical: bool
    read_last_event_ms: Callable[[], int | None]
    """When it last said something: 0 for never, None while this node would not hear it."""
    listening_since_ms: int | None = None
    is_stale: bool = False

    def update(self, now: int) -> bool:
        """Bring ``is_stale`` up to date, and return whether it changed."""
        last = self.read_last_event_ms()
        if last is None:
            self.listening_since_ms = None
        elif self.listening_since_ms is None:
            self.listening_since_ms = now  # silence counts from when this node began to listen
        silent = (
            0 if last is None or self.listening_since_ms is None else now - max(last, self.listening_since_ms)
        )
        was, self.is_stale = self.is_stale, silent > self.stale_after_seconds * 1000
        return was != self.is_stale


class StalenessMonitor:
    """Looks after all of them; `run` is its task."""

    def __init__(self, watches: Iterable[StalenessWatch], clock: Callable[[], int]) -> None:
        self.watches: Sequence[StalenessWatch] = tuple(watches)
        self._clock = clock

    def replace_watches(self, watches: Iterable[StalenessWatch]) -> None:
        """Watch these instead; those that were watched before keep their state."""
        before = {(each.kind, each.name): each for each in self.watches}
        self.watches = tuple(watches)
        for each in self.watches:
            known = before.get((each.kind, each.name))
            if known is not None:
                each.listening_since_ms, each.is_stale = known.listening_since_ms, known.is_stale

    def unready_reasons(self) -> list[str]:
        """Return what makes a node unready: the stale ones that are critical."""
        return [
            f"{each.kind} {each.name} is stale" for each in self.watches if each.is_stale and each.is_critical
        ]

    def stale_samples(self, kind: str) -> dict[tuple[str, ...], float]:
        """Return 1 for each stale one and 0 for the others, by name, for a gauge."""
        return {(each.name,): float(each.is_stale) for each in self.watches if each.kind == kind}

    def is_stale(self, kind: str, name: str) -> bool | None:
        """Tell whether one is stale; None where nobody asked to know."""
        return next((each.is_stale for each in self.watches if (each.kind, each.name) == (kind, name)), None)

    def update_all(self) -> None:
        """Bring all up to date; one line in the log for each that changed."""
        now = self._clock()
        for each in self.watches:
            if each.update(now):
                tell = log.warning if each.is_stale else log.info
                tell(
                    "staleness_started" if each.is_stale else "staleness_ended",
                    **{each.kind: each.name},
                    after=each.stale_after_seconds,
                )

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.update_all()
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)
