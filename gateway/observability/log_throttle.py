"""What clients cause is told seldom: their number must not decide how long the log is."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from gateway.core.bounded import short
from gateway.core.rate_limit import Rate

SECONDS = 60.0
"""How often one thing is told."""

THINGS = 1000
"""Things that are remembered; the oldest is forgotten first."""

LINES_PER_SECOND = 10.0
"""Most lines of all things together."""


class Seldom:
    """Decides whether a line is worth writing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # when, and how often since
        self._rate = Rate(LINES_PER_SECOND, clock)

    def tell(self, thing: Hashable) -> int | None:
        """Return how often a thing happened since it was told last, this time included; None: say nothing.

        It is a text, a number, or a tuple of them.
        """
        if isinstance(thing, str):
            thing = short(thing)
        elif isinstance(thing, tuple):
            thing = tuple([short(each) if isinstance(each, str) else each for each in thing])
        now = self._clock()
        at, count = self._told.get(thing, (now - SECONDS, 0))
        if now - at < SECONDS or not self._rate.try_take():
            self._told[thing] = at, count + 1
            count = -1
        else:
            self._told[thing] = now, 0
        if len(self._told) > THINGS:
            self._told.popitem(last=False)
        return count + 1 or None
