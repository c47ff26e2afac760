"""Clients that leave at any moment of their request: what they had of the limits is free again."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.auth import tickets
from gateway.auth.grant import Grant
from gateway.auth.revocation import RecentRevocations
from gateway.broker.shared_store import QuotaSlot, SharedStore
from gateway.hub.replay import ResumePoint
from gateway.hub.subscription import Subscription
from gateway.streams.quotas import user_quotas as users
from gateway.streams.quotas.client_limits import Caller
from gateway.streams.quotas.user_quotas import user_key
from tests.support.cancelling import cancel_everywhere, cancelled_at
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.redis import redis_server

LOGS = ["memory", "sqlite", pytest.param("redis", marks=pytest.mark.extended)]


@pytest.fixture(params=LOGS)
async def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Gateway]:
    """One that lets each user have one stream."""
    over: dict[str, Any] = {"limits": {"connections_per_user": 1, "connections_per_address": 1}}
    if request.param == "memory":
        async with gateway_running(over) as gateway:
            yield gateway
    elif request.param == "sqlite":
        async with gateway_running({**over, "broker": {"url": f"sqlite:///{tmp_path}/log.db"}}) as gateway:
            yield gateway
    else:
        with redis_server() as server:
            async with gateway_running({**over, "broker": {"url": server.url}}) as gateway:
                yield gateway


async def has_room(board: SharedStore, name: str, limit: int = 1) -> bool:
    """Tell whether a name has fewer members than ``limit``; takes no seat."""
    probe = QuotaSlot(name, "probe", limit)
    if not (await board.acquire_slots([probe], 60.0))[0]:
        return False
    await board.release_slots([probe])
    return True


@pytest.mark.parametrize("client", [None, "tab-1"])
async def test_a_stream_that_is_given_up_while_it_opens_counts_nowhere(
    gateway: Gateway, client: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reloads quickly would be refused for a minute, with no stream open."""
    daemon = gateway.daemon
    match = daemon.catalog.resolve("orders")
    assert match is not None
    subscription = Subscription.of((match,))
    grant = Grant(subject="7")
    caller = Caller("192.0.2.7", daemon.limits.addresses.usage_of("192.0.2.7"))
    monkeypatch.setattr(users, "RENEW_INTERVAL_SECONDS", 3600.0)

    async def open_and_close() -> None:
        hold = daemon.limits.acquire(caller, grant, client)
        place = daemon.streams.acquire_slot(subscription, hold)
        with place:
            await place.prepare(ResumePoint())

    async def check(number: int) -> None:
        assert daemon.streams._reserved_count == 0, number
        assert caller.address_usage is not None
        assert daemon.limits.addresses.try_ack(caller.address_usage), number
        assert not daemon.limits.users._members, number
        await eventually(lambda: has_room(daemon.broker.shared_store, user_key("7", None)))

    waits = await cancel_everywhere(open_and_close, check)
    assert waits or not daemon.limits.users.is_shared
    await open_and_close()


async def test_a_client_that_leaves_while_the_board_is_busy_takes_no_seat(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board is asked in batches: who leaves while one is under way must not be in the next."""
    board, counted = gateway.daemon.broker.shared_store, gateway.daemon.limits.users
    if not counted.is_shared:
        pytest.skip("alone, nobody is asked")
    monkeypatch.setattr(users, "RENEW_INTERVAL_SECONDS", 3600.0)
    name, entered, gate, take = user_key("8", None), asyncio.Event(), asyncio.Event(), board.acquire_slots

    async def busy(wanted: Sequence[QuotaSlot], seconds: float) -> list[bool]:
        entered.set()
        await gate.wait()
        return await take(wanted, seconds)

    async def enter_and_leave() -> None:
        counted.acquire(name, "m")
        try:
            await counted.reserve(name, "m")
        finally:
            counted.release(name, "m")

    number, is_cancelled = 0, True
    while is_cancelled:
        gate.clear()
        entered.clear()
        with monkeypatch.context() as patch:
            patch.setattr(board, "acquire_slots", busy)
            counted.acquire("other", "o")
            before = asyncio.create_task(counted.reserve("other", "o"))
            await entered.wait()
            asyncio.get_running_loop().call_later(0.05, gate.set)
            is_cancelled = await cancelled_at(number, enter_and_leave())
            gate.set()
            await before
            counted.release("other", "o")
        counted.acquire("later", "l")
        await counted.reserve("later", "l")  # whatever was asked for before is settled by now
        counted.release("later", "l")
        assert await has_room(board, name), number
        number += 1
    assert number > 1


async def test_a_node_that_stops_while_a_seat_is_taken_leaves_none(tmp_path: Path) -> None:
    """The next node would refuse this user for a minute after a restart."""
    over = {
        "limits": {"connections_per_user": 1},
        "broker": {"url": f"sqlite:///{tmp_path}/log.db"},
    }
    async with gateway_running(over) as other:
        async with gateway_running(over) as gateway:
            counted = gateway.daemon.limits.users
            for number in range(20):
                name = user_key(str(number), None)
                counted.acquire(name, "m")
                opening = asyncio.create_task(counted.reserve(name, "m"))
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                opening.cancel()
                counted.release(name, "m")
        for number in range(20):
            assert await has_room(other.daemon.broker.shared_store, user_key(str(number), None)), number


async def test_a_ticket_that_nobody_gets_leaves_no_seat(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred requests that were cut off would keep a subject from tickets for their whole lifetime."""
    monkeypatch.setattr(tickets, "MAX_TICKETS_PER_SUBJECT", 1)
    board = gateway.daemon.broker.shared_store
    giving = tickets.TicketStore(board, 600.0, RecentRevocations(), time.time)
    grant, name = Grant(subject="7"), tickets._store_key("tickets", "7")
    given: list[str] = []

    async def give() -> None:
        given.append((await giving.issue(grant, ["orders"], None)).value)

    async def check(number: int) -> None:
        if given:  # the last one, which nothing cancelled, or after its last await
            await board.release_slots([QuotaSlot(name, tickets._store_key("ticket", given.pop()), None)])
        await eventually(lambda: not giving._release_tasks)
        assert await has_room(board, name), number

    await cancel_everywhere(give, check)
