"""A publisher that keeps a rate, in a thread of its own."""

import threading
import time
from collections.abc import Callable, Sequence

Publish = Callable[[Sequence[bytes]], None]


class Paced:
    """Publishes groups of events at fixed times; behind its schedule it goes on at once.

    Use it as a context manager: leaving it stops the thread.
    """

    def __init__(
        self, publish: Publish, make: Callable[[], bytes], *, rate: float, group: int, events: int
    ) -> None:
        self._publish, self._make = publish, make
        self._every, self._group, self._events = group / rate, group, events
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.published = 0
        self.seconds = 0.0
        self.error = ""

    def __enter__(self) -> "Paced":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self, seconds: float) -> None:
        """Wait until all are published, or stop it after so many seconds."""
        self._thread.join(seconds)
        self._stop.set()
        self._thread.join()

    @property
    def rate(self) -> float:
        """Events a second that were published."""
        return self.published / self.seconds if self.seconds else 0.0

    def _run(self) -> None:
        started = time.monotonic()
        try:
            while self.published < self._events and not self._stop.is_set():
                due = started + self.published / self._group * self._every
                if (ahead := due - time.monotonic()) > 0 and self._stop.wait(ahead):
                    break
                self._publish([self._make() for _ in range(self._group)])
                self.published += self._group
                self.seconds = time.monotonic() - started
        except (OSError, RuntimeError) as error:
            self.error = f"publishing failed: {error}"
