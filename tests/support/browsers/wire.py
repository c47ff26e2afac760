"""Orders and answers over a WebSocket: the JSON of WebDriver BiDi.

No library that speaks it does without geckodriver, which Debian does not have; Firefox itself needs none.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

import aiohttp

from tests.support.deadline import safety_net

Listener = Callable[[str, dict[str, Any]], None]


class Wire:
    """One session. Orders may be under way side by side."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, listener: Listener) -> None:
        self._socket = socket
        self._listener = listener
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give an order and return its result. Raises AssertionError with the browser's words, TimeoutError."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send_json({"id": number, "method": method, "params": parameters})
            async with safety_net():
                message = await answer
        finally:
            del self._waiting[number]
        assert message["type"] == "success", f"{method}: {message.get('error')}: {message.get('message')}"
        result: dict[str, Any] = message["result"]
        return result

    async def read(self) -> None:
        """Hand out answers and events until the browser ends the session."""
        async for received in self._socket:
            message = received.json()
            if message["type"] == "event":
                self._listener(message["method"], message["params"])
            elif (answer := self._waiting.get(message["id"])) and not answer.done():
                answer.set_result(message)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(AssertionError("the browser has ended"))


@contextlib.asynccontextmanager
async def wired(url: str, listener: Listener) -> AsyncIterator[Wire]:
    """Open a session with the browser at a ``ws:`` URL."""
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        wire = Wire(socket, listener)
        reader = asyncio.get_running_loop().create_task(wire.read())
        try:
            yield wire
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
