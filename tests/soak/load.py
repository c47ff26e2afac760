"""The soak's load: streams that stay, and callers that come, go, post and never return under the same name."""

import asyncio
import base64
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import count
from typing import Any

import aiohttp
import jwt
from redis.asyncio import Redis
from standardwebhooks import Webhook

from tests.support.eventsource import Stream

SECRET = "soak-secret-" * 3
SIGNING = "whsec_" + base64.b64encode(b"k" * 32).decode()

CHANNELS = ("orders", "stock", "news")
TICKET_SECONDS = 5


class Load:
    """Drives one gateway. `run` until cancelled; ``done`` counts what was done, by kind."""

    def __init__(self, port: int, redis: Redis, *, steady: int, rate: float, luck: random.Random) -> None:
        self.port = port
        self.done: Counter[str] = Counter()
        self._redis = redis
        self._steady = steady
        self._rate = rate
        self._luck = luck
        self._numbers = count(1)
        self._base = f"http://127.0.0.1:{port}"

    async def run(self) -> None:
        """Open the streams that stay, then let callers come at the rate (per second)."""
        async with aiohttp.ClientSession() as self._session, asyncio.TaskGroup() as group:
            for number in range(self._steady):
                group.create_task(self._stay(CHANNELS[number % len(CHANNELS)]))
            group.create_task(self._post_to_all())
            visits = (
                self._bearer,
                self._ticket,
                self._keyed_post,
                self._signed_post,
                self._job,
                self._stranger,
            )
            while True:
                number = next(self._numbers)
                for visit in visits:
                    group.create_task(self._once(visit, number))
                await asyncio.sleep(1 / self._rate)

    async def _once(self, visit: Callable[[int], Awaitable[None]], number: int) -> None:
        try:
            await visit(number)
            self.done[visit.__name__.strip("_")] += 1
        except (OSError, AssertionError, asyncio.IncompleteReadError, aiohttp.ClientError, TimeoutError):
            self.done["failed"] += 1

    async def _stay(self, channel: str) -> None:
        """Read one channel for ever; come back when the stream ends."""
        while True:
            with contextlib.suppress(OSError, AssertionError, asyncio.IncompleteReadError, TimeoutError):
                stream = await Stream.open(self.port, f"/events/{channel}")
                try:
                    while await stream.read():
                        self.done["events"] += len(stream.messages)
                        stream.messages.clear()
                        stream.body = b""
                finally:
                    stream.close()
            await asyncio.sleep(0.2)

    async def _post_to_all(self) -> None:
        while True:
            await self._once(self._public_post, 0)
            await asyncio.sleep(0.1)

    async def _public_post(self, _: int) -> None:
        await self._post(f"/hooks/hooks?topic={self._luck.choice(CHANNELS)}", b'{"n":1}')

    async def _bearer(self, number: int) -> None:
        """A user who was never here reads a channel of their own, with a token and a client name, for a moment."""
        await self._visit(
            number, f"/events?channel=user.{number},orders&client=c{number}", self._token(number)
        )

    async def _ticket(self, number: int) -> None:
        """A user buys a ticket and opens a stream with it."""
        headers = {"Authorization": f"Bearer {self._token(-number)}"}
        url = f"{self._base}/tickets?channel=user.{-number}"
        async with self._session.post(url, headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            ticket = (await answer.json())["ticket"]
        await self._visit(number, f"/events?channel=user.{-number}&ticket={ticket}")

    async def _visit(self, number: int, path: str, token: str = "") -> None:
        # Behind a trusted proxy, so that each has an address of its own.
        headers = {"X-Forwarded-For": f"203.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        stream = await Stream.open(self.port, path, headers)
        try:
            assert stream.status == 200 and (await stream.next()).type == "stream.open"
            await asyncio.sleep(self._luck.uniform(0, 2))
        finally:
            stream.close()

    async def _keyed_post(self, number: int) -> None:
        """An event for a channel that nobody reads any more, with an idempotency key."""
        await self._post(f"/hooks/hooks?topic=user:{number}", b'{"n":2}', **{"Idempotency-Key": f"k{number}"})

    async def _signed_post(self, number: int) -> None:
        """A signed message, which a replay check remembers."""
        now, body = datetime.now(UTC), f'{{"n":{number}}}'
        headers = {
            "webhook-id": f"msg_{number}",
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(SIGNING).sign(f"msg_{number}", now, body),
        }
        await self._post("/hooks/signed?topic=stock", body.encode(), **headers)

    async def _job(self, number: int) -> None:
        """A Redis stream that lives for a moment, and a topic of pub/sub that is used once."""
        await self._redis.xadd(f"job:{number}", {"payload": '{"n":3}'})
        await self._redis.publish(f"user:{number}", '{"n":4}')
        await asyncio.sleep(self._luck.uniform(2, 4))
        await self._redis.delete(f"job:{number}")

    async def _stranger(self, number: int) -> None:
        """A page of an unknown origin, an unknown channel, a token that is not ours."""
        for path, headers in (
            ("/events/orders", {"Origin": f"https://s{number}.example.org"}),
            (f"/events/none-{number}", {}),
            (f"/events/user.{number}", {"Authorization": f"Bearer {number}.{number}.{number}"}),
        ):
            async with self._session.get(self._base + path, headers=headers) as answer:
                assert answer.status in (200, 401, 403, 404), answer.status

    async def _post(self, path: str, body: bytes, **headers: str) -> None:
        async with self._session.post(self._base + path, data=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()

    def _token(self, number: int) -> str:
        claims = {"sub": str(number), "exp": int(time.time()) + 600}
        return jwt.encode(claims, SECRET, "HS256")


def config(log: str, upstream: str) -> dict[str, Any]:
    """Return the gateway's configuration: every kind of caller, and history that ends soon."""
    history = {"events": 50, "age": "5s"}
    public = {"history": {"events": 200, "age": "30s"}, "access": "public"}
    return {
        "server": {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "trusted_proxies": ["127.0.0.0/8"]},
        "broker": {"url": log},
        "timeouts": {"pre_drain": "0s", "drain": "1s", "heartbeat": "5s"},
        "auth": {
            "jwt": {"algorithms": ["HS256"], "secret": SECRET},
            "tickets": {"lifetime": f"{TICKET_SECONDS}s"},
        },
        "cors": {"origins": ["https://app.example.com"]},
        "sources": {
            "hooks": {"type": "webhook", "verify": {"none": True}},
            "signed": {"type": "webhook", "verify": {"standard_webhooks": [SIGNING]}},
            "app": {"type": "redis-pubsub", "url": upstream},
            "jobs": {"type": "redis-stream", "url": upstream, "scan": "500ms"},
        },
        "channels": {
            **{
                name: {
                    "from": [{"source": "hooks", "topic": name}, {"source": "signed", "topic": name}],
                    **public,
                }
                for name in CHANNELS
            },
            "user.{id}": {
                "from": [{"source": "hooks", "topic": "user:{id}"}, {"source": "app", "topic": "user:{id}"}],
                "history": history,
                "access": {"claims": {"sub": "{id}"}},
            },
            "job.{id}": {
                "from": [{"source": "jobs", "topic": "job:{id}"}],
                "history": history,
                "access": {"claims": {"sub": "{id}"}},
            },
        },
    }
