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

from gateway.config.model.sources import KafkaConfig, parse_start_time
from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.errors import SourceError, StaleFencingToken, StartupError, Unavailable
from gateway.core.event import NO_VALUES, FencingToken, Record, decode_lossless
from gateway.net.pem import PemProblem, load_ca_file, load_certificate_and_key
from gateway.sources.base import Source, SourceContext, SourceGap, read_under_lease

log = structlog.get_logger("gateway.sources")

MAX_POLL_RECORDS = 1000
"""Most records that are taken at once, all partitions together."""

POLL_SECONDS = 1.0
"""How long a poll waits for records; what is asked for meanwhile is seen then."""

COMMIT_INTERVAL_SECONDS = 5.0
"""How often offsets are committed for others to see."""


class KafkaSource(Source):
    """Reads the topics that ``topics`` name: exact, globs, templates."""

    def __init__(
        self, name: str, config: KafkaConfig, topics: Sequence[Template], placeholders: frozenset[str]
    ) -> None:
        if AIOKafkaConsumer is None:
            raise StartupError(f"sources.{name} needs the extra for Kafka: pip install 'sse-gateway[kafka]'")
        self.topics = topics
        self.start = config.start
        self.scan_seconds = config.scan
        self.timeout = config.timeout
        self._placeholders = placeholders
        self._consumer_options = _consumer_options(name, config)

    async def run(self, context: SourceContext) -> None:
        last_words = _LastErrorHandler()
        logging.getLogger("aiokafka").addHandler(last_words)
        consumer = AIOKafkaConsumer(**self._consumer_options)
        try:
            async with asyncio.timeout(2 * self.timeout):
                await consumer.start()
            context.report_connected()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._monitor_brokers(consumer))
                group.create_task(self._read_whenever_leased(consumer, context))
        except ExceptionGroup as group_of:
            raise self._to_source_error(group_of.exceptions[0], last_words) from None
        except (TimeoutError, KafkaError, OSError, ValueError) as error:
            raise self._to_source_error(error, last_words) from None
        finally:
            logging.getLogger("aiokafka").removeHandler(last_words)
            await self._stop_consumer(consumer)

    async def _monitor_brokers(self, consumer: Any) -> None:
        while True:
            await asyncio.sleep(jittered(self.timeout / 2, 0.2))
            await self.fetch_metadata(consumer)

    async def _read_whenever_leased(self, consumer: Any, context: SourceContext) -> None:
        places: dict[Any, _PartitionOffset] = {}

        async def read(fence: FencingToken) -> None:
            reading = _PartitionReader(self, consumer, context, fence, places)
            try:
                await reading.run()
            except (StaleFencingToken, Unavailable):
                places.update(reading.offsets)
                consumer.unsubscribe()
                raise

        await read_under_lease(context, read)

    async def fetch_metadata(self, consumer: Any) -> Any:
        """Return the topics and partitions that there are; the consumer itself tells of its own only."""
        fetch = getattr(getattr(consumer, "_client", None), "fetch_all_metadata", None)
        if fetch is None:
            raise SourceError("this version of aiokafka does not tell of all topics; install aiokafka 0.14")
        async with asyncio.timeout(self.timeout):
            return await fetch()

    async def _stop_consumer(self, consumer: Any) -> None:
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

    def _to_source_error(self, error: BaseException, last_error: "_LastErrorHandler") -> Exception:
        if isinstance(error, TimeoutError):
            return SourceError(f"Kafka gave no answer within {self.timeout:g} s")
        if isinstance(error, (KafkaError, OSError, ValueError)):
            why = f" ({last_error.text})" if last_error.text and last_error.text not in str(error) else ""
            return SourceError(f"Kafka: {error or type(error).__name__}{why}")
        return error if isinstance(error, Exception) else SourceError(type(error).__name__)

    def decode_message(self, message: Any) -> Record:
        """Return what a message is; one without a value is ``null``."""
        values: Mapping[str, str] = NO_VALUES
        if self._placeholders:
            values = {"partition": str(message.partition), "offset": str(message.offset)}
            values |= {  # of a name that is given twice the first
                f"headers.{name.lower()}": decode_lossless(value)
                for name, value in reversed(message.headers)
                if value is not None
            }
            if message.key is not None:
                values["key"] = decode_lossless(message.key)
        return Record(
            message.topic,
            b"null" if message.value is None else message.value,
            timestamp_ms=message.timestamp if message.timestamp >= 0 else None,
            placeholder_values=values,
        )


