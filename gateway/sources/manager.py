"""All sources of a node: made from the configuration, started, stopped, and changed by a reload."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from gateway.config.model.config import Config
from gateway.config.model.sources import KafkaConfig, RedisStreamConfig, WebhookConfig, disabled_reason
from gateway.config.model.sources import SourceConfig as SourceConfig
from gateway.config.template import Template
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentErrors
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.sources.base import Source, SourceState
from gateway.sources.election import LeaseOperations
from gateway.sources.kafka import KafkaSource
from gateway.sources.publisher import AppendDrafts, Publisher
from gateway.sources.redis.pubsub import RedisPubSubSource
from gateway.sources.redis.stream import RedisStreamSource
from gateway.sources.router import Router
from gateway.sources.supervisor import Supervisor
from gateway.sources.webhook import BodyChecker, WebhookSource

log = structlog.get_logger("gateway.sources")


@dataclass(frozen=True, slots=True)
class LogAccess:
    """The part of the event log that sources use."""

    append: AppendDrafts
    lease_operations: LeaseOperations
    read_offset: Callable[[str], Awaitable[str | None]]
    list_partitions: Callable[[str], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class _SourceInputs:
    """What a source was made of: while it stays the same, the source goes on."""

    config: SourceConfig
    topics: frozenset[str]
    placeholders: frozenset[str]


class SourceManager:
    """`start` and `stop` are their whole life; `apply` brings what another configuration changes."""

    def __init__(
        self,
        router: Router,
        log_access: LogAccess,
        metrics: Metrics,
        clock: Callable[[], int],
        recent_errors: RecentErrors,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._background = background
        self.supervisors: dict[str, Supervisor] = {}
        """Those that run."""
        self.webhooks: dict[str, WebhookSource] = {}
        self.disabled: dict[str, SourceState] = {}
        """Those that are declared and have nothing to do."""
        self.event_bytes = 0
        self._declared_names: Sequence[str] = ()
        self._replacements: dict[str, asyncio.Task[None]] = {}
        self._is_stopping = False
        self._inputs: dict[str, _SourceInputs] = {}
        self._body_checker = BodyChecker()
        self._router = router
        self._log_access = log_access
        self._metrics = metrics
        self._clock = clock
        self._recent_errors = recent_errors

    def build(self, sources: Mapping[str, SourceConfig], event_bytes: int) -> None:
        """Make all of them. Raises StartupError where one cannot be."""
        self.event_bytes = event_bytes
        self._declared_names = tuple(sources)
        for name, config in sources.items():
            self._add(name, config)

    def states(self) -> list[SourceState]:
        """Return the state of each, in the order of the file."""
        return [
            self.disabled[name] if name in self.disabled else self.supervisors[name].state
            for name in self._declared_names
        ]

    async def start(self, seconds: float) -> None:
        """Start all, and wait until each has tried once, at most so many seconds."""
        await self._start_and_wait(self.supervisors.values(), seconds)
        for state in self.disabled.values():
            log.info("source_off", source=state.name, reason=state.last_error)

    def mark_serving(self) -> None:
        """Say that somebody may listen from now on."""
        for supervisor in self.supervisors.values():
            supervisor.mark_serving()

    def pause_webhooks(self) -> None:
        """Answer posts 503 from now on."""
        for hook in self.webhooks.values():
            hook.pause()

    async def stop(self, *, exclusive_only: bool = False) -> None:
        """End all, or those that one node reads for all; another may have their leases at once.

        Harmless when repeated.
        """
        self._is_stopping = True
        supervisors = list(self.supervisors.values())
        await asyncio.gather(
            *(each.stop() for each in supervisors if each.is_exclusive or not exclusive_only)
        )
        await asyncio.gather(*self._replacements.values())

    def validate(self, sources: Mapping[str, SourceConfig]) -> None:
        """Raise StartupError where one of them could not be made."""
        for name, config in sources.items():
            if not disabled_reason(config):
                build_source(name, config, (), frozenset(), self.event_bytes, self._body_checker)

    def apply(self, config: Config) -> None:
        """Make, end and change what differs; the router must know the new routes already.

        What is the same goes on without a pause. Nobody waits for connections that end, which may be to a
        server that is frozen: whatever follows one of them starts once it is gone.
        """
        self.event_bytes, sources = config.limits.event_bytes, config.sources
        for name in list(self._inputs):
            if name not in sources:
                self._replace(name, self._remove(name))
        for name, source in sources.items():
            if self._try_update(name, source):
                continue
            old = self._remove(name) if name in self._inputs else None
            self._add(name, source)
            self._replace(name, old)
        self._declared_names = tuple(sources)

    def _replace(self, name: str, old: Supervisor | None) -> None:
        """Let what is there now under a name start after what was there before."""
        new = self.supervisors.get(name)
        if new is not None:
            new.mark_serving()
        before = self._replacements.get(name)
        task = asyncio.create_task(self._run_replacement(name, before, old, new), name=f"follow {name}")
        self._replacements[name] = task

    async def _run_replacement(
        self, name: str, before: "asyncio.Task[None] | None", old: Supervisor | None, new: Supervisor | None
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait((before,))
            if old is not None:
                await old.stop()
            if new is not None and not self._is_stopping and self.supervisors.get(name) is new:
                new.start()
        except Exception:
            log.exception("source_not_replaced", source=name)
        finally:
            if self._replacements.get(name) is asyncio.current_task():
                del self._replacements[name]

    def _try_update(self, name: str, config: SourceConfig) -> bool:
        """Let a source that is there already take a configuration, if it can."""
        made = self._inputs.get(name)
        if made is None or made.config.type != config.type:
            return False
        reading = self._inputs_of(name, config)
        supervisor = self.supervisors.get(name)
        is_same = made.config.connection_settings == config.connection_settings
        if supervisor is None:
            self.disabled[name].is_critical = config.critical
            return is_same and reading.topics == made.topics
        hook = self.webhooks.get(name)
        if hook is not None and isinstance(config, WebhookConfig):
            hook.update(config, self.event_bytes)
        elif not is_same or not (
            (reading.topics, reading.placeholders) == (made.topics, made.placeholders)
            or supervisor.update_topics(self._router.topics(name))
        ):
            return False
        supervisor.state.is_critical = config.critical
        self._inputs[name] = reading
        return True

    def _remove(self, name: str) -> Supervisor | None:
        del self._inputs[name]
        self.disabled.pop(name, None)
        self.webhooks.pop(name, None)
        return self.supervisors.pop(name, None)

    async def _start_and_wait(self, supervisors: Iterable[Supervisor], seconds: float) -> None:
        supervisors = list(supervisors)
        for supervisor in supervisors:
            supervisor.start()
        tries = [asyncio.ensure_future(supervisor.wait_first_attempt()) for supervisor in supervisors]
        if tries:
            try:
                await asyncio.wait(tries, timeout=seconds)
            finally:
                for task in tries:
                    task.cancel()

    def _inputs_of(self, name: str, config: SourceConfig) -> _SourceInputs:
        topics = frozenset(topic.text for topic in self._router.topics(name))
        return _SourceInputs(config, topics, self._router.placeholders(name))

    def _add(self, name: str, config: SourceConfig) -> None:
        self._inputs[name] = self._inputs_of(name, config)
        state = SourceState(name=name, type=config.type, is_critical=config.critical)
        reason = disabled_reason(config)
        if not isinstance(config, WebhookConfig) and not self._router.topics(name):
            reason = reason or "no channel reads from it"
        if reason:
            state.status, state.last_error = "off", reason
            self.disabled[name] = state
            return
        topics, places = self._router.topics(name), self._router.placeholders(name)
        source = build_source(name, config, topics, places, self.event_bytes, self._body_checker)
        if isinstance(source, WebhookSource):
            self.webhooks[name] = source
        publisher = Publisher(
            state, self._router, self._log_access.append, self._metrics, self._clock, self._recent_errors
        )
        self.supervisors[name] = Supervisor(
            source,
            publisher,
            self._log_access.lease_operations,
            self._log_access.read_offset,
            self._log_access.list_partitions,
            self._clock,
            self._background,
        )


def build_source(
    name: str,
    config: SourceConfig,
    topics: Sequence[Template],
    placeholders: frozenset[str],
    event_bytes: int,
    body_checker: BodyChecker,
) -> Source:
    """Return the source of a configuration. Raises StartupError where it cannot be."""
    if isinstance(config, WebhookConfig):
        return WebhookSource(config, body_checker, event_bytes=event_bytes)
    if isinstance(config, KafkaConfig):
        return KafkaSource(name, config, topics, placeholders)
    if isinstance(config, RedisStreamConfig):
        return RedisStreamSource(config, topics, placeholders)
    return RedisPubSubSource(config.url.get_secret_value(), topics, timeout=config.timeout)
