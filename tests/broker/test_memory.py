"""The memory broker: the contract, restarts and memory limits."""

from collections.abc import AsyncIterator

import pytest

from gateway.broker import memory
from gateway.broker.memory import MemoryBroker
from gateway.core.event import EventId
from tests.broker.contract import FAR, ZERO, Clock, Contract, draft, read


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def broker(clock: Clock) -> AsyncIterator[MemoryBroker]:
    broker = MemoryBroker(history_bytes=10**7, clock=clock)
    await broker.start()
    yield broker
    await broker.close()


class TestMemoryBroker(Contract):
    """The contract of every broker."""


async def test_ids_from_before_the_start_are_a_gap(broker: MemoryBroker) -> None:
    """A client that resumes after a restart would miss events without a gap."""
    (id,) = await broker.append([draft("c")])
    found, floor = await read(broker, "c", EventId(broker.head.ms - 1000, 0))
    assert found == [id]
    assert floor is not None


async def test_bytes_are_bounded_over_all_channels(clock: Clock) -> None:
    """Channels with large limits would exceed limits.history_bytes."""
    broker = MemoryBroker(history_bytes=20_000, clock=clock)
    ids = [(await broker.append([draft(f"c{number % 5}", b"x" * 1000)]))[0] for number in range(100)]
    pages = await broker.read({f"c{number}": ZERO for number in range(5)}, FAR, 1000)
    left = sorted(event.id for page in pages.values() for event in page.events)
    assert left == ids[-len(left) :]
    assert 10 < len(left) <= 20
    assert all(page.floor > ZERO for page in pages.values())


async def test_keys_are_bounded(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders that set a key on every record would fill the memory."""
    monkeypatch.setattr(memory, "MIN_DEDUPLICATION_KEYS", 3)
    first = await broker.append([draft("c", key="k0")])
    for number in range(1, 4):
        await broker.append([draft("c", key=f"k{number}")])
    assert await broker.append([draft("c", key="k3")]) == [broker.head]
    assert await broker.append([draft("c", key="k0")]) != first
