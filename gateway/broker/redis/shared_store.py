"""The board in Redis: a key per note, a sorted set per name of seats, all of which expire by themselves."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis

from gateway.broker.shared_store import Board, Seat

_SEATS = files("gateway.broker.redis").joinpath("seats.lua").read_text()


class RedisBoard(Board):
    """``call`` returns a client for one exchange; all keys begin with ``base``."""

    def __init__(self, call: Callable[[], AbstractAsyncContextManager[Redis]], base: str) -> None:
        self._call = call
        self._base = base

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        async with self._call() as client:
            await client.set(f"{self._base}note:{name}", value, px=max(round(seconds * 1000), 1))

    async def get(self, name: str) -> bytes | None:
        async with self._call() as client:
            found: Any = await client.get(f"{self._base}note:{name}")
            return None if found is None else bytes(found)

    async def seats(self, wanted: Sequence[Seat], seconds: float) -> list[bool]:
        return await self._run(wanted, max(round(seconds * 1000), 1))

    async def leave(self, seats: Sequence[Seat]) -> None:
        await self._run(seats, 0)

    async def _run(self, seats: Sequence[Seat], milliseconds: int) -> list[bool]:
        if not seats:
            return []
        args: list[str | int] = []
        for seat in seats:
            args += [seat.name, seat.member, -1 if seat.limit is None else seat.limit]
        async with self._call() as client:
            answer: list[int] = await client.register_script(_SEATS)(
                keys=[f"{self._base}seats"], args=[milliseconds, *args]
            )
        return [bool(each) for each in answer]
