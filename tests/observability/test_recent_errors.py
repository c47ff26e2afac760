"""What is remembered of refusals."""

from itertools import count

from gateway.observability.recent_errors import MAX_ERRORS, RecentError, RecentErrors


def test_the_same_refusal_of_the_same_cause_is_one() -> None:
    """A page that retries for ever would hide all others."""
    clock = count(1)
    refusals = RecentErrors(lambda: next(clock))
    for whose in ("a", "b", "a"):
        refusals.record(whose, RecentError("stream", "origin_refused", f"no {whose}", origin=whose))
    assert [(each.origin, each.count, each.last_at_ms) for each in refusals.list_newest()] == [
        ("a", 2, 3),
        ("b", 1, 2),
    ]


def test_a_flood_is_bounded() -> None:
    """Strangers decide how many addresses they come from, not how much memory that takes."""
    refusals = RecentErrors()
    for number in range(10 * MAX_ERRORS):
        refusals.record(number, RecentError("stream", "address_limit", "no", client=str(number)))
    newest = refusals.list_newest()
    assert [each.client for each in newest] == [
        str(n) for n in range(10 * MAX_ERRORS - 1, 9 * MAX_ERRORS - 1, -1)
    ]
