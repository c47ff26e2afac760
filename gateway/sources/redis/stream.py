"""Redis streams as a source: each entry exactly once, in its stream's order.

The node with the lease reads (`gateway.sources.redis.stream_reader`); the others are connected and wait. The
next holder of the lease continues after the entries that are in the log.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.sources import RedisStreamConfig
from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.errors import RecordRejected, SourceError, not_utf8_error
from gateway.core.event import NO_VALUES, Record, decode_lossless
from gateway.net.redis_locator import RedisLocator, RedisTopology
from gateway.sources.base import upstream_errors
from gateway.sources.context import Source, SourceContext, read_under_lease
from gateway.sources.redis.stream_reader import ReadPlan, StreamReader
from gateway.sources.redis.stream_servers import StreamServers


class RedisStreamSource(Source):
    """Reads all streams whose keys ``topics`` match: exact keys, globs and templates."""

    def __init__(
        self, config: RedisStreamConfig, topics: Sequence[Template], placeholders: frozenset[str]
    ) -> None:
        self._locator = RedisLocator(RedisUrl.parse(config.url.get_secret_value()))
        self._timeout = config.timeout
        self._plan = ReadPlan(
            exact_keys=[topic.text.encode() for topic in topics if topic.is_exact],
            patterns=[topic for topic in topics if not topic.is_exact],
            start=config.start,
            scan_seconds=config.scan,
        )
        self._payload_field = None if config.payload is None else config.payload.encode()
        self._field_placeholders = [
            (each, each.removeprefix("fields.").encode())
            for each in placeholders
            if each.startswith("fields.")
        ]
        self._needs_id = "id" in placeholders

    async def run(self, context: SourceContext) -> None:
        servers: list[Redis] = []
        try:
            with upstream_errors("Redis", self._timeout, RedisError):
                topology = await self._locator.locate_all(self._timeout)
                servers = [self._create_client(options) for options in topology.servers]
                reader = StreamReader(
                    self._plan, self.decode_entry, context, StreamServers(servers, topology, self._timeout)
                )
                await reader.check_permissions()
                context.report_connected()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._monitor_servers(servers, topology))
                    group.create_task(read_under_lease(context, reader.run))
        finally:
            # With a deadline: closing writes to a server that may be frozen.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    closing = (server.aclose(close_connection_pool=True) for server in servers)
                    await asyncio.gather(*closing, return_exceptions=True)

    def _create_client(self, options: Mapping[str, Any]) -> Redis:
        pool = ConnectionPool(
            **{**options, "protocol": 2, "socket_timeout": None, "socket_connect_timeout": self._timeout},
            retry=Retry(NoBackoff(), 0),
            max_connections=8,
        )
        client = Redis(connection_pool=pool)
        for command in ("XREAD", "XINFO STREAM"):
            client.response_callbacks.pop(
                command, None
            )  # raw answers: parsing them took half of the time (bench row: ingest)
        return client

    async def _monitor_servers(self, servers: Sequence[Redis], topology: RedisTopology) -> None:
        """End the connection when a server does not answer, or another one has become master."""
        while True:
            await asyncio.sleep(jittered(self._timeout, 0.2))
            async with asyncio.timeout(self._timeout):
                for server in servers:
                    await server.ping()
            try:
                current = await self._locator.locate_all(self._timeout)
            except (RedisError, TimeoutError, OSError):
                continue  # only the sentinels or seed nodes are unreachable; the servers just answered
            if _server_addresses(current) != _server_addresses(topology):
                raise SourceError("the streams have moved to other servers; connecting to them")

    def decode_entry(self, topic: str, id: bytes, flat: Sequence[bytes]) -> Record:
        """Return a stream entry as a record. Raises RecordRejected."""
        # From the last field to the first, so that of two with the same name the first counts.
        fields = dict(zip(flat[-2::-2], flat[::-2], strict=True))
        payload = fields.get(self._payload_field or b"payload")
        if payload is None:
            if self._payload_field is not None:
                raise RecordRejected(
                    f"the entry has no field {self._payload_field.decode()!r}, which `payload` names",
                    code="no_payload",
                )
            payload = msgspec.json.encode(_fields_as_object(flat))
        type_, time = fields.get(b"type"), fields.get(b"timestamp", b"")
        values = NO_VALUES
        if self._field_placeholders or self._needs_id:
            values = {
                placeholder: decode_lossless(fields[name])
                for placeholder, name in self._field_placeholders
                if name in fields
            }
            values["id"] = id.decode()
        is_time = time.isdigit() and len(time) <= 14
        return Record(
            topic,
            payload,
            type=None if type_ is None else decode_lossless(type_),
            timestamp_ms=int(time) if is_time else int(id[: id.index(b"-")]),
            placeholder_values=values,
        )


def _fields_as_object(flat: Sequence[bytes]) -> dict[str, str | list[str]]:
    """Return all fields of an entry; a repeated field becomes a list of its values. Raises RecordRejected."""
    found: dict[str, list[str]] = {}
    for name, value in zip(flat[::2], flat[1::2], strict=True):
        texts = found.setdefault(_decode_field(name, name, "name"), [])
        texts.append(_decode_field(value, name, "value"))
    return {name: texts[0] if len(texts) == 1 else texts for name, texts in found.items()}


def _decode_field(data: bytes, field: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise not_utf8_error(f"the {what} of the field {field[:100]!r}") from None


def _server_addresses(topology: RedisTopology) -> set[object]:
    return {(server.get("host"), server.get("port")) for server in topology.servers}
