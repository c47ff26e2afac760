"""`SharedStore` in Redis: a key per entry and a sorted set per quota, which expire by themselves."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis

from gateway.broker.shared_store import QuotaSlot, SharedStore

_QUOTA_SCRIPT = files("gateway.broker.redis").joinpath("quota.lua").read_text()


class RedisSharedStore(SharedStore):
    """``borrow_client`` lends a client for one exchange; all keys begin with ``key_prefix``."""

    def __init__(
        self, borrow_client: Callable[[], AbstractAsyncContextManager[Redis]], key_prefix: str
    ) -> None:
        self._borrow_client = borrow_client
        self._key_prefix = key_prefix

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        async with self._borrow_client() as client:
            await client.set(f"{self._key_prefix}note:{name}", value, px=_milliseconds(seconds))

    async def get(self, name: str) -> bytes | None:
        async with self._borrow_client() as client:
            found: Any = await client.get(f"{self._key_prefix}note:{name}")
            return None if found is None else bytes(found)

    async def acquire_slots(self, slots: Sequence[QuotaSlot], seconds: float) -> list[bool]:
        return await self._run_quota_script(slots, _milliseconds(seconds))

    async def release_slots(self, slots: Sequence[QuotaSlot]) -> None:
        await self._run_quota_script(slots, 0)

    async def _run_quota_script(self, slots: Sequence[QuotaSlot], milliseconds: int) -> list[bool]:
        if not slots:
            return []
        args: list[str | int] = [milliseconds]
        for slot in slots:
            args += [slot.name, slot.member, -1 if slot.limit is None else slot.limit]
        async with self._borrow_client() as client:
            script = client.register_script(_QUOTA_SCRIPT)
            return [bool(each) for each in await script(keys=[f"{self._key_prefix}seats"], args=args)]


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 1)
