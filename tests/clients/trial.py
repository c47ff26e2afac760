"""One scenario for all clients at once: start them, publish, wait until each is through, say what became of it."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from aiohttp import ClientSession

from gateway.core.event import GAP_EVENT_TYPE
from tests.clients.tap import Tap, tapped
from tests.clients.zoo import Client, zoo_running
from tests.support.gateway import eventually

WHOLE = "whole"
"""Everything that was published arrived once, in order, and nothing else."""

STOPS = "stops"
"""It said that it will not come back, and gave nothing of what was published from then on."""

PATH = "/events?channel=orders&format=envelope"

HOOKS: dict[str, Any] = {
    "timeouts": {"retry": "100ms"},
    "sources": {"hooks": {"event": {"type": "{ce.type}"}}},
}
"""Events come as CloudEvents, so that an upstream's own bytes reach the gateway whatever they are."""

_numbers = count()


@asynccontextmanager
async def trying(
    taps: Mapping[str, Tap] | Mapping[tuple[str, str], Tap],
    path: str | Callable[[Any], str] = PATH,
    *,
    watchdog: float = 30.0,
    token: Path | None = None,
) -> AsyncIterator[dict[Any, Client]]:
    """Start a client behind each tap, by its name or the first part of its key, and wait until all are open.

    ``path`` may be a function of the key.
    """
    async with zoo_running() as zoo, tapped(*taps.values()):
        names = {key: key if isinstance(key, str) else key[0] for key in taps}
        paths = {key: path if isinstance(path, str) else path(key) for key in taps}
        clients = {key: zoo.start(names[key], tap, paths[key], watchdog, token) for key, tap in taps.items()}
        await all_of(clients.values(), is_open)
        yield clients


def is_open(client: Client) -> bool:
    """Tell whether it was sent the first event of a stream."""
    return any(b"stream.open" in line.answered for line in client.tap.lines)


async def all_of(clients: Iterable[Client], condition: Callable[[Client], bool]) -> None:
    """Wait until a condition holds for each. Raises AssertionError that shows the others."""
    waiting = list(clients)

    def is_over() -> bool:
        assert not waiting[0].crashes, waiting[0].crashes
        return all(condition(client) for client in waiting)

    try:
        await eventually(is_over)
    except TimeoutError:
        raise AssertionError([client for client in waiting if not condition(client)]) from None


async def settled(clients: Iterable[Client], number: int) -> None:
    """Wait until each has the event of that number, or said that it will not come back."""
    await all_of(clients, lambda client: client.is_over or number in numbers(client))


def is_back(client: Client) -> bool:
    """Tell whether it has a stream after its tap cut all that it should, or will not have one."""
    tap = client.tap
    return client.is_over or (tap.was_cut and b"stream.open" in tap.lines[-1].answered)


class Published(Protocol):
    """A gateway that takes posts, in this process or in one of its own."""

    @property
    def url(self) -> str: ...

    @property
    def session(self) -> ClientSession: ...


async def publish(gateway: Published, *payloads: object, kind: str = "application/json") -> None:
    """Publish events of the type ``order`` with these payloads, in one request."""
    event = {"specversion": "1.0", "source": "/zoo", "type": "order", "datacontenttype": kind}
    events = [{**event, "id": f"{next(_numbers)}", "data": payload} for payload in payloads]
    url = f"{gateway.url}/hooks/hooks?topic=orders"
    headers = {"Content-Type": "application/cloudevents-batch+json"}
    body = json.dumps(events, ensure_ascii=False, separators=(",", ":")).encode()
    async with gateway.session.post(url, data=body, headers=headers) as answer:
        assert answer.status in (200, 204), await answer.text()


def order(number: int) -> dict[str, object]:
    """Return the payload of an event that is told from others by its number."""
    return {"n": number, "text": "😀é"}


async def publish_orders(gateway: Published, orders: Iterable[int]) -> None:
    """Publish such events one after the other."""
    for number in orders:
        await publish(gateway, order(number))


def numbers(client: Client) -> list[int]:
    """Return the numbers of the events that it gave, in its order."""
    return [number for told in client.events if (number := _number(told.data)) is not None]


def _number(data: str) -> int | None:
    try:
        payload = json.loads(data)["payload"]
        return payload["n"] if payload == order(payload["n"]) else None
    except (ValueError, KeyError, TypeError):
        return None


def outcome(client: Client, published: Sequence[int]) -> str:
    """Return what became of what was published; "gap reported" alone is of exactly what is missing."""
    got = numbers(client)
    times = Counter(got)
    explained = _told_gaps(client)
    lost = [number for number in published if number not in times and number not in explained]
    others = [told for told in client.events if _number(told.data) is None and not told.is_own]
    parts = []
    is_over = client.is_over
    if lost and is_over and lost == list(published[-len(lost) :]):
        parts.append(STOPS)
        is_over = False
    elif lost:
        parts.append(f"lost {_list(lost)}")
    if any(told.type == GAP_EVENT_TYPE for told in client.events):
        parts.append("gap reported")
    if twice := [number for number in published if times[number] > 1]:
        parts.append(f"twice {_list(twice)}")
    if got != sorted(got):
        parts.append("out of order")
    if torn := [event for event in others if event.data]:
        parts.append(f"torn {len(torn)}")
    if empty := [event for event in others if not event.data]:
        parts.append(f"empty {len(empty)}")
    if is_over:
        parts.append("stops in the end")
    return ", ".join(parts) or WHOLE


def _told_gaps(client: Client) -> set[int]:
    """Return the numbers of events that lie exactly where a gap was told."""
    explained: set[int] = set()
    for place, told in enumerate(client.events):
        if told.type == GAP_EVENT_TYPE:
            gap = json.loads(told.data)
            before = [each for each in client.events[:place] if each.id == gap["after"]]
            after = [each for each in client.events[place:] if each.id == gap["oldest"]]
            if before and after:
                first, last = _number(before[-1].data), _number(after[0].data)
                explained.update(range((first or 0) + 1, last or 0))
    return explained


def _list(of: Sequence[int]) -> str:
    return " ".join(map(str, of))
