"""Proxies that keep pools of connections to the gateways: none is used again once a gateway has begun to close it."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.integration.test_proxies import Deployed, deployed, subscribed
from tests.support.deadline import SAFETY_SECONDS
from tests.support.gateway import eventually
from tests.support.node import Node
from tests.support.proxies import RECIPES

pytestmark = [pytest.mark.extended, pytest.mark.parametrize("name", list(RECIPES))]

STREAMS = 10
"""Streams at a time. Each ends after a second and comes back: about ten ends a second."""

ENDS = 100
POSTS = 1000
SENDERS = 4
PAUSE = 0.005
"""Seconds between two posts of a sender: the pool has connections that are not in use."""

PER_CONNECTION = 100
"""Posts of a sender on one connection: httpx does not survive the GOAWAY with which nginx ends one after 1,000."""

BODY = "x" * 10_000
"""A body that may be on its way when the answer comes."""


@dataclass
class Sender:
    """Posts one after the other, over HTTP/1.1 and HTTP/2. Nothing is sent again."""

    found: Deployed
    taken: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def posting(self) -> AsyncIterator["Sender"]:
        """Post while the block runs."""
        ending = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(SENDERS):
                group.create_task(self._run(ending, is_http2=number % 2 == 0))
            try:
                yield self
            finally:
                ending.set()

    async def _run(self, ending: asyncio.Event, *, is_http2: bool) -> None:
        context = self.found.authority.client()
        while not ending.is_set():
            async with httpx.AsyncClient(
                verify=context, http2=is_http2, timeout=httpx.Timeout(SAFETY_SECONDS)
            ) as session:
                for number in range(PER_CONNECTION):
                    if not ending.is_set():
                        # Some are refused at their head: the gateway closes the connection behind its answer.
                        # Over HTTP/1.1: httpx fails where a stream of HTTP/2 is answered before its body ends.
                        await self._post(session, is_refused=number % 10 == 9 and not is_http2)
                        await asyncio.sleep(PAUSE)

    async def _post(self, session: httpx.AsyncClient, *, is_refused: bool) -> None:
        source = "guarded" if is_refused else "hooks"
        answer = await session.post(
            f"{self.found.url}/hooks/{source}?topic=orders",
            content=f'"{BODY}"',
            headers={"Content-Type": "application/json"},
        )
        if answer.status_code == 200 and not is_refused:
            self.taken += 1
        elif answer.status_code == 401 and is_refused:
            self.refused += 1
        else:
            self.failed.append(f"{answer.status_code} {answer.text[:200]}")


async def received(node: Node) -> int:
    """Return how many records a gateway has got."""
    async with httpx.AsyncClient(timeout=SAFETY_SECONDS) as session:
        answer = await session.get(f"http://{node.host}:{node.admin}/status")
    return int(answer.json()["totals"]["received"])


async def test_streams_that_end_fail_no_post(name: str, tmp_path: Path) -> None:
    """Of 1,692 posts through nginx 150 were answered 502 while ten streams ended a second, and gateways were taken out."""
    async with deployed(name, tmp_path, running=2, timeouts={"connection": "1s"}) as found:
        before = list(found.proxy.faults())
        async with AsyncExitStack() as stack:
            open = [await stack.enter_async_context(subscribed(found)) for _ in range(STREAMS)]
            sender = await stack.enter_async_context(Sender(found).posting())
            await eventually(
                lambda: sum(each.connects for each in open) > ENDS + STREAMS and sender.taken > POSTS
            )
        assert not sender.failed
        assert sender.refused
        assert not [each.given_up for each in open if each.given_up]
        assert list(found.proxy.faults()) == before


async def test_a_restart_fails_no_post(name: str, tmp_path: Path) -> None:
    """A gateway that shuts down closes connections that a pool still holds; it must have said so on each."""
    # Longer than the proxies take to see that /readyz fails.
    async with deployed(name, tmp_path, running=2, timeouts={"pre_drain": "4s"}) as found:
        async with Sender(found).posting() as sender:
            for node in found.nodes:

                async def takes_its_share(node: Node = node) -> bool:
                    return await received(node) > 20

                await eventually(takes_its_share)
                node.signal(signal.SIGTERM)
                assert await node.ended() == 0
                await node.start()
                await eventually(takes_its_share)
        assert not sender.failed
