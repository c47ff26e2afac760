"""Sources, tried: each is started as the gateway starts it, into a feed that takes nothing.

A source connects, subscribes, and looks where its topics are, with its own code, deadlines and words; then
it is cancelled. Nothing that it reads goes anywhere.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from gateway.cli.check.messages import kafka_mend, plain, redis_mend
from gateway.cli.doctor.finding import Finding, bad, ok, skip, warn
from gateway.config.catalog import Catalog
from gateway.config.model.config import Config
from gateway.config.model.sources import Kafka, RedisPubSub, RedisStream, why_off
from gateway.config.template import Template
from gateway.core.event import Fence, Record
from gateway.sources.base import Feed, Gap, Source
from gateway.sources.manager import source_of
from gateway.sources.router import Router
from gateway.sources.webhook import Checks
from gateway.webhooks.formats.base import Outcome

PATIENCE_SECONDS = 5.0
"""How long an answer may take here, where the file allows more."""

Upstream = RedisPubSub | RedisStream | Kafka


class Dry(Feed):
    """A feed that takes nothing, and remembers of which parts a source asked where it was."""

    def __init__(self, patterns: int) -> None:
        self.is_connected = asyncio.Event()
        self.has_looked = asyncio.Event()
        self.tried: set[str] = set()
        self._patterns = patterns

    def connected(self) -> None:
        self.is_connected.set()

    async def publish(
        self,
        records: Sequence[Record],
        position: str | None = None,
        fence: Fence | None = None,
        *,
        part: str = "",
        gap: Gap | None = None,
    ) -> None:
        if records:
            await asyncio.Event().wait()  # until cancelled: what was read is not moved on from
        self.tried.add(part)
        if sum(each.startswith("*") for each in self.tried) == self._patterns:
            self.has_looked.set()

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        raise NotImplementedError("nothing is posted to a source that is tried")

    def repeated(self, events: int) -> None:
        return

    def reject(self, reason: str, why: str = "", **about: str | None) -> None:
        return

    async def leading(self) -> Fence:
        return Fence("check", 1)

    @property
    def is_leading(self) -> bool:
        return True

    def renew(self) -> None:
        return

    async def position(self, part: str = "") -> str | None:
        return None

    async def parts(self) -> list[str]:
        return []

    def lags(self, records: int) -> None:
        return

    @property
    def missed_since(self) -> int | None:
        return None


def tries(config: Config) -> Iterator[tuple[str, Coroutine[Any, Any, Finding]]]:
    """Yield what there is to try."""
    router = Router(Catalog(config.channels), event_bytes=config.limits.event_bytes)
    for name, source in config.sources.items():
        what = f"sources.{name}"
        if not isinstance(source, Upstream):
            continue
        topics = router.topics(name)
        if why_off(source):
            yield what, _skipped(what, "off: its url or brokers are empty")
        elif not topics:
            yield what, _skipped(what, "no channel reads from it")
        else:
            yield what, _source(what, name, source, topics, router.places(name))


async def _skipped(what: str, why: str) -> Finding:
    return skip(what, why)


async def _source(
    what: str, name: str, config: Upstream, topics: Sequence[Template], places: frozenset[str]
) -> Finding:
    config = config.model_copy(update={"timeout": min(config.timeout, PATIENCE_SECONDS)})
    try:
        source = source_of(name, config, topics, places, 0, Checks())
        missing = await _run(source, config, topics)
    except TimeoutError:
        return _bad(what, TimeoutError(f"no answer within {3 * config.timeout:g} s"), config)
    except Exception as error:  # whatever ends a source is told, as its supervisor would
        return _bad(what, error, config)
    if missing:
        return warn(
            what,
            f"reached, and there is no topic {', '.join(missing)} yet",
            "see that the name is right; it is read from its beginning once it is there",
        )
    count = len(topics)
    return ok(what, f"reached; {count} {'topic' if count == 1 else 'topics'} can be read")


async def _run(source: Source, config: Upstream, topics: Sequence[Template]) -> Sequence[str]:
    """Run a source until it has looked around; return the topics that are not there. Raises its errors."""
    # A stream that is missing is nothing: XADD makes it. Kafka tells what there is.
    is_kafka = isinstance(config, Kafka)
    feed = Dry(len(topics))
    running = asyncio.create_task(source.run(feed), name="try a source")
    looked = asyncio.create_task((feed.has_looked if is_kafka else feed.is_connected).wait())
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
    found = {part.rpartition("/")[0] for part in feed.tried if not part.startswith("*")}
    return [topic.text for topic in topics if not any(topic.match(each) is not None for each in found)]


def _bad(what: str, error: Exception, config: Upstream) -> Finding:
    text = plain(error)
    if isinstance(config, Kafka):
        return bad(what, text, kafka_mend(text))
    return bad(what, text, redis_mend(text, tls=config.url.get_secret_value().startswith("rediss")))
