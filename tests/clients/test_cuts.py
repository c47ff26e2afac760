"""A connection that is cut at every kind of moment, while the third of five events is on its way."""

import re

import pytest

from tests.clients.catalog import CLIENTS
from tests.clients.expected import MOMENTS, asked_in, check
from tests.clients.tap import Tap
from tests.clients.trial import HOOKS, all_of, is_back, outcome, publish_orders, settled, trying
from tests.clients.zoo import Client
from tests.support.gateway import gateway_running

pytestmark = pytest.mark.extended

PLACES = {
    "between two events": rb'"n":2,.*?\n\n',
    "before the headers": rb"",
    "after `event:`": rb'\nevent: order\n(?=data: [^\n]*"n":3,)',
    "within the data": rb'"n":3,',
    "within a character": rb'"n":3,"text":"\xf0\x9f',
    "after the data, before the id": rb'"n":3,[^\n]*\n',
    "within the id": rb'"n":3,[^\n]*\nid: \d{5}',
    "after the id, before the blank line": rb'"n":3,[^\n]*\nid: [^\n]*\n',
}
"""Where a connection is cut for each moment: at the end of the first match."""


def cuts(moment: str) -> list[re.Pattern[bytes]]:
    """Return where connections are cut for a moment; only a client that comes back can miss its headers."""
    places = [PLACES[moment]]
    if moment == "before the headers":
        places.insert(0, PLACES["between two events"])
    return [re.compile(place, re.DOTALL) for place in places]


def resumes(client: Client) -> str:
    """Return where a client put the id of the last event when it came back."""
    head, _, fields = client.tap.lines[-1].asked.partition(b"\r\n")
    has_header = b"\r\nlast-event-id: " in b"\r\n" + fields.lower()
    return "header" if has_header else "query" if b"lastEventId=" in head else "nowhere"


@pytest.mark.parametrize("kind", ["cut", "ended"])
async def test_a_cut_loses_nothing(kind: str) -> None:
    """What a page has after a cut is not what was published, or not what the docs say of its client."""
    async with gateway_running(HOOKS) as gateway:
        taps = {
            (name, moment): Tap(gateway.port, old_http=kind == "ended", cuts=cuts(moment))
            for moment in MOMENTS
            for name in asked_in(f"{kind} {moment}")
        }
        async with trying(taps) as clients:
            await publish_orders(gateway, range(1, 6))
            await all_of(clients.values(), is_back)
            # The last one pushes the one before it out of the buffer of a client that waits for a full one.
            await publish_orders(gateway, range(6, 8))
            await settled(clients.values(), 6)
            for (name, _), client in clients.items():
                assert client.is_over or resumes(client) == CLIENTS[name].resumes
            for moment in MOMENTS:
                mine = {name: client for (name, at), client in clients.items() if at == moment}
                check(f"{kind} {moment}", {name: outcome(mine[name], range(1, 7)) for name in mine})
