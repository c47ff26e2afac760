"""The supervisor restarts a source after every failure, and holds its lease only while it is up."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from gateway.broker.sqlite.broker import SqliteBroker
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import ChannelConfig
from gateway.core.clock import unix_ms
from gateway.core.errors import StaleFencingToken, Unavailable
from gateway.core.event import EventId, FencingToken, Record
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentErrors
from gateway.observability.task_supervisor import TaskSupervisor
from gateway.sources import election as election_module
from gateway.sources.base import SourceGap, SourceState
from gateway.sources.context import EventAppender, Source, SourceContext
from gateway.sources.election import Election
from gateway.sources.router import Router
from gateway.sources.supervisor import Supervisor
from tests.support.cancelling import cancelled_at
from tests.support.deadline import safety_net
from tests.support.gateway import eventually


@pytest.fixture
async def brokers(tmp_path) -> AsyncIterator[list[SqliteBroker]]:  # type: ignore[no-untyped-def]
    """Two nodes' brokers on one log."""
    brokers = [SqliteBroker(tmp_path / "log.db", clock=unix_ms) for _ in range(2)]
    for broker in brokers:
        await broker.start()
    yield brokers
    for broker in brokers:
        await broker.close()


class Scripted(Source):
    """Runs one script per start, and waits once they are used up."""

    def __init__(self, *scripts: Callable[[SourceContext], object]) -> None:
        self.runs = 0
        self.context: SourceContext | None = None
        self._scripts = list(scripts)

    async def run(self, context: SourceContext) -> None:
        self.runs += 1
        self.context = context
        context.report_connected()
        if not self._scripts:
            await asyncio.Event().wait()
        await self._scripts.pop(0)(context)  # type: ignore[misc]


def supervised(source: Source, broker: SqliteBroker) -> Supervisor:
    spec = {"from": [{"source": "s", "topic": "t"}], "access": "public"}
    catalog, metrics = ChannelCatalog({"c": ChannelConfig.model_validate(spec)}), Metrics()
    router = Router(catalog, event_bytes=100)
    state = SourceState("s", "scripted", is_critical=False)
    appender = EventAppender(broker, catalog, metrics)
    context = SourceContext(state, router, appender, metrics, RecentErrors())
    return Supervisor(source, context, TaskSupervisor())


