"""Kafka as a source: exactly once into the log, in each partition's order. Needs the extra ``kafka``.

How it works. The node with the lease reads all partitions; the others are connected and wait. Where each
partition is read on is in the log, stored with the events that the records became, so whoever reads next
goes on there. Kafka's own groups do not share the work: every node follows the whole log anyway, and a lease
changes hands in seconds where a group takes a session's timeout (docs/decisions/0008). Offsets are
committed to the group all the same, for the tools that show lag; nothing reads them here.

aiokafka tells an outage in its log only, and hangs. So the brokers are asked for their topics now and then,
with a deadline, and whatever fails ends `run`.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

import structlog

try:
    from aiokafka import AIOKafkaConsumer, TopicPartition
    from aiokafka.errors import KafkaError, OffsetOutOfRangeError
except ImportError:  # the extra is not installed
    AIOKafkaConsumer = None

from gateway.config.model.sources import Kafka, parse_since
from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.errors import Fenced, SourceError, StartupError, Unavailable
from gateway.core.event import NOTHING, Fence, Record, text_of
from gateway.net.pem import Trouble, load_authority, load_identity
from gateway.sources.base import Feed, Gap, Source, read_under_lease

log = structlog.get_logger("gateway.sources")

BATCH = 1000
"""Most records that are taken at once, all partitions together."""

WAIT_SECONDS = 1.0
"""How long a poll waits for records; what is asked for meanwhile is seen then."""

COMMIT_SECONDS = 5.0
"""How often offsets are committed for others to see."""


class KafkaSource(Source):
    """Reads the topics that ``topics`` name: exact, globs, templates."""

    def __init__(self, name: str, config: Kafka, topics: Sequence[Template], places: frozenset[str]) -> None:
        if AIOKafkaConsumer is None:
            raise StartupError(f"sources.{name} needs the extra for Kafka: pip install 'sse-gateway[kafka]'")
        self.topics = topics
        self.start = config.start
        self.scan_seconds = config.scan
        self.timeout = config.timeout
        self._places = places
        self._options = _options(name, config)

    async def run(self, feed: Feed) -> None:
        last_words = _LastWords()
        logging.getLogger("aiokafka").addHandler(last_words)
        consumer = AIOKafkaConsumer(**self._options)
        try:
            async with asyncio.timeout(2 * self.timeout):
                await consumer.start()
            feed.connected()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(consumer))
                group.create_task(self._lead(consumer, feed))
        except ExceptionGroup as group_of:
            raise self._cause(group_of.exceptions[0], last_words) from None
        except (TimeoutError, KafkaError, OSError, ValueError) as error:
            raise self._cause(error, last_words) from None
        finally:
            logging.getLogger("aiokafka").removeHandler(last_words)
            await self._stop(consumer)

    async def _watch(self, consumer: Any) -> None:
        while True:
            await asyncio.sleep(jittered(self.timeout / 2, 0.2))
            await self.metadata(consumer)

    async def _lead(self, consumer: Any, feed: Feed) -> None:
        places: dict[Any, _Place] = {}

        async def read(fence: Fence) -> None:
            reading = _Reading(self, consumer, feed, fence, places)
            try:
                await reading.run()
            except (Fenced, Unavailable):
                places.update(reading.places)
                consumer.unsubscribe()
                raise

        await read_under_lease(feed, read)

    async def metadata(self, consumer: Any) -> Any:
        """Return the topics and partitions that there are; the consumer itself tells of its own only."""
        fetch = getattr(getattr(consumer, "_client", None), "fetch_all_metadata", None)
        if fetch is None:
            raise SourceError("this version of aiokafka does not tell of all topics; install aiokafka 0.14")
        async with asyncio.timeout(self.timeout):
            return await fetch()

    async def _stop(self, consumer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(self.timeout):
                await consumer.stop()
        except asyncio.CancelledError:
            # Without a broker aiokafka raises this by itself, and leaves its client open.
            if task.cancelling() > cancelled:
                raise
        except Exception as error:
            log.info("kafka_close_failed", error=str(error) or type(error).__name__)
        finally:
            with suppress(Exception):
                async with asyncio.timeout(self.timeout):
                    await consumer._client.close()

    def _cause(self, error: BaseException, last_words: "_LastWords") -> Exception:
        if isinstance(error, TimeoutError):
            return SourceError(f"Kafka gave no answer within {self.timeout:g} s")
        if isinstance(error, (KafkaError, OSError, ValueError)):
            why = f" ({last_words.text})" if last_words.text and last_words.text not in str(error) else ""
            return SourceError(f"Kafka: {error or type(error).__name__}{why}")
        return error if isinstance(error, Exception) else SourceError(type(error).__name__)

    def record(self, message: Any) -> Record:
        """Return what a message is; one without a value is ``null``."""
        values: Mapping[str, str] = NOTHING
        if self._places:
            values = {"partition": str(message.partition), "offset": str(message.offset)}
            values |= {  # of a name that is given twice the first
                f"headers.{name.lower()}": text_of(value)
                for name, value in reversed(message.headers)
                if value is not None
            }
            if message.key is not None:
                values["key"] = text_of(message.key)
        return Record(
            message.topic,
            b"null" if message.value is None else message.value,
            timestamp=message.timestamp if message.timestamp >= 0 else None,
            values=values,
        )


class _Place(NamedTuple):
    """Before the record ``offset``; the one before it had the time ``ms`` (unix), -1 where none was read."""

    offset: int
    ms: int = -1

    def __str__(self) -> str:
        return f"{self.offset}/{self.ms}"

    @classmethod
    def parse(cls, text: str) -> "_Place | None":
        """Return the place that ``text`` spells, or None."""
        offset, _, ms = text.partition("/")
        try:
            return cls(int(offset), int(ms))
        except ValueError:
            return None


class _Reading:
    """One reader's turn: the partitions, and how far each was read."""

    def __init__(
        self, source: KafkaSource, consumer: Any, feed: Feed, fence: Fence, earlier: Mapping[Any, _Place]
    ) -> None:
        self._source = source
        self._consumer = consumer
        self._feed = feed
        self._fence = fence
        self._earlier = earlier
        self.places: dict[Any, _Place] = {}
        self._committed: dict[Any, int] = {}

    async def run(self) -> None:
        """Read until the lease is lost. Raises Fenced, Unavailable, KafkaError or TimeoutError."""
        loop = asyncio.get_running_loop()
        scanned = committed = loop.time()
        await self._find()
        while True:
            if not self._feed.is_leading:
                raise Fenced("the lease is another node's")
            await self._step()
            if loop.time() - scanned >= self._source.scan_seconds:
                await self._find()
                scanned = loop.time()
            if loop.time() - committed >= COMMIT_SECONDS:
                await self._commit()
                committed = loop.time()

    # Which partitions there are.

    async def _find(self) -> None:
        """Assign what is there: where each partition was read to is in the log, else `start` says it."""
        cluster = await self._source.metadata(self._consumer)
        names = sorted(cluster.topics())
        found: dict[Any, bool] = {}
        unwatched = []
        for topic in self._source.topics:
            mark = f"*{topic.redis_pattern}"
            is_watched = await self._feed.position(mark) is not None
            if not is_watched:
                unwatched.append(mark)
            for name in (name for name in names if topic.match(name) is not None):
                for number in sorted(cluster.partitions_for_topic(name) or ()):
                    # What appears under a watched topic, a partition too, is new as a whole.
                    part = TopicPartition(name, number)
                    found[part] = found.get(part, False) or is_watched
        new = {part: is_new for part, is_new in found.items() if part not in self.places}
        if new or len(found) < len(self.places):
            begun = await self._begin(new)
            kept = {part: place for part, place in self.places.items() if part in found}
            self.places = kept | begun
            # No await in between: nothing is fetched from anywhere else.
            self._consumer.assign(list(self.places))
            for part, place in self.places.items():
                self._consumer.seek(part, place.offset)
        for mark in unwatched:
            await self._feed.publish([], "watched", self._fence, part=mark)

    async def _begin(self, new: Mapping[Any, bool]) -> dict[Any, _Place]:
        places: dict[Any, _Place] = {}
        unknown: dict[str, list[Any]] = {}
        for part, is_new in new.items():
            text = await self._feed.position(_part(part))
            place = _Place.parse(text) if text is not None else None
            place = place or self._earlier.get(part)  # the log forgot all
            if place is not None:
                places[part] = place
            else:
                unknown.setdefault("oldest" if is_new else self._source.start, []).append(part)
        for start, parts in unknown.items():
            for part, offset in (await self._first(start, parts)).items():
                places[part] = _Place(offset)
                await self._feed.publish([], str(places[part]), self._fence, part=_part(part))
        return places

    async def _first(self, start: str, parts: Sequence[Any]) -> Mapping[Any, int]:
        async with asyncio.timeout(self._source.timeout):
            if start == "oldest":
                return dict(await self._consumer.beginning_offsets(parts))
            ends = dict(await self._consumer.end_offsets(parts))
            if start == "new":
                return ends
            since = parse_since(start)
            when = since.timestamp() if isinstance(since, datetime) else time.time() - since
            found = await self._consumer.offsets_for_times({part: round(when * 1000) for part in parts})
            return {part: ends[part] if at is None else at.offset for part, at in found.items()}

    # Reading.

    async def _step(self) -> None:
        if not self.places:
            await asyncio.sleep(WAIT_SECONDS)
            return
        try:
            batches = await self._consumer.getmany(timeout_ms=round(WAIT_SECONDS * 1000), max_records=BATCH)
        except OffsetOutOfRangeError as error:
            for part, offset in error.args[0].items():
                await self._out_of_range(part, offset)
            return
        if not self._feed.is_leading:
            raise Fenced("the lease is another node's")
        # The consumer also steps over what is no record: the marks of transactions.
        behind = {part: await self._consumer.position(part) for part in self.places}
        work = [
            self._take(part, batches.get(part, ()), offset)
            for part, offset in behind.items()
            if offset > self.places[part].offset
        ]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        self._feed.lags(sum(self._waiting(part, place.offset) for part, place in self.places.items()))

    def _waiting(self, part: Any, offset: int) -> int:
        end = self._consumer.last_stable_offset(part)
        if end is None or end < 0:
            end = self._consumer.highwater(part) or 0
        return max(0, int(end) - offset)

    async def _take(self, part: Any, messages: Sequence[Any], behind: int) -> None:
        records = [self._source.record(message) for message in messages]
        place = _Place(behind, messages[-1].timestamp if messages else self.places[part].ms)
        await self._feed.publish(records, str(place), self._fence, part=_part(part))
        self.places[part] = place

    async def _out_of_range(self, part: Any, offset: int) -> None:
        """Go on where the partition begins now, or ends if it became shorter, and tell the gap."""
        async with asyncio.timeout(self._source.timeout):
            first = (await self._consumer.beginning_offsets([part]))[part]
            end = (await self._consumer.end_offsets([part]))[part]
        before = self.places[part]
        missing = first - offset if offset < first else None
        place = _Place(first if missing is not None else end, before.ms)
        gap = Gap(before.ms if before.ms >= 0 else None, part.topic, missing)
        await self._feed.publish([], str(place), self._fence, part=_part(part), gap=gap)
        self.places[part] = place
        self._consumer.seek(part, place.offset)

    async def _commit(self) -> None:
        """Show how far we are; a failure harms nobody, because nothing is read from there."""
        changed = {
            part: place.offset
            for part, place in self.places.items()
            if self._committed.get(part) != place.offset
        }
        if not changed:
            return
        try:
            async with asyncio.timeout(self._source.timeout):
                await self._consumer.commit(changed)
        except (KafkaError, TimeoutError) as error:
            log.info("kafka_commit_failed", error=str(error) or type(error).__name__)
            return
        self._committed |= changed


