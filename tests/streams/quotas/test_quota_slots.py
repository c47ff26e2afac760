"""Quota slots while the shared store fails: no stream hangs or is rejected, and no slot stays taken."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway.broker.memory_shared_store import MemorySharedStore
from gateway.broker.shared_store import QuotaSlot
from gateway.core.clock import unix_ms
from gateway.core.errors import Draining, Unavailable
from gateway.streams.quotas import user_quotas as users
from gateway.streams.quotas.user_quotas import UserLimitReached, UserQuotas
from tests.support.deadline import safety_net
from tests.support.gateway import eventually


class ControlledStore(MemorySharedStore):
    """A shared store that a test makes fail or hang."""

    is_shared = True

    def __init__(self) -> None:
        super().__init__(unix_ms)
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def acquire_slots(self, slots: Sequence[QuotaSlot], seconds: float) -> list[bool]:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await super().acquire_slots(slots, seconds)

    async def release_slots(self, slots: Sequence[QuotaSlot]) -> None:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        await super().release_slots(slots)


@asynccontextmanager
async def counting(store: ControlledStore, limit: int = 2) -> AsyncIterator[UserQuotas]:
    counted = UserQuotas(store, limit)
    counted.start()
    try:
        yield counted
    finally:
        store.gate.set()
        await counted.stop()


async def enter(counted: UserQuotas, member: str) -> None:
    counted.acquire("user", member)
    try:
        await counted.reserve("user", member)
    except BaseException:
        counted.release("user", member)
        raise


@pytest.mark.parametrize(
    "error", [Unavailable("away"), OSError(23, "too many open files"), ValueError("odd")]
)
async def test_a_store_that_fails_lets_this_node_decide(error: Exception) -> None:
    """A failing store would reject streams or leave them waiting."""
    store = ControlledStore()
    async with counting(store) as counted:
        store.error = error
        async with safety_net():
            await enter(counted, "a")
            await enter(counted, "b")
        with pytest.raises(UserLimitReached):
            await enter(counted, "c")
        store.error = None
        counted.release("user", "a")
        async with safety_net():
            await enter(counted, "c")


async def test_failed_releases_are_retried() -> None:
    """A short outage would cost users their slots for a minute."""
    store = ControlledStore()
    async with counting(store) as counted:
        await enter(counted, "a")
        store.error = Unavailable("away")
        counted.release("user", "a")
        await asyncio.sleep(0.05)
        assert store._slots
        store.error = None
        await eventually(lambda: not store._slots)


async def test_slots_are_released_while_others_are_acquired() -> None:
    """A client that reconnects all the time would keep others out."""
    store = ControlledStore()
    async with counting(store, 1) as counted:
        await enter(counted, "victim")
        counted.release("user", "victim")
        busy = True

        async def spam(number: int) -> None:
            while busy:
                counted.acquire(f"spammer {number}", "x")
                await counted.reserve(f"spammer {number}", "x")
                counted.release(f"spammer {number}", "x")

        spammers = [asyncio.create_task(spam(number)) for number in range(20)]
        try:
            async with safety_net():
                await enter(counted, "victim again")
        finally:
            busy = False
            await asyncio.gather(*spammers)


async def test_a_store_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs would keep streams waiting for ever."""
    monkeypatch.setattr(users, "RESERVE_TIMEOUT_SECONDS", 0.05)
    store = ControlledStore()
    async with counting(store) as counted:
        store.gate.clear()
        async with safety_net():
            await enter(counted, "a")


async def test_a_stop_ends_all_reservations() -> None:
    """A stream would wait for ever for its slot at shutdown."""
    store = ControlledStore()
    counted = UserQuotas(store, 1)
    counted.start()
    store.gate.clear()
    waiting = [asyncio.create_task(enter(counted, str(number))) for number in range(1)]
    await asyncio.sleep(0.01)
    late = asyncio.create_task(counted.reserve("other", "x"))
    await asyncio.sleep(0.01)
    store.gate.set()
    stopping = asyncio.create_task(counted.stop())
    results = await asyncio.gather(*waiting, late, return_exceptions=True)
    await stopping
    assert all(each is None or isinstance(each, Draining) for each in results), results


@pytest.mark.parametrize("error", [Unavailable("away"), OSError(23, "too many open files")])
async def test_releases_delay_no_reservation(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Releases that fail would block all reservations while the store is unavailable."""
    monkeypatch.setattr(users, "RESERVE_TIMEOUT_SECONDS", 3600.0)
    store = ControlledStore()
    async with counting(store) as counted, safety_net():
        await enter(counted, "gone")
        store.error = error
        counted.release("user", "gone")
        for member in ("one", "two"):
            await enter(counted, member)
        assert counted._pending_reservations == []
        store.error = None


async def test_pending_releases_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that come and go during an outage would fill the memory."""
    monkeypatch.setattr(users, "MAX_PENDING_RELEASES", 10)
    store = ControlledStore()
    async with counting(store) as counted, safety_net():
        store.error = Unavailable("away")
        for number in range(100):
            counted.acquire(f"user{number}", "a")
            counted.release(f"user{number}", "a")
            if number % 20 == 0:
                await asyncio.sleep(0)  # some are being released
            assert len(counted._pending_releases) <= 10
        await eventually(lambda: len(counted._pending_releases) == 10)
