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
from typing import Any

import structlog

try:
    from aiokafka import AIOKafkaConsumer, TopicPartition
    from aiokafka.errors import KafkaError, OffsetOutOfRangeError
except ImportError:  # the extra is not installed
    AIOKafkaConsumer = None

from gateway.backoff import jittered
from gateway.config.sources import Kafka, parse_since
from gateway.config.template import Template
from gateway.errors import Fenced, SourceError, StartupError, Unavailable
from gateway.event import NOTHING, Fence, Record
from gateway.sources.base import Feed, Source

log = structlog.get_logger("gateway.sources")

BATCH = 1000
"""Most records that are taken at once, all partitions together."""

WAIT_SECONDS = 1.0
"""How long a poll waits for records; what is asked for meanwhile is seen then."""

COMMIT_SECONDS = 5.0
"""How often offsets are committed for others to see."""

RETRY_SECONDS = 0.3
"""How long to wait while the log is away, jittered."""


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
        while True:
            fence = await feed.leading()
            try:
                await _Reading(self, consumer, feed, fence).run()
            except (Fenced, Unavailable):
                # Whether the last batch is in the log is open, so the log is asked for its places again.
                consumer.unsubscribe()
                await asyncio.sleep(jittered(RETRY_SECONDS, 0.5))

    async def metadata(self, consumer: Any) -> Any:
        """Return the topics and partitions that there are; the consumer itself tells of its own only."""
        async with asyncio.timeout(self.timeout):
            return await consumer._client.fetch_all_metadata()

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
            values |= {
                f"headers.{name.lower()}": value.decode(errors="replace")
                for name, value in message.headers
                if value is not None
            }
            if message.key is not None:
                values["key"] = message.key.decode(errors="replace")
        return Record(
            message.topic,
            b"null" if message.value is None else message.value,
            timestamp=message.timestamp if message.timestamp >= 0 else None,
            values=values,
        )


class _Reading:
    """One reader's turn: the partitions, and from which offset each is read on."""

    def __init__(self, source: KafkaSource, consumer: Any, feed: Feed, fence: Fence) -> None:
        self._source = source
        self._consumer = consumer
        self._feed = feed
        self._fence = fence
        self._offsets: dict[Any, int] = {}
        self._times: dict[Any, int] = {}
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
        found: dict[Any, str] = {}
        unwatched = []
        for topic in self._source.topics:
            mark = f"*{topic.redis_pattern}"
            is_watched = await self._feed.position(mark) is not None
            if not is_watched:
                unwatched.append(mark)
            for name in (name for name in names if topic.match(name) is not None):
                for number in sorted(cluster.partitions_for_topic(name) or ()):
                    # What appears under a watched topic, a partition too, is new as a whole.
                    found.setdefault(
                        TopicPartition(name, number), "oldest" if is_watched else self._source.start
                    )
        new = [part for part in found if part not in self._offsets]
        if new or len(found) < len(self._offsets):
            offsets = await self._begin({part: found[part] for part in new})
            kept = {part: offset for part, offset in self._offsets.items() if part in found}
            self._offsets = kept | offsets
            # No await in between: nothing is fetched from anywhere else.
            self._consumer.assign(list(self._offsets))
            for part, offset in self._offsets.items():
                self._consumer.seek(part, offset)
        for mark in unwatched:
            await self._feed.publish([], "watched", self._fence, part=mark)

    async def _begin(self, starts: Mapping[Any, str]) -> dict[Any, int]:
        offsets: dict[Any, int] = {}
        unknown: dict[str, list[Any]] = {}
        for part, start in starts.items():
            text = await self._feed.position(_part(part))
            if text is not None and text.isdecimal():
                offsets[part] = int(text)
            else:
                unknown.setdefault(start, []).append(part)
        for start, parts in unknown.items():
            for part, offset in (await self._first(start, parts)).items():
                await self._feed.publish([], str(offset), self._fence, part=_part(part))
                offsets[part] = offset
        return offsets

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
        if not self._offsets:
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
        work = [self._take(part, messages) for part, messages in batches.items() if messages]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        self._feed.lags(
            sum(
                max(0, (self._consumer.highwater(part) or 0) - offset)
                for part, offset in self._offsets.items()
            )
        )

    async def _take(self, part: Any, messages: Sequence[Any]) -> None:
        records = [self._source.record(message) for message in messages]
        behind = messages[-1].offset + 1
        await self._feed.publish(records, str(behind), self._fence, part=_part(part))
        self._offsets[part] = behind
        self._times[part] = messages[-1].timestamp

    async def _out_of_range(self, part: Any, offset: int) -> None:
        """Go on where the partition begins now, or ends if it became shorter, and tell the gap."""
        async with asyncio.timeout(self._source.timeout):
            first = (await self._consumer.beginning_offsets([part]))[part]
            end = (await self._consumer.end_offsets([part]))[part]
        missing = first - offset if offset < first else None
        go_on = first if missing is not None else end
        await self._feed.tell_gap(
            self._times.get(part, 0),
            str(go_on),
            self._fence,
            part=_part(part),
            topic=part.topic,
            missing=missing,
        )
        self._offsets[part] = go_on
        self._consumer.seek(part, go_on)

    async def _commit(self) -> None:
        """Show how far we are; a failure harms nobody, because nothing is read from there."""
        changed = {
            part: offset for part, offset in self._offsets.items() if self._committed.get(part) != offset
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
    logging.getLogger("aiokafka").propagate = False  # 74 lines a second while a broker is away
    milliseconds = round(config.timeout * 1000)
    options: dict[str, Any] = {
        "bootstrap_servers": [each.strip() for each in config.brokers.split(",")],
        "client_id": "sse-gateway",
        "group_id": config.group,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",  # what a producer took back is no event
        "request_timeout_ms": milliseconds,
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
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        context.check_hostname = tls.check_hostname
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise StartupError(f"sources.{name}.tls: {error}") from None
    return context


def _part(part: Any) -> str:
    return f"{part.topic}/{part.partition}"
