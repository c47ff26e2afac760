"""An EventSource over HTTP/2: it comes back with its last event id, and gives up where a browser does."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable

import httpx

from tests.support.deadline import SAFETY_SECONDS, safety_net
from tests.support.eventsource import Message, Parser

PATIENCE = 0.5
"""Seconds that it waits at the most before it comes back, whatever ``retry`` says: a test has no time."""


def client(context: ssl.SSLContext, address: str | None = None, *, http2: bool = True) -> httpx.AsyncClient:
    """Return a client that speaks HTTP/2 where it is offered, from an address of this machine."""
    transport = httpx.AsyncHTTPTransport(verify=context, http2=http2, local_address=address)
    return httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(SAFETY_SECONDS))


class Subscriber:
    """One client over many connections. Run `run` in a task; cancelling it closes its connection."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url
        self.messages: list[Message] = []
        self.last_id = ""
        self.connects = 0
        self.given_up = ""
        """Why a browser would never have come back; empty while it would."""

    @property
    def payloads(self) -> list[object]:
        """Return the payloads of all events."""
        return [message.json["payload"] for message in self.messages if message.type == "message"]

    def told(self, type: str) -> list[Message]:
        """Return the gateway's own events of a type."""
        return [message for message in self.messages if message.type == type]

    async def run(self) -> None:
        """Read and come back until a browser would give up, or until it is cancelled."""
        while not self.given_up:
            retry = PATIENCE
            with contextlib.suppress(httpx.TransportError):
                retry = await self._once()
            await asyncio.sleep(min(retry, PATIENCE))

    async def _once(self) -> float:
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        parser, seen = Parser(), 0
        async with self._client.stream("GET", self._url, headers=headers) as answer:
            kind = answer.headers.get("Content-Type", "")
            if answer.status_code != 200 or not kind.startswith("text/event-stream"):
                self.given_up = f"{answer.status_code} {kind}"
                return 0.0
            self.connects += 1
            with contextlib.suppress(httpx.TransportError):
                async for part in answer.aiter_raw():
                    parser.feed(part)
                    self.messages += parser.messages[seen:]
                    seen = len(parser.messages)
                    if seen:
                        self.last_id = parser.last_id
        return PATIENCE if parser.retry is None else parser.retry / 1000


async def follow(subscriber: Subscriber, condition: Callable[[], bool]) -> None:
    """Wait for a condition while a subscriber runs. Raises AssertionError when it gives up."""
    async with safety_net():
        while not condition():
            assert not subscriber.given_up, subscriber.given_up
            await asyncio.sleep(0.02)
