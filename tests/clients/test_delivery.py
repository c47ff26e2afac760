"""Payloads that tempt a parser, whole and in pieces."""

import json

import pytest

from tests.clients.catalog import CLIENTS, EVENTS
from tests.clients.expected import check
from tests.clients.tap import Tap
from tests.clients.trial import HOOKS, WHOLE, all_of, publish, trying
from tests.clients.zoo import Client
from tests.support.gateway import gateway_running

pytestmark = pytest.mark.extended

LINE_ENDS = {
    "LF": "one\ntwo",
    "CR": "one\rtwo",
    "CRLF": "one\r\ntwo",
    "all of them": "\r\n\none\r\r\ntwo\n\r",
    "a line end last": "one\n",
    "only a line end": "\n",
}
ODD = {
    **LINE_ENDS,
    "U+2028 and U+0085": "one\u2028two\u2029three\x85four\x0b\x0c\x1c\x1d\x1e",
    "empty": "",
    "leading blanks": "  one",
    "leading tab": "\tone",
    "trailing blanks": "one \t ",
    "only a blank": " ",
    "a colon first": ": one",
    "what looks like fields": "id: 7\nevent: other\nretry: 1\ndata",
    "a byte order mark": "\ufeffone",
    "emoji": "😀 é 👩‍👩‍👧",
}
LONG = {"64 KB": "0123456789abcdef" * 4096, "64 KB of emoji": "😀" * 16384}
SPLIT = ("all of them", "U+2028 and U+0085", "a byte order mark", "emoji")
"""What is hard where each byte comes alone."""

LAST = {"the last": "last"}

TEXT = {**HOOKS, "channels": {"orders": {"payload": "text"}}}


def as_lines(payload: str) -> str:
    """Return a payload as an event stream delivers it: every line end is an LF."""
    return payload.replace("\r\n", "\n").replace("\r", "\n")


def given(client: Client, format: str) -> list[str]:
    """Return the payloads that a client gave its caller."""
    told = [event.data for event in client.events if not event.is_own]
    return told if format == "data" else [json.loads(data)["payload"] for data in told]


def difference(got: list[str], expected: dict[str, str]) -> str:
    """Return which payloads are not as they were published."""
    if len(got) != len(expected):
        return f"{len(got)} of {len(expected)}"
    wrong = [name for mine, (name, payload) in zip(got, expected.items(), strict=True) if mine != payload]
    return f"alters {', '.join(wrong)}" if wrong else WHOLE


@pytest.mark.parametrize(
    ("format", "drips"), [("data", False), ("envelope", False), ("data", True), ("envelope", True)]
)
async def test_odd_data_arrives_as_it_is(format: str, drips: bool) -> None:
    """A page shows something else than what was published; or half a character, where reads are short."""
    payloads = {name: ODD[name] for name in SPLIT} if drips else {**ODD, **LONG}
    payloads |= LAST
    names = EVENTS if format == "data" else list(CLIENTS)
    async with gateway_running(TEXT) as gateway:
        taps = {name: Tap(gateway.port, drips=drips) for name in names}
        async with trying(taps, f"/events?channel=orders&format={format}") as clients:
            await publish(gateway, *payloads.values(), kind="text/plain")
            await all_of(clients.values(), lambda client: "last" in given(client, format)[-1:])
            expected = {
                name: as_lines(payload) if format == "data" else payload for name, payload in payloads.items()
            }
            found = {name: difference(given(client, format), expected) for name, client in clients.items()}
            check(f"{format}, byte by byte" if drips else format, found)
