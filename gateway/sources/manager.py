"""Manages all sources of a node: builds them from the configuration, starts, replaces and stops them."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from gateway.config.model.sources import (
    KafkaConfig,
    RedisStreamConfig,
    SourceConfig,
    WebhookConfig,
    disabled_reason,
)
from gateway.config.template import Template
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentErrors
from gateway.observability.task_supervisor import TaskSupervisor
from gateway.sources.base import SourceState
from gateway.sources.context import EventAppender, Source, SourceContext
from gateway.sources.kafka import KafkaSource
from gateway.sources.redis.pubsub import RedisPubSubSource
from gateway.sources.redis.stream import RedisStreamSource
from gateway.sources.router import Router
from gateway.sources.supervisor import Supervisor
from gateway.sources.webhook import BodyChecker, WebhookSource

log = structlog.get_logger("gateway.sources")


@dataclass(frozen=True, slots=True)
class _SourceInputs:
    """What a source was built from: while it stays equal, a reload leaves the source alone."""

    config: SourceConfig
    topics: frozenset[str]
    placeholders: frozenset[str]


class SourceManager:
    """The sources of a node, by name."""

    def __init__(
        self,
        router: Router,
        appender: EventAppender,
        metrics: Metrics,
        recent_errors: RecentErrors,
        background: TaskSupervisor,
    ) -> None:
        self.supervisors: dict[str, Supervisor] = {}
        """The sources that run."""
        self.webhooks: dict[str, WebhookSource] = {}
        self.disabled: dict[str, SourceState] = {}
        """The sources that are declared and off: without a URL, or read by no channel."""
        self.event_bytes = 0
        self._declared_names: Sequence[str] = ()
        self._replacements: dict[str, asyncio.Task[None]] = {}
        self._is_stopping = False
        self._inputs: dict[str, _SourceInputs] = {}
        self._body_checker = BodyChecker()
        self._router = router
        self._appender = appender
        self._metrics = metrics
        self._recent_errors = recent_errors
        self._background = background

    def build(self, sources: Mapping[str, SourceConfig], event_bytes: int) -> None:
        """Build all sources. Raises StartupError if one cannot be built."""
        self.event_bytes = event_bytes
        self._declared_names = tuple(sources)
        for name, config in sources.items():
            self._add(name, config)

    def states(self) -> list[SourceState]:
        """Return the state of each source, in the order of the file."""
        return [
            self.disabled[name] if name in self.disabled else self.supervisors[name].state
            for name in self._declared_names
        ]

    async def start(self, seconds: float) -> None:
        """Start all, and wait at most so many seconds until each has connected or failed once."""
        supervisors = list(self.supervisors.values())
        for supervisor in supervisors:
            supervisor.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for supervisor in supervisors:
                    await supervisor.context.first_attempt_done.wait()
        for state in self.disabled.values():
            log.info("source_off", source=state.name, reason=state.last_error)

    def mark_serving(self) -> None:
        """Note that clients may subscribe from now on; see `Supervisor.mark_serving`."""
        for supervisor in self.supervisors.values():
            supervisor.mark_serving()

    def pause_webhooks(self) -> None:
        """Answer webhooks with 503 from now on."""
        for hook in self.webhooks.values():
            hook.pause()

    async def stop(self, *, exclusive_only: bool = False) -> None:
        """Stop all sources, or only the exclusive ones, whose leases other nodes can then acquire at once.

        Harmless when repeated.
        """
        self._is_stopping = True
        supervisors = list(self.supervisors.values())
        await asyncio.gather(
            *(each.stop() for each in supervisors if each.is_exclusive or not exclusive_only)
        )
        await asyncio.gather(*self._replacements.values())

    def validate(self, sources: Mapping[str, SourceConfig]) -> None:
        """Raise StartupError if one of the sources could not be built."""
        for name, config in sources.items():
            if not disabled_reason(config):
                build_source(name, config, (), frozenset(), self.event_bytes, self._body_checker)

    def reconfigure(self, sources: Mapping[str, SourceConfig], event_bytes: int) -> None:
        """Add, remove and update the sources that differ; the router must know the new routes already.

        Unchanged sources go on without a pause. This does not wait for connections to close, which may be
        to a frozen server: a replacement starts once its predecessor has stopped.
        """
        self.event_bytes = event_bytes
        for name in list(self._inputs):
            if name not in sources:
                self._replace(name, self._remove(name))
        for name, config in sources.items():
            if self._try_update(name, config):
                continue
            old = self._remove(name) if name in self._inputs else None
            self._add(name, config)
            self._replace(name, old)
        self._declared_names = tuple(sources)

    def _replace(self, name: str, old: Supervisor | None) -> None:
        """Start the current source of a name once the ``old`` one has stopped."""
        new = self.supervisors.get(name)
        if new is not None:
            new.mark_serving()
        before = self._replacements.get(name)
        self._replacements[name] = asyncio.create_task(
            self._run_replacement(name, before, old, new), name=f"replace {name}"
        )

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
        """Apply a configuration to an existing source; False if the source has to be replaced."""
        old = self._inputs.get(name)
        if old is None or old.config.type != config.type:
            return False
        new = self._inputs_of(name, config)
        supervisor = self.supervisors.get(name)
        is_same = old.config.connection_settings == config.connection_settings
        if supervisor is None:
            self.disabled[name].is_critical = config.critical
            return is_same and new.topics == old.topics
        hook = self.webhooks.get(name)
        if hook is not None and isinstance(config, WebhookConfig):
            hook.reconfigure(config, event_bytes=self.event_bytes)
        elif not is_same or not (
            (new.topics, new.placeholders) == (old.topics, old.placeholders)
            or supervisor.update_topics(self._router.topics(name))
        ):
            return False
        supervisor.state.is_critical = config.critical
        self._inputs[name] = new
        return True

    def _remove(self, name: str) -> Supervisor | None:
        del self._inputs[name]
        self.disabled.pop(name, None)
        self.webhooks.pop(name, None)
        return self.supervisors.pop(name, None)

    def _inputs_of(self, name: str, config: SourceConfig) -> _SourceInputs:
        topics = frozenset(topic.text for topic in self._router.topics(name))
        return _SourceInputs(config, topics, self._router.placeholders(name))

    def _add(self, name: str, config: SourceConfig) -> None:
        self._inputs[name] = self._inputs_of(name, config)
        state = SourceState(name=name, type=config.type, is_critical=config.critical)
        topics, placeholders = self._router.topics(name), self._router.placeholders(name)
        reason = disabled_reason(config)
        if not isinstance(config, WebhookConfig) and not topics:
            reason = reason or "no channel reads from it"
        if reason:
            state.status, state.last_error = "off", reason
            self.disabled[name] = state
            return
        source = build_source(name, config, topics, placeholders, self.event_bytes, self._body_checker)
        if isinstance(source, WebhookSource):
            self.webhooks[name] = source
        context = SourceContext(state, self._router, self._appender, self._metrics, self._recent_errors)
        self.supervisors[name] = Supervisor(source, context, self._background)


def build_source(
    name: str,
    config: SourceConfig,
    topics: Sequence[Template],
    placeholders: frozenset[str],
    event_bytes: int,
    body_checker: BodyChecker,
) -> Source:
    """Return the source that a configuration declares. Raises StartupError if it cannot be built."""
    if isinstance(config, WebhookConfig):
        return WebhookSource(config, body_checker, event_bytes=event_bytes)
    if isinstance(config, KafkaConfig):
        return KafkaSource(name, config, topics, placeholders)
    if isinstance(config, RedisStreamConfig):
        return RedisStreamSource(config, topics, placeholders)
    return RedisPubSubSource(config.url.get_secret_value(), topics, timeout=config.timeout)
