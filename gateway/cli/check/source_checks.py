"""Tries sources: each is started as the gateway starts it, with a context that drops its records.

A source connects, subscribes and finds its topics with its own code, deadlines and messages; then it is
cancelled. Its offsets are not moved.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from gateway.cli.check.messages import describe_upstream_error, suggest_kafka_fix, suggest_redis_fix
from gateway.cli.finding import Finding, bad, ok, skip, warn
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import Config
from gateway.config.model.sources import KafkaConfig, RedisPubSubConfig, RedisStreamConfig, disabled_reason
from gateway.config.template import Template
from gateway.core.event import FencingToken, Record
from gateway.sources.base import SourceGap
from gateway.sources.context import Source, SourceContext
from gateway.sources.manager import build_source
from gateway.sources.router import Router
from gateway.sources.webhook import BodyChecker
from gateway.webhooks.formats.base import Outcome

MAX_TIMEOUT_SECONDS = 5.0
"""Longest timeout of a source here, if the configuration allows more."""

UpstreamConfig = RedisPubSubConfig | RedisStreamConfig | KafkaConfig


class DryRunContext(SourceContext):
    """A context without a log, which records the partitions that a source reports."""

    def __init__(self, pattern_count: int) -> None:
        self.is_connected = asyncio.Event()
        self.has_listed_topics = asyncio.Event()
        self.seen_partitions: set[str] = set()
        self.missed_since_ms = None
        self._pattern_count = pattern_count

    def report_connected(self) -> None:
        self.is_connected.set()

    async def publish(
        self,
        records: Sequence[Record],
        offset: str | None = None,
        fence: FencingToken | None = None,
        *,
        partition: str = "",
        gap: SourceGap | None = None,
    ) -> None:
        if records:
            await asyncio.Event().wait()  # until cancelled: no offset is moved
        self.seen_partitions.add(partition)
        if sum(each.startswith("*") for each in self.seen_partitions) == self._pattern_count:
            self.has_listed_topics.set()

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        raise NotImplementedError("webhooks are not tried")

    def count_duplicates(self, events: int) -> None:
        return

    def count_rejection(self, reason: str, message: str = "", **details: str | None) -> None:
        return

    async def wait_for_lease(self) -> FencingToken:
        return FencingToken("check", 1)

    @property
    def has_lease(self) -> bool:
        return True

    def reacquire_lease(self) -> None:
        return

    async def read_offset(self, partition: str = "") -> str | None:
        return None

    async def list_partitions(self) -> list[str]:
        return []

    def report_lag(self, records: int) -> None:
        return


def pending_checks(config: Config) -> Iterator[tuple[str, Coroutine[Any, Any, Finding]]]:
    """Yield the sources to try, each with its check."""
    router = Router(ChannelCatalog(config.channels), event_bytes=config.limits.event_bytes)
    for name, source in config.sources.items():
        what = f"sources.{name}"
        if not isinstance(source, UpstreamConfig):
            continue
        topics = router.topics(name)
        if disabled_reason(source):
            yield what, _skipped(what, "off: its url or brokers are empty")
        elif not topics:
            yield what, _skipped(what, "no channel reads from it")
        else:
            yield what, _check_source(what, name, source, topics, router.placeholders(name))


async def _skipped(what: str, why: str) -> Finding:
    return skip(what, why)


async def _check_source(
    what: str, name: str, config: UpstreamConfig, topics: Sequence[Template], placeholders: frozenset[str]
) -> Finding:
    config = config.model_copy(update={"timeout": min(config.timeout, MAX_TIMEOUT_SECONDS)})
    try:
        source = build_source(name, config, topics, placeholders, 0, BodyChecker())
        missing = await _dry_run(source, config, topics)
    except TimeoutError:
        return _source_failure(what, TimeoutError(f"no answer within {3 * config.timeout:g} s"), config)
    except Exception as error:  # any failure is reported, as the supervisor of sources does
        return _source_failure(what, error, config)
    if missing:
        fix = "check the name; a new topic is read from its beginning"
        return warn(what, f"reached, and there is no topic {', '.join(missing)} yet", fix)
    count = len(topics)
    return ok(what, f"reached; {count} {'topic' if count == 1 else 'topics'} can be read")


async def _dry_run(source: Source, config: UpstreamConfig, topics: Sequence[Template]) -> Sequence[str]:
    """Run a source until it has found its topics; return the missing ones. Raises the source's errors."""
    # A missing Redis stream is created by XADD. Kafka lists its topics.
    is_kafka = isinstance(config, KafkaConfig)
    context = DryRunContext(len(topics))
    running = asyncio.create_task(source.run(context), name="try source")
    looked = asyncio.create_task((context.has_listed_topics if is_kafka else context.is_connected).wait())
    try:
        async with asyncio.timeout(3 * config.timeout):
            await asyncio.wait((running, looked), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
    finally:
        for task in (running, looked):
            task.cancel()
        await asyncio.gather(running, looked, return_exceptions=True)
    if not is_kafka:
        return []
    found = {part.rpartition("/")[0] for part in context.seen_partitions if not part.startswith("*")}
    return [topic.text for topic in topics if not any(topic.match(each) is not None for each in found)]


def _source_failure(what: str, error: Exception, config: UpstreamConfig) -> Finding:
    text = describe_upstream_error(error)
    if isinstance(config, KafkaConfig):
        return bad(what, text, suggest_kafka_fix(text))
    return bad(what, text, suggest_redis_fix(text, is_tls=config.url.get_secret_value().startswith("rediss")))
