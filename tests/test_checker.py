"""The checker itself: a verdict that cannot find fault proves nothing."""

from tests.checker import Client, judge
from tests.support.eventsource import Message


def client(*seen: int | str) -> Client:
    """A client of one channel that saw these numbers, and ``gap`` where it says so; "5@3" has the id of 3."""
    out = Client(0, ["c"], [])
    for place, what in enumerate(seen):
        if what == "gap":
            out.seen.append(Message("stream.gap", '{"channel":"c"}', ""))
            continue
        number, _, at = str(what).partition("@")
        id = f"1-{at or place}"
        out.seen.append(Message("message", f'{{"channel":"c","id":"{id}","payload":{number}}}', id))
    return out


def test_a_whole_stream_is_clean() -> None:
    """The last event (-1) is no number."""
    verdict = judge([client(0, 1, 2, -1), client(0, 1, 2, -1)])
    assert verdict.is_clean
    assert not verdict.told
    assert verdict.events == 8


def test_every_fault_is_found() -> None:
    """A hole at the start and in between, with and without a word; a repetition; an order that goes back."""
    assert judge([client(1, 2)]).lost == [(0, "c", "0..0")]
    assert judge([client(0, 3)]).lost == [(0, "c", "1..2")]
    told = judge([client(0, "gap", 3)])
    assert (told.lost, told.told) == ([], [(0, "c", "1..2")])
    assert judge([client(0, "gap", 3, 5)]).lost == [(0, "c", "4..4")], "a gap excuses what is before it"
    assert judge([client(0, 1, 1)]).duplicated == [(0, "c", "1 again, at 2")]
    assert judge([client(0, "1@0")]).reordered == [(0, "c", "1-0 after 1-0")]
