"""What becomes of each client in each scenario, and why where it is not the best that can be.

`check` compares a run with it both ways: a client that got better fails as well. docs/clients.md is made from it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tests.clients.catalog import CLIENTS, EVENTS
from tests.clients.trial import STOPS, WHOLE

BEST: Mapping[str, str] = {
    "gap": "gap reported",
    "token expired": STOPS,
    "heartbeats": "quiet",
    "heartbeats as events": "quiet",
}
"""The best outcome of a scenario, where that is not that all is there once, in order, and nothing else."""

MOMENTS = (
    "between two events",
    "before the headers",
    "after `event:`",
    "within the data",
    "within a character",
    "after the data, before the id",
    "within the id",
    "after the id, before the blank line",
)
DELIVERY = ("data", "data, byte by byte", "envelope", "envelope, byte by byte")
CUTS = tuple(f"cut {moment}" for moment in MOMENTS)
ENDS = tuple(f"ended {moment}" for moment in MOMENTS)
SCENARIOS = (
    *DELIVERY,
    *CUTS,
    *ENDS,
    *("drain", "kill", "age", "overload", "gap", "token expired", "token renewed"),
    *("heartbeats", "heartbeats as events", "dead"),
)


NOT_OURS = ("data", "data, byte by byte", "heartbeats as events")
"""Scenarios that client/client.js cannot be asked: it reads envelopes, and asks for heartbeats as it needs them."""

NOT_OF_MESSAGES = ("cut after `event:`", "ended after `event:`")
"""Scenarios that ours over EventSource cannot be asked: with ``format=message`` there is no such line."""


@dataclass(frozen=True)
class Loss:
    """One thing that a client does by its design, and what comes of it."""

    why: str
    outcomes: Mapping[str, str] = field(default_factory=dict)
    """By scenario."""


_NO_WATCHDOG = Loss("it does not detect a silently dead connection", {"dead": "lost 1"})
_HEADERS_ONCE = Loss(
    "its headers are set once, so it reconnects with the old token", {"token renewed": STOPS}
)
_TORN_ID = Loss(
    "it adopts an id before its event is complete, so the event is skipped",
    {f"{kind} after the id, before the blank line": "lost 3" for kind in ("cut", "ended")},
)
_FETCH_DATA = Loss(
    "it drops empty lines at the beginning of data, and a byte order mark at the beginning of a line",
    {
        "data": "alters all of them, only a line end, a byte order mark",
        "data, byte by byte": "alters all of them, a byte order mark",
    },
)
_TORN_END = Loss(
    "it delivers an incomplete event when the stream ends: torn, twice, or with half an id, which causes a gap",
    {
        "ended within the data": "torn 1",
        "ended after the data, before the id": "twice 3",
        "ended within the id": "lost 4 5, gap reported",
    },
)

LOSSES: Mapping[str, tuple[Loss, ...]] = {
    "eventsource": (_NO_WATCHDOG,),
    "eventsource-client": (
        Loss("it evaluates no status but 204, and retries for ever", {"token expired": "retries for ever"}),
        _NO_WATCHDOG,
    ),
    "event-source-polyfill": (_HEADERS_ONCE,),
    "reconnecting-eventsource": (
        Loss("it reconnects whatever the status was", {"token expired": "retries for ever"}),
        _NO_WATCHDOG,
    ),
    "launchdarkly-eventsource": (_HEADERS_ONCE,),
    "sse.js": (
        _TORN_END,
        Loss(
            "a character that is cut in two is delivered as a replacement character",
            {"ended within a character": "torn 1"},
        ),
        Loss(
            "it reconnects whatever the status was, with headers that are set once",
            {"token expired": "retries for ever", "token renewed": "retries for ever"},
        ),
        _NO_WATCHDOG,
    ),
    "@microsoft/fetch-event-source": (
        Loss(
            "it treats a clean end as final, and never reconnects",
            dict.fromkeys((*ENDS, "drain", "age", "overload", "token renewed"), STOPS),
        ),
        Loss(_TORN_ID.why, {"cut after the id, before the blank line": "lost 3"}),
        _FETCH_DATA,
        _NO_WATCHDOG,
    ),
    "@microsoft/fetch-event-source, with retry": (_TORN_ID, _FETCH_DATA, _NO_WATCHDOG),
    "sseclient-py": (_TORN_END,),
    "tmaxmax/go-sse (Go)": (_NO_WATCHDOG,),
    "eventsource-client (Rust)": (_HEADERS_ONCE,),
    "curl": (
        Loss(
            "`--speed-time` samples five seconds at a time, in which a comment has too few bytes: "
            "it needs `heartbeat=event`",
            {"heartbeats": "reconnects"},
        ),
    ),
    "aiohttp-sse-client2": (
        Loss(
            "it raises when a connection is cut or cannot be made, or on half a character",
            {
                **dict.fromkeys((*CUTS, "drain", "kill", "gap", "overload", "dead"), STOPS),
                "ended within a character": STOPS,
            },
        ),
        Loss(
            "it strips leading blanks and trailing line ends",
            {
                "data": "alters all of them, a line end last, only a line end, leading blanks, only a blank",
                "data, byte by byte": "alters all of them",
            },
        ),
        _HEADERS_ONCE,
    ),
}


def asked_in(scenario: str) -> Collection[str]:
    """Return the clients that a scenario is for."""
    if scenario in NOT_OF_MESSAGES:
        return set(CLIENTS) - {"sse-gateway-client, over EventSource"}
    return EVENTS if scenario in NOT_OURS else CLIENTS


def expected(scenario: str, client: str) -> str:
    """Return what becomes of a client in a scenario."""
    for loss in LOSSES.get(client, ()):
        if scenario in loss.outcomes:
            return loss.outcomes[scenario]
    return BEST.get(scenario, WHOLE)


def check(scenario: str, found: Mapping[str, str]) -> None:
    """Compare what became of clients with what is expected. Raises AssertionError that names those that differ."""
    assert scenario in SCENARIOS
    assert set(found) == set(asked_in(scenario))
    wrong = {
        client: {"found": what, "expected": expected(scenario, client)}
        for client, what in found.items()
        if what != expected(scenario, client)
    }
    assert not wrong, (scenario, wrong)