class _PartitionOffset(NamedTuple):
    """Before the record ``offset``; the one before it had the time ``ms`` (unix), -1 where none was read."""

    offset: int
    last_record_ms: int = -1

    def __str__(self) -> str:
        return f"{self.offset}/{self.last_record_ms}"

    @classmethod
    def parse(cls, text: str) -> "_PartitionOffset | None":
        """Return the place that ``text`` spells, or None."""
        offset, _, ms = text.partition("/")
        try:
            return cls(int(offset), int(ms))
        except ValueError:
            return None


class _PartitionReader:
    """One reader's turn: the partitions, and how far each was read."""

    def __init__(
        self,
        source: KafkaSource,
        consumer: Any,
        context: SourceContext,
        fence: FencingToken,
        previous_offsets: Mapping[Any, _PartitionOffset],
    ) -> None:
        self._source = source
        self._consumer = consumer
        self._context = context
        self._fence = fence
        self._previous_offsets = previous_offsets
        self.offsets: dict[Any, _PartitionOffset] = {}
        self._committed_offsets: dict[Any, int] = {}

    async def run(self) -> None:
        """Read until the lease is lost. Raises Fenced, Unavailable, KafkaError or TimeoutError."""
        loop = asyncio.get_running_loop()
        scanned = committed = loop.time()
        await self._discover_partitions()
        while True:
            if not self._context.has_lease:
                raise StaleFencingToken("the lease is another node's")
            await self._poll()
            if loop.time() - scanned >= self._source.scan_seconds:
                await self._discover_partitions()
                scanned = loop.time()
            if loop.time() - committed >= COMMIT_INTERVAL_SECONDS:
                await self._commit_offsets()
                committed = loop.time()

    # Which partitions there are.

    async def _discover_partitions(self) -> None:
        """Assign what is there: where each partition was read to is in the log, else `start` says it."""
        cluster = await self._source.fetch_metadata(self._consumer)
        names = sorted(cluster.topics())
        found: dict[Any, bool] = {}
        unwatched = []
        for topic in self._source.topics:
            mark = f"*{topic.redis_pattern}"
            is_watched = await self._context.read_offset(mark) is not None
            if not is_watched:
                unwatched.append(mark)
            for name in (name for name in names if topic.match(name) is not None):
                for number in sorted(cluster.partitions_for_topic(name) or ()):
                    # What appears under a watched topic, a partition too, is new as a whole.
                    part = TopicPartition(name, number)
                    found[part] = found.get(part, False) or is_watched
        new = {part: is_new for part, is_new in found.items() if part not in self.offsets}
        if new or len(found) < len(self.offsets):
            begun = await self._initial_offsets(new)
            kept = {part: place for part, place in self.offsets.items() if part in found}
            self.offsets = kept | begun
            # No await in between: nothing is fetched from anywhere else.
            self._consumer.assign(list(self.offsets))
            for part, place in self.offsets.items():
                self._consumer.seek(part, place.offset)
        for mark in unwatched:
            await self._context.publish([], "watched", self._fence, partition=mark)

    async def _initial_offsets(self, new: Mapping[Any, bool]) -> dict[Any, _PartitionOffset]:
        places: dict[Any, _PartitionOffset] = {}
        unknown: dict[str, list[Any]] = {}
        for part, is_new in new.items():
            text = await self._context.read_offset(_partition_name(part))
            place = _PartitionOffset.parse(text) if text is not None else None
            place = place or self._previous_offsets.get(part)  # the log forgot all
            if place is not None:
                places[part] = place
            else:
                unknown.setdefault("oldest" if is_new else self._source.start, []).append(part)
        for start, parts in unknown.items():
            for part, offset in (await self._resolve_start(start, parts)).items():
                places[part] = _PartitionOffset(offset)
                await self._context.publish(
                    [], str(places[part]), self._fence, partition=_partition_name(part)
                )
        return places

    async def _resolve_start(self, start: str, parts: Sequence[Any]) -> Mapping[Any, int]:
        async with asyncio.timeout(self._source.timeout):
            if start == "oldest":
                return dict(await self._consumer.beginning_offsets(parts))
            ends = dict(await self._consumer.end_offsets(parts))
            if start == "new":
                return ends
            since = parse_start_time(start)
            when = since.timestamp() if isinstance(since, datetime) else time.time() - since
            found = await self._consumer.offsets_for_times({part: round(when * 1000) for part in parts})
            return {part: ends[part] if at is None else at.offset for part, at in found.items()}

    # Reading.

    async def _poll(self) -> None:
        if not self.offsets:
            await asyncio.sleep(POLL_SECONDS)
            return
        try:
            batches = await self._consumer.getmany(
                timeout_ms=round(POLL_SECONDS * 1000), max_records=MAX_POLL_RECORDS
            )
        except OffsetOutOfRangeError as error:
            for part, offset in error.args[0].items():
                await self._handle_out_of_range(part, offset)
            return
        if not self._context.has_lease:
            raise StaleFencingToken("the lease is another node's")
        # The consumer also steps over what is no record: the marks of transactions.
        behind = {part: await self._consumer.position(part) for part in self.offsets}
        work = [
            self._append_messages(part, batches.get(part, ()), offset)
            for part, offset in behind.items()
            if offset > self.offsets[part].offset
        ]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        self._context.report_lag(
            sum(self._partition_lag(part, place.offset) for part, place in self.offsets.items())
        )

    def _partition_lag(self, partition: Any, offset: int) -> int:
        end = self._consumer.last_stable_offset(partition)
        if end is None or end < 0:
            end = self._consumer.highwater(partition) or 0
        return max(0, int(end) - offset)

    async def _append_messages(self, partition: Any, messages: Sequence[Any], next_offset: int) -> None:
        records = [self._source.decode_message(message) for message in messages]
        place = _PartitionOffset(
            next_offset, messages[-1].timestamp if messages else self.offsets[partition].last_record_ms
        )
        await self._context.publish(records, str(place), self._fence, partition=_partition_name(partition))
        self.offsets[partition] = place

    async def _handle_out_of_range(self, partition: Any, offset: int) -> None:
        """Go on where the partition begins now, or ends if it became shorter, and tell the gap."""
        async with asyncio.timeout(self._source.timeout):
            first = (await self._consumer.beginning_offsets([partition]))[partition]
            end = (await self._consumer.end_offsets([partition]))[partition]
        before = self.offsets[partition]
        missing = first - offset if offset < first else None
        place = _PartitionOffset(first if missing is not None else end, before.last_record_ms)
        gap = SourceGap(
            before.last_record_ms if before.last_record_ms >= 0 else None, partition.topic, missing
        )
        await self._context.publish(
            [], str(place), self._fence, partition=_partition_name(partition), gap=gap
        )
        self.offsets[partition] = place
        self._consumer.seek(partition, place.offset)

    async def _commit_offsets(self) -> None:
        """Show how far we are; a failure harms nobody, because nothing is read from there."""
        changed = {
            part: place.offset
            for part, place in self.offsets.items()
            if self._committed_offsets.get(part) != place.offset
        }
        if not changed:
            return
        try:
            async with asyncio.timeout(self._source.timeout):
                await self._consumer.commit(changed)
        except (KafkaError, TimeoutError) as error:
            log.info("kafka_commit_failed", error=str(error) or type(error).__name__)
            return
        self._committed_offsets |= changed


