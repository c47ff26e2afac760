"""The log throttle: one line per key and minute, and a limit for all keys together."""

from gateway.observability import log_throttle
from gateway.observability.log_throttle import LogThrottle


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_logged_once_a_minute_with_its_count() -> None:
    """A page that retries every three seconds is one line, and the next one says how often."""
    clock = Clock()
    known = LogThrottle(clock)
    told = []
    for _ in range(45):
        told.append(known.should_log("a"))
        clock.now += 3
    assert told == [1, *[None] * 19, 20, *[None] * 19, 20, *[None] * 4]
    assert known.should_log("b") == 1


def test_all_things_together_have_a_rate() -> None:
    """Clients can invent any number of keys; suppressed lines are counted in a later one."""
    clock = Clock()
    known = LogThrottle(clock)
    told = [known.should_log(number) for number in range(500)]
    assert sum(each is not None for each in told) <= log_throttle.MAX_LINES_PER_SECOND + 1
    clock.now += 1
    assert known.should_log(499) == 2


def test_memory_is_bounded() -> None:
    """Any number of things."""
    known = LogThrottle()
    for number in range(3 * log_throttle.MAX_THROTTLED_KEYS):
        known.should_log(number)
    assert len(known._last_logged) == log_throttle.MAX_THROTTLED_KEYS
