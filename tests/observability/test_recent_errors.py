"""What is remembered of refusals."""

from itertools import count

from gateway.observability.recent_errors import KEPT, Refusal, Refusals


def test_the_same_refusal_of_the_same_cause_is_one() -> None:
    """A page that retries for ever would hide all others."""
    clock = count(1)
    refusals = Refusals(lambda: next(clock))
    for whose in ("a", "b", "a"):
        refusals.note(whose, Refusal("stream", "origin_refused", f"no {whose}", origin=whose))
    assert [(each.origin, each.times, each.at_ms) for each in refusals.newest()] == [("a", 2, 3), ("b", 1, 2)]


def test_a_flood_is_bounded() -> None:
    """Strangers decide how many addresses they come from, not how much memory that takes."""
    refusals = Refusals()
    for number in range(10 * KEPT):
        refusals.note(number, Refusal("stream", "address_limit", "no", client=str(number)))
    newest = refusals.newest()
    assert [each.client for each in newest] == [str(n) for n in range(10 * KEPT - 1, 9 * KEPT - 1, -1)]