class _LastErrorHandler(logging.Handler):
    """Keeps aiokafka's last error: some causes are told nowhere else. Its lines go no further."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:300]


def _consumer_options(name: str, config: KafkaConfig) -> dict[str, Any]:
    return {
        **connection_options(name, config),
        "group_id": config.group,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "isolation_level": "read_committed",  # what a producer took back is no event
    }


def connection_options(name: str, config: KafkaConfig) -> dict[str, Any]:
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
        options["ssl_context"] = _tls_context(name, config)
    if config.sasl:
        options |= {
            "sasl_mechanism": config.sasl.mechanism,
            "sasl_plain_username": config.sasl.username,
            "sasl_plain_password": config.sasl.password.get_secret_value(),
        }
    return options


def _tls_context(name: str, config: KafkaConfig) -> ssl.SSLContext:
    tls = config.tls
    assert tls is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = tls.check_hostname
    found: list[PemProblem] = []
    if tls.ca_file is None:
        context.load_default_certs()
    else:
        found += load_ca_file(context, tls.ca_file)
    if tls.certificate is not None:
        found += load_certificate_and_key(context, tls.certificate, tls.key)
    for part, message in found:
        raise StartupError(f"sources.{name}.tls.{'ca_file' if part == 'authority' else part}: {message}")
    return context


def _partition_name(partition: Any) -> str:
    return f"{partition.topic}/{partition.partition}"
