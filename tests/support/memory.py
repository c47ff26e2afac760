"""How much memory something takes that a test does, by what Python allocated for it."""

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


class Traced:
    """Bytes that were allocated since a moment."""

    def __init__(self) -> None:
        self._before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()

    def __call__(self) -> int:
        """Return those that are there still."""
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before

    def peak(self) -> int:
        """Return the most that there were at any moment."""
        return tracemalloc.get_traced_memory()[1] - self._before


@contextmanager
def traced() -> Iterator[Traced]:
    """Yield what is allocated from now on. Slow: everything is noted."""
    gc.collect()
    tracemalloc.start()
    try:
        yield Traced()
    finally:
        tracemalloc.stop()
