"""All sources of a node: made from the configuration, started, stopped, and changed by a reload."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from gateway.config.model.sources import Kafka, RedisStream, Webhook, why_off
from gateway.config.model.sources import Source as SourceConfig
from gateway.config.template import Template
from gateway.observability.background import UNCOUNTED, Background
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import Refusals
from gateway.sources.base import Source, SourceState
from gateway.sources.election import Leases
from gateway.sources.kafka import KafkaSource
from gateway.sources.publisher import Append, Publisher
from gateway.sources.redis.pubsub import RedisPubSubSource
from gateway.sources.redis.stream import RedisStreamSource
from gateway.sources.router import Router
from gateway.sources.supervisor import Supervisor
from gateway.sources.webhook import Checks, WebhookSource

log = structlog.get_logger("gateway.sources")


@dataclass(frozen=True, slots=True)
class Log:
    """The part of the event log that sources use."""

    append: Append
    leases: Leases
    position: Callable[[str], Awaitable[str | None]]
    parts: Callable[[str], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a source was made of: while it stays the same, the source goes on."""

    config: SourceConfig
    topics: frozenset[str]
    places: frozenset[str]


class Upstreams:
    """`start` and `stop` are their whole life; `reconfigure` brings what another configuration changes."""

    def __init__(
        self,
        router: Router,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], int],
        refusals: Refusals,
        background: Background = UNCOUNTED,
    ) -> None:
        self._background = background
        self.supervisors: dict[str, Supervisor] = {}
        """Those that run."""
        self.webhooks: dict[str, WebhookSource] = {}
        self.off: dict[str, SourceState] = {}
        """Those that are declared and have nothing to do."""
        self.event_bytes = 0
        self._names: Sequence[str] = ()
        self._successions: dict[str, asyncio.Task[None]] = {}
        self._is_ending = False
        self._made: dict[str, _Reading] = {}
        self._checks = Checks()
        self._router = router
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._refusals = refusals

    def make(self, sources: Mapping[str, SourceConfig], event_bytes: int) -> None:
        """Make all of them. Raises StartupError where one cannot be."""
        self.event_bytes = event_bytes
        self._names = tuple(sources)
        for name, config in sources.items():
            self._add(name, config)

    def states(self) -> list[SourceState]:
        """Return the state of each, in the order of the file."""
        return [self.off[name] if name in self.off else self.supervisors[name].state for name in self._names]

    async def start(self, seconds: float) -> None:
        """Start all, and wait until each has tried once, at most so many seconds."""
        await self._start(self.supervisors.values(), seconds)
        for state in self.off.values():
            log.info("source_off", source=state.name, reason=state.last_error)

    def exposed(self) -> None:
        """Say that somebody may listen from now on."""
        for supervisor in self.supervisors.values():
            supervisor.exposed()

    def pause_webhooks(self) -> None:
        """Answer posts 503 from now on."""
        for hook in self.webhooks.values():
            hook.pause()

    async def stop(self, *, reading_once: bool = False) -> None:
        """End all, or those that one node reads for all; another may have their leases at once.

        Harmless when repeated.
        """
        self._is_ending = True
        supervisors = list(self.supervisors.values())
        await asyncio.gather(*(each.stop() for each in supervisors if each.reads_once or not reading_once))
        await asyncio.gather(*self._successions.values())

    def check(self, sources: Mapping[str, SourceConfig]) -> None:
        """Raise StartupError where one of them could not be made."""
        for name, config in sources.items():
            if not why_off(config):
                source_of(name, config, (), frozenset(), self.event_bytes, self._checks)

    def reconfigure(self, sources: Mapping[str, SourceConfig], event_bytes: int) -> None:
        """Make, end and change what differs; the router must know the new routes already.

        What is the same goes on without a pause. Nobody waits for connections that end, which may be to a
        server that is frozen: whatever follows one of them starts once it is gone.
        """
        self.event_bytes = event_bytes
        for name in list(self._made):
            if name not in sources:
                self._succeed(name, self._remove(name))
        for name, config in sources.items():
            if self._goes_on(name, config):
                continue
            old = self._remove(name) if name in self._made else None
            self._add(name, config)
            self._succeed(name, old)
        self._names = tuple(sources)

    def _succeed(self, name: str, old: Supervisor | None) -> None:
        """Let what is there now under a name start after what was there before."""
        new = self.supervisors.get(name)
        if new is not None:
            new.exposed()
        before = self._successions.get(name)
        task = asyncio.create_task(self._follow(name, before, old, new), name=f"follow {name}")
        self._successions[name] = task

    async def _follow(
        self, name: str, before: "asyncio.Task[None] | None", old: Supervisor | None, new: Supervisor | None
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait((before,))
            if old is not None:
                await old.stop()
            if new is not None and not self._is_ending and self.supervisors.get(name) is new:
                new.start()
        except Exception:
            log.exception("source_not_replaced", source=name)
        finally:
            if self._successions.get(name) is asyncio.current_task():
                del self._successions[name]

    def _goes_on(self, name: str, config: SourceConfig) -> bool:
        """Let a source that is there already take a configuration, if it can."""
        made = self._made.get(name)
        if made is None or made.config.type != config.type:
            return False
        reading = self._reading(name, config)
        supervisor = self.supervisors.get(name)
        is_same = made.config.connection == config.connection
        if supervisor is None:
            self.off[name].critical = config.critical
            return is_same and reading.topics == made.topics
        hook = self.webhooks.get(name)
        if hook is not None and isinstance(config, Webhook):
            hook.reconfigure(config, event_bytes=self.event_bytes)
        elif not is_same or not (
            (reading.topics, reading.places) == (made.topics, made.places)
            or supervisor.retopic(self._router.topics(name))
        ):
            return False
        supervisor.state.critical = config.critical
        self._made[name] = reading
        return True

    def _remove(self, name: str) -> Supervisor | None:
        del self._made[name]
        self.off.pop(name, None)
        self.webhooks.pop(name, None)
        return self.supervisors.pop(name, None)

    async def _start(self, supervisors: Iterable[Supervisor], seconds: float) -> None:
        supervisors = list(supervisors)
        for supervisor in supervisors:
            supervisor.start()
        tries = [asyncio.ensure_future(supervisor.tried()) for supervisor in supervisors]
        if tries:
            try:
                await asyncio.wait(tries, timeout=seconds)
            finally:
                for task in tries:
                    task.cancel()

    def _reading(self, name: str, config: SourceConfig) -> _Reading:
        topics = frozenset(topic.text for topic in self._router.topics(name))
        return _Reading(config, topics, self._router.places(name))

    def _add(self, name: str, config: SourceConfig) -> None:
        self._made[name] = self._reading(name, config)
        state = SourceState(name=name, type=config.type, critical=config.critical)
        reason = why_off(config)
        if not isinstance(config, Webhook) and not self._router.topics(name):
            reason = reason or "no channel reads from it"
        if reason:
            state.status, state.last_error = "off", reason
            self.off[name] = state
            return
        topics, places = self._router.topics(name), self._router.places(name)
        source = source_of(name, config, topics, places, self.event_bytes, self._checks)
        if isinstance(source, WebhookSource):
            self.webhooks[name] = source
        publisher = Publisher(
            state, self._router, self._log.append, self._metrics, self._clock, self._refusals
        )
        self.supervisors[name] = Supervisor(
            source,
            publisher,
            self._log.leases,
            self._log.position,
            self._log.parts,
            self._clock,
            self._background,
        )


def source_of(
    name: str,
    config: SourceConfig,
    topics: Sequence[Template],
    places: frozenset[str],
    event_bytes: int,
    checks: Checks,
) -> Source:
    """Return the source of a configuration. Raises StartupError where it cannot be."""
    if isinstance(config, Webhook):
        return WebhookSource(config, checks, event_bytes=event_bytes)
    if isinstance(config, Kafka):
        return KafkaSource(name, config, topics, places)
    if isinstance(config, RedisStream):
        return RedisStreamSource(config, topics, places)
    return RedisPubSubSource(config.url.get_secret_value(), topics, timeout=config.timeout)
