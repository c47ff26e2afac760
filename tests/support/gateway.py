"""A whole gateway in this process, on ports of its own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from gateway.server.daemon import Daemon
from tests.support.config import loads
from tests.support.deadline import safety_net
from tests.support.eventsource import Stream

BASE: dict[str, Any] = {
    "server": {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"},
    "logging": {"level": "error"},
    "timeouts": {"drain": "1s"},
    "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
    "channels": {
        name: {"from": [{"source": "hooks", "topic": name}], "access": "public"}
        for name in ("orders", "stock", "news")
    },
}


def merged(base: Any, over: Any) -> Any:
    """Return ``base`` with the keys of ``over`` laid into it, mappings key by key; None removes."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    out = {key: merged(base.get(key, {}), value) if key in base else value for key, value in over.items()}
    both = {**base, **out}
    return {key: value for key, value in both.items() if value is not None}


class Gateway:
    """A running daemon, and what a test does with it."""

    def __init__(
        self, daemon: Daemon, session: aiohttp.ClientSession, config: Any, environ: Mapping[str, str]
    ) -> None:
        self.daemon = daemon
        self.session = session
        self._config = config
        self._environ = environ
        self.streams: list[Stream] = []

    @property
    def port(self) -> int:
        return self.daemon.public_listener.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self, path: str, headers: dict[str, str] | None = None, **more: Any) -> Stream:
        """Open a stream without reading it."""
        stream = await Stream.open(self.port, path, headers, **more)
        self.streams.append(stream)
        return stream

    async def subscribe(self, path: str, headers: dict[str, str] | None = None, **more: Any) -> Stream:
        """Open a stream and read its ``stream.open``."""
        stream = await self.open(path, headers, **more)
        assert stream.status == 200, await stream.rest()
        assert (await stream.next()).type == "stream.open"
        return stream

    async def post(self, topic: str, body: bytes | str, **headers: str) -> list[str]:
        """Post to the open webhook and return the ids."""
        async with self.session.post(
            f"{self.url}/hooks/hooks?topic={topic}", data=body, headers=headers
        ) as answer:
            assert answer.status == 200, await answer.text()
            return list((await answer.json())["ids"])

    async def reconfigure(self, over: Mapping[str, Any]) -> int:
        """Lay ``over`` into its configuration, go over to that, and return how many streams end by it."""
        self._config = merged(self._config, dict(over))
        return await self.daemon.apply_config(loads(json.dumps(self._config), environ=self._environ))

    async def admin(self, path: str) -> tuple[int, Any]:
        """Get a path of the admin port: status and body (parsed where it is JSON)."""
        async with self.session.get(f"http://127.0.0.1:{self.daemon.admin_listener.port}{path}") as answer:
            is_json = answer.content_type == "application/json"
            return answer.status, await answer.json() if is_json else await answer.text()

    async def metric(self, name: str) -> float:
        """Return a metric's value by the name and labels that the exposition shows; 0 if it is not there."""
        _, text = await self.admin("/metrics")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return float(lines.get(f"sse_gateway_{name}", 0))


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds; it may be a coroutine function."""
    async with safety_net():
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway_running(
    over: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Gateway]:
    """Run a gateway on `BASE` with ``over`` laid into it."""
    config, environ = merged(BASE, dict(over or {})), environ or {}
    daemon = Daemon(loads(json.dumps(config), environ=environ))  # JSON is YAML
    gateway = None
    try:
        await daemon.start()
        async with aiohttp.ClientSession() as session:
            gateway = Gateway(daemon, session, config, environ)
            yield gateway
    finally:
        for stream in gateway.streams if gateway else ():
            stream.close()
        await daemon.streams.abort_all("test_over")
        await daemon.stop()
