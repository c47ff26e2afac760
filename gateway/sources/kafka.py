"""Kafka as a source: each record exactly once, in its partition's order. Needs the extra ``kafka``.

How it works. The node with the lease reads all partitions; the others are connected and wait. The offset of
each partition is in the log, stored in one append with the events that its records became, so the next node
continues there. Kafka's own consumer groups do not share the work: every node follows the whole log anyway,
and a lease changes hands in seconds where a group takes a session's timeout (docs/decisions/0008). Offsets
are also committed to the group, for tools that show lag; the gateway never reads them.

aiokafka reports an outage only in its own log, and hangs. So `run` requests the brokers' topics periodically,
with a deadline, and ends at any failure.
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
from gateway.sources.base import SourceGap, upstream_errors
from gateway.sources.context import Source, SourceContext, read_under_lease
from gateway.sources.partitions import discover_partitions, gather_all, mark_watched, read_stored_offset

log = structlog.get_logger("gateway.sources")

MAX_POLL_RECORDS = 1000
"""Most records of one poll, of all partitions together."""

POLL_SECONDS = 1.0
"""How long a poll waits for records; the lease and the scan interval are checked after each."""

COMMIT_INTERVAL_SECONDS = 5.0
"""How often offsets are committed to the consumer group, for tools that show lag."""


class KafkaSource(Source):
    """Reads all Kafka topics that ``topics`` match: exact names, globs and templates."""

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
        self._consumer_options = {
            **connection_options(name, config),
            "group_id": config.group,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",  # an aborted transaction's records are no events
        }

    async def run(self, context: SourceContext) -> None:
        last_error = _LastErrorHandler()
        logging.getLogger("aiokafka").addHandler(last_error)
        consumer = AIOKafkaConsumer(**self._consumer_options)
        try:
            with upstream_errors(
                "Kafka", self.timeout, KafkaError, OSError, ValueError, describe=last_error.add_to
            ):
                async with asyncio.timeout(2 * self.timeout):
                    await consumer.start()
                context.report_connected()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._monitor_brokers(consumer))
                    group.create_task(self._read_whenever_leased(consumer, context))
        finally:
            logging.getLogger("aiokafka").removeHandler(last_error)
            await self._stop_consumer(consumer)

    async def _monitor_brokers(self, consumer: Any) -> None:
        while True:
            await asyncio.sleep(jittered(self.timeout / 2, 0.2))
            await self.fetch_metadata(consumer)

    async def _read_whenever_leased(self, consumer: Any, context: SourceContext) -> None:
        offsets: dict[Any, _PartitionOffset] = {}

        async def read(fence: FencingToken) -> None:
            reader = _PartitionReader(self, consumer, context, fence, offsets)
            try:
                await reader.run()
            except (StaleFencingToken, Unavailable):
                offsets.update(reader.offsets)
                consumer.unsubscribe()
                raise

        await read_under_lease(context, read)

    async def fetch_metadata(self, consumer: Any) -> Any:
        """Return the cluster's topics and partitions; the consumer's own list has only its assigned ones.

        Raises SourceError if aiokafka has no such request.
        """
        fetch = getattr(getattr(consumer, "_client", None), "fetch_all_metadata", None)
        if fetch is None:
            raise SourceError("this version of aiokafka cannot list all topics; install aiokafka 0.14")
        async with asyncio.timeout(self.timeout):
            return await fetch()

    async def _stop_consumer(self, consumer: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        cancellations = task.cancelling()
        try:
            async with asyncio.timeout(self.timeout):
                await consumer.stop()
        except asyncio.CancelledError:
            # Without a broker, aiokafka raises this by itself and leaves its client open.
            if task.cancelling() > cancellations:
                raise
        except Exception as error:
            log.info("kafka_close_failed", error=str(error) or type(error).__name__)
        finally:
            with suppress(Exception):
                async with asyncio.timeout(self.timeout):
                    await consumer._client.close()

    def decode_message(self, message: Any) -> Record:
        """Return a Kafka message as a record; its payload is ``null`` if the message has no value."""
        values: Mapping[str, str] = NO_VALUES
        if self._placeholders:
            values = {"partition": str(message.partition), "offset": str(message.offset)}
            values |= {  # reversed: of headers with the same name, the first counts
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
    """The next record to read, and the timestamp (unix ms) of the one before it; -1 if none was read yet."""

    offset: int
    last_record_ms: int = -1

    def __str__(self) -> str:
        return f"{self.offset}/{self.last_record_ms}"

    @classmethod
    def parse(cls, text: str) -> "_PartitionOffset | None":
        """Return the offset that ``text`` spells, or None."""
        offset, _, ms = text.partition("/")
        try:
            return cls(int(offset), int(ms))
        except ValueError:
            return None


class _PartitionReader:
    """Reads all partitions while this node holds one lease, and knows the offset of each."""

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
        """Read until the lease is lost. Raises StaleFencingToken, Unavailable, KafkaError or TimeoutError."""
        loop = asyncio.get_running_loop()
        scanned = committed = loop.time()
        await self._discover_partitions()
        while True:
            if not self._context.has_lease:
                raise StaleFencingToken("another node holds the lease")
            await self._poll()
            if loop.time() - scanned >= self._source.scan_seconds:
                await self._discover_partitions()
                scanned = loop.time()
            if loop.time() - committed >= COMMIT_INTERVAL_SECONDS:
                await self._commit_offsets()
                committed = loop.time()

    # Discovering partitions.

    async def _discover_partitions(self) -> None:
        """Assign all partitions: at their stored offsets, else where `start` says."""
        cluster = await self._source.fetch_metadata(self._consumer)
        names = sorted(cluster.topics())

        async def list_partitions(topic: Template) -> list[Any]:
            return [
                TopicPartition(name, number)
                for name in names
                if topic.match(name) is not None
                for number in sorted(cluster.partitions_for_topic(name) or ())
            ]

        found, unwatched = await discover_partitions(self._context, self._source.topics, list_partitions)
        new = {part: is_new for part, is_new in found.items() if part not in self.offsets}
        if new or len(found) < len(self.offsets):
            initial = await self._initial_offsets(new)
            kept = {part: offset for part, offset in self.offsets.items() if part in found}
            self.offsets = kept | initial
            # No await from here on: otherwise records could be fetched from another offset.
            self._consumer.assign(list(self.offsets))
            for part, reached in self.offsets.items():
                self._consumer.seek(part, reached.offset)
        await mark_watched(self._context, unwatched, self._fence)

    async def _initial_offsets(self, new: Mapping[Any, bool]) -> dict[Any, _PartitionOffset]:
        offsets: dict[Any, _PartitionOffset] = {}
        unread: dict[str, list[Any]] = {}
        for part, is_new in new.items():
            name = _partition_name(part)
            stored = await read_stored_offset(self._context, name, _PartitionOffset.parse)
            stored = stored or self._previous_offsets.get(part)  # if the log lost its data
            if stored is not None:
                offsets[part] = stored
            else:
                unread.setdefault("oldest" if is_new else self._source.start, []).append(part)
        for start, parts in unread.items():
            for part, offset in (await self._resolve_start(start, parts)).items():
                await self._advance(part, offsets, _PartitionOffset(offset))
        return offsets

    async def _advance(
        self,
        partition: Any,
        offsets: dict[Any, _PartitionOffset],
        reached: _PartitionOffset,
        records: Sequence[Record] = (),
        gap: SourceGap | None = None,
    ) -> None:
        """Append records and a gap together with the offset reached, then move on."""
        await self._context.publish(
            records, str(reached), self._fence, partition=_partition_name(partition), gap=gap
        )
        offsets[partition] = reached

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
            raise StaleFencingToken("another node holds the lease")
        # The consumer's position also moves past what is no record: the markers of transactions.
        positions = {part: await self._consumer.position(part) for part in self.offsets}
        await gather_all(
            self._append_messages(part, batches.get(part, ()), position)
            for part, position in positions.items()
            if position > self.offsets[part].offset
        )
        self._context.report_lag(
            sum(self._partition_lag(part, reached.offset) for part, reached in self.offsets.items())
        )

    def _partition_lag(self, partition: Any, offset: int) -> int:
        end = self._consumer.last_stable_offset(partition)
        if end is None or end < 0:
            end = self._consumer.highwater(partition) or 0
        return max(0, int(end) - offset)

    async def _append_messages(self, partition: Any, messages: Sequence[Any], next_offset: int) -> None:
        records = [self._source.decode_message(message) for message in messages]
        time_ms = messages[-1].timestamp if messages else self.offsets[partition].last_record_ms
        await self._advance(partition, self.offsets, _PartitionOffset(next_offset, time_ms), records)

    async def _handle_out_of_range(self, partition: Any, offset: int) -> None:
        """Report a gap, and go on at the partition's first record, or at its end if it became shorter."""
        async with asyncio.timeout(self._source.timeout):
            first = (await self._consumer.beginning_offsets([partition]))[partition]
            end = (await self._consumer.end_offsets([partition]))[partition]
        time_ms = self.offsets[partition].last_record_ms
        missing = first - offset if offset < first else None
        reached = _PartitionOffset(first if missing is not None else end, time_ms)
        gap = SourceGap(time_ms if time_ms >= 0 else None, partition.topic, missing)
        await self._advance(partition, self.offsets, reached, gap=gap)
        self._consumer.seek(partition, reached.offset)

    async def _commit_offsets(self) -> None:
        """Commit the offsets to the consumer group; a failure is harmless, because they are never read."""
        changed = {
            part: reached.offset
            for part, reached in self.offsets.items()
            if self._committed_offsets.get(part) != reached.offset
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
    """Keeps the last error that aiokafka logged: some causes appear nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:300]

    def add_to(self, message: str) -> str:
        """Return an error message, with the logged cause if it says more."""
        return message if not self.text or self.text in message else f"{message} ({self.text})"


def connection_options(name: str, config: KafkaConfig) -> dict[str, Any]:
    """Return aiokafka's options for any client of these brokers. Raises StartupError."""
    logging.getLogger("aiokafka").propagate = False  # 74 lines a second while a broker is unreachable
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