async def test_stopping_can_be_cancelled(brokers: list[SqliteBroker]) -> None:
    """A shutdown that is cancelled must end, and not go on as if nothing had happened."""
    ending = asyncio.Event()

    async def linger(context: SourceContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.Event().wait()

    supervisor = supervised(Scripted(linger), brokers[0])
    supervisor.start()
    await supervisor.context.first_attempt_done.wait()
    stopping = asyncio.create_task(supervisor.stop())
    await ending.wait()
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()


async def cancel(context: SourceContext) -> None:
    """Do what aiokafka does when its broker is gone."""
    raise asyncio.CancelledError


async def test_a_client_that_cancels_itself_is_started_again(brokers: list[SqliteBroker]) -> None:
    """A source whose client library cancels its own task would stay down for ever."""
    source = Scripted(cancel, cancel)
    supervisor = supervised(source, brokers[0])
    supervisor.start()
    await eventually(lambda: source.runs == 3)
    (task, _) = supervisor._tasks
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await supervisor.stop()


async def fail(context: SourceContext) -> None:
    await context.publish([Record("t", b"1")])
    raise RuntimeError("broke")


async def test_a_source_that_breaks_is_started_again(brokers: list[SqliteBroker]) -> None:
    """A failed source would stay down, or its restarts would not show in `/status`."""
    source = Scripted(fail, fail)
    supervisor = supervised(source, brokers[0])
    supervisor.start()
    await eventually(lambda: source.runs == 3 and supervisor.state.status == "up")
    assert supervisor.state.restarts == 2
    assert supervisor.state.received == 2
    await supervisor.stop()
    await supervisor.stop()


async def test_a_source_that_dies_at_once_is_not_spun(brokers: list[SqliteBroker]) -> None:
    """A source that fails right after connecting would reconnect without a pause."""
    source = Scripted(fail, fail, fail)
    supervisor = supervised(source, brokers[0])
    supervisor.start()
    await eventually(lambda: source.runs == 4)
    assert supervisor._backoff._attempt == 3
    await supervisor.stop()


async def test_streams_that_opened_before_the_source_was_up_get_a_gap(brokers: list[SqliteBroker]) -> None:
    """Streams that opened before the source was up would miss records without notice."""
    for is_serving in (False, True):
        supervisor = supervised(Scripted(), brokers[0])
        if is_serving:
            supervisor.mark_serving()
        supervisor.start()
        await supervisor.context.first_attempt_done.wait()
        assert (supervisor.context.missed_since_ms is not None) == is_serving
        await supervisor.stop()


async def test_one_node_reads_and_a_failed_source_hands_over(brokers: list[SqliteBroker]) -> None:
    """When one node's upstream fails, the other one reads; late appends of the first are rejected."""
    broken = asyncio.Event()

    recovered = asyncio.Event()

    class Breaking(Source):
        async def run(self, context: SourceContext) -> None:
            if broken.is_set():
                await recovered.wait()
            context.report_connected()
            await broken.wait()
            if not recovered.is_set():
                raise RuntimeError("broke")
            await asyncio.Event().wait()

    one, two = supervised(Breaking(), brokers[0]), supervised(Scripted(), brokers[1])
    one.start()
    fence = await one.context.wait_for_lease()
    two.start()
    await two.context.first_attempt_done.wait()
    assert not two.has_lease
    broken.set()
    second = await two.context.wait_for_lease()
    assert second.number > fence.number
    with pytest.raises(StaleFencingToken):
        await one.context.publish([Record("t", b"late")], "1", fence)
    await two.context.publish([Record("t", b"1")], "2", second)
    assert await one.context.read_offset() == "2"
    recovered.set()
    await two.stop()  # which releases the lease at once
    await one.context.wait_for_lease()
    await one.stop()


async def test_a_reacquired_lease_rejects_appends_under_way(brokers: list[SqliteBroker]) -> None:
    """An append whose answer was lost may arrive late, and its records would be in the log twice."""
    source = Scripted()
    supervisor = supervised(source, brokers[0])
    supervisor.start()
    first = await supervisor.context.wait_for_lease()
    supervisor.context.reacquire_lease()
    second = await supervisor.context.wait_for_lease()
    assert second.number > first.number
    with pytest.raises(StaleFencingToken):
        await supervisor.context.publish([Record("t", b"1")], "1", first)
    await supervisor.context.publish([Record("t", b"2")], "2", second)
    assert (supervisor.state.received, await supervisor.context.read_offset()) == (1, "2")
    await supervisor.stop()


async def test_a_gap_and_what_follows_it_are_one_append(brokers: list[SqliteBroker]) -> None:
    """As two appends, each retry would report the gap again."""
    source = Scripted()
    supervisor = supervised(source, brokers[0])
    supervisor.start()
    fence = await supervisor.context.wait_for_lease()
    await supervisor.context.publish([Record("t", b"1")], "a", fence, partition="p", gap=SourceGap(5, "t", 3))
    pages = await brokers[0].read({"c": EventId(0, 0)}, EventId(2**42, 0), 10)
    gap, event = pages["c"].events
    assert (gap.type, event.payload) == ("stream.gap", b"1")
    assert b'"missing":3' in gap.payload
    assert await supervisor.context.read_offset("p") == "a"
    await supervisor.stop()


async def test_a_lease_that_could_not_be_released_is_never_used_again(
    brokers: list[SqliteBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append under the old token might still arrive, and would be accepted."""
    tokens, fails = [1], [True]

    async def acquire(name: str, seconds: float) -> FencingToken:
        return FencingToken(name, tokens[0])

    async def release(fence: FencingToken) -> None:
        if fails[0]:
            raise Unavailable("the log is unavailable")
        tokens[0] += 1

    monkeypatch.setattr(brokers[0], "acquire_lease", acquire)
    monkeypatch.setattr(brokers[0], "release_lease", release)
    election = Election("s", brokers[0])
    task = asyncio.create_task(election.run())
    election.enter()
    first = await election.wait_for_lease()
    election.resign()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    election.enter()
    await asyncio.sleep(0.05)
    assert election.fence is None
    fails[0] = False
    async with safety_net():
        assert (await election.wait_for_lease()).number > first.number
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_election_that_is_cancelled_anywhere_leaves_no_lease(
    brokers: list[SqliteBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that stops during a request would keep the others waiting until its lease expires."""
    one, other = brokers
    monkeypatch.setattr(election_module, "RENEW_SECONDS", 0.01)

    async def run_briefly() -> None:
        election = Election("s", one)
        election.enter()
        running = asyncio.create_task(election.run())
        try:
            await asyncio.wait([running], timeout=0.05)
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def is_free(number: int) -> None:
        fence = await other.acquire_lease("s", 30)
        assert fence is not None, number
        await other.release_lease(fence)

    await run_briefly()
    await is_free(-1)
    for number in range(12):
        election = Election("s", one)
        election.enter()
        assert await cancelled_at(number, election.run()) or number
        await is_free(number)