class _LastWords(logging.Handler):
    """Keeps aiokafka's last error: some causes are told nowhere else. Its lines go no further."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:300]


def _options(name: str, config: Kafka) -> dict[str, Any]:
    return {
        **connection_options(name, config),
        "group_id": config.group,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",  # what a producer took back is no event
    }


def connection_options(name: str, config: Kafka) -> dict[str, Any]:
    """Return aiokafka's options of any client of these brokers. Raises StartupError."""
    logging.getLogger("aiokafka").propagate = False  # 74 lines a second while a broker is away
    options: dict[str, Any] = {
        "bootstrap_servers": [each.strip() for each in config.brokers.split(",")],
        "client_id": "sse-gateway",
        "request_timeout_ms": round(config.timeout * 1000),
        "metadata_max_age_ms": round(config.scan * 1000),
        "retry_backoff_ms": 500,
        "security_protocol": ("SASL_" if config.sasl else "") + ("SSL" if config.tls else "PLAINTEXT"),
    }
    if config.tls:
        options["ssl_context"] = _tls(name, config)
    if config.sasl:
        options |= {
            "sasl_mechanism": config.sasl.mechanism,
            "sasl_plain_username": config.sasl.username,
            "sasl_plain_password": config.sasl.password.get_secret_value(),
        }
    return options


def _tls(name: str, config: Kafka) -> ssl.SSLContext:
    tls = config.tls
    assert tls is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = tls.check_hostname
    found: list[Trouble] = []
    if tls.ca_file is None:
        context.load_default_certs()
    else:
        found += load_authority(context, tls.ca_file)
    if tls.certificate is not None:
        found += load_identity(context, tls.certificate, tls.key)
    for part, message in found:
        raise StartupError(f"sources.{name}.tls.{'ca_file' if part == 'authority' else part}: {message}")
    return context


def _part(part: Any) -> str:
    return f"{part.topic}/{part.partition}"
