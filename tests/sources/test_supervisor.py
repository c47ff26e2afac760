"""The supervisor: starts again for ever, tells every gap once, stops at once."""

import asyncio
from collections.abc import Callable

import msgspec

from gateway.config.catalog import Catalog
from gateway.config.model import Channel
from gateway.errors import Unavailable
from gateway.event import Cursor, Draft, EventId, Record
from gateway.metrics import Metrics
from gateway.sources.base import Feed, Source, SourceState
from gateway.sources.publisher import Publisher
from gateway.sources.router import Router
from gateway.sources.supervisor import Supervisor
from tests.support.gateway import eventually


class Log:
    """Collects appended drafts; can be away."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.is_away = False

    async def append(self, drafts: list[Draft], cursor: Cursor | None) -> list[EventId]:
        if self.is_away:
            raise Unavailable("away")
        self.drafts += drafts
        return [EventId(1, 0)] * len(drafts)


class Scripted(Source):
    """Plays one script per run, and waits once they are used up."""

    def __init__(self, *scripts: Callable[[Feed], object]) -> None:
        self.runs = 0
        self._scripts = list(scripts)

    async def run(self, feed: Feed) -> None:
        self.runs += 1
        await feed.connected()
        if not self._scripts:
            await asyncio.Event().wait()
        await self._scripts.pop(0)(feed)  # type: ignore[misc]


def supervised(source: Source, log: Log) -> Supervisor:
    spec = {"from": [{"source": "s", "topic": "t"}], "access": "public"}
    router = Router(Catalog({"c": Channel.model_validate(spec)}), event_bytes=100)
    state = SourceState("s", "scripted", critical=False)
    publisher = Publisher(state, router, log.append, Metrics(), clock=lambda: 1000)  # type: ignore[arg-type]
    return Supervisor(source, publisher, clock=lambda: 1000)


async def fail(feed: Feed) -> None:
    await feed.publish([Record("t", b"1")])
    raise RuntimeError("broke")


async def test_every_break_is_one_gap_before_the_next_record() -> None:
    """Two breaks, two gaps, each between the records before and after it; a first start tells none."""
    log, source = Log(), Scripted(fail, fail)
    supervisor = supervised(source, log)
    supervisor.start()
    await eventually(lambda: source.runs == 3 and supervisor.state.status == "up")
    assert [draft.type for draft in log.drafts] == [None, "stream.gap", None, "stream.gap"]
    assert msgspec.json.decode(log.drafts[1].payload)["reason"] == "source_interrupted"
    assert supervisor.state.restarts == 2
    await supervisor.stop()
    await supervisor.stop()


async def test_a_gap_that_could_not_be_told_is_told_later() -> None:
    """While the broker is away the source stays down, and the gap waits: it must not be forgotten."""
    log, source = Log(), Scripted(fail)
    supervisor = supervised(source, log)
    supervisor.start()
    await eventually(lambda: len(log.drafts) == 1)
    log.is_away = True
    runs = source.runs
    await eventually(lambda: source.runs >= runs + 2)
    assert supervisor.state.status == "down"
    assert supervisor.state.last_error == "away"
    log.is_away = False
    await eventually(lambda: supervisor.state.status == "up")
    assert [draft.type for draft in log.drafts] == [None, "stream.gap"]
    await supervisor.stop()


async def test_a_source_that_dies_at_once_is_not_spun() -> None:
    """Connecting is not yet health: each of its breaks is a gap in every history, so they must get rarer."""
    log, source = Log(), Scripted(fail, fail, fail)
    supervisor = supervised(source, log)
    supervisor.start()
    await eventually(lambda: source.runs == 4)
    assert supervisor._backoff._attempt == 3
    await supervisor.stop()


async def test_what_a_late_first_connection_missed_is_a_gap() -> None:
    """Streams that opened before the source was up must not believe that they are whole."""
    for is_exposed, gaps in ((False, 0), (True, 1)):
        log, gate = Log(), asyncio.Event()

        class Late(Source):
            async def run(self, feed: Feed) -> None:
                await gate.wait()  # noqa: B023 -- each source has the gate of its turn
                await feed.connected()
                await asyncio.Event().wait()

        supervisor = supervised(Late(), log)
        supervisor.start()
        if is_exposed:
            supervisor.exposed()
        gate.set()
        await supervisor.tried()
        assert [draft.type for draft in log.drafts] == ["stream.gap"] * gaps
        await supervisor.stop()
