"""Redis streams as a source: exactly once into the log, in each stream's order.

The node with the lease reads (`StreamReader`); the others are connected and wait. Whoever reads next goes on
behind what is in the log.
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
from gateway.sources.base import Source, SourceContext, read_under_lease
from gateway.sources.redis.stream_reader import ReadPlan, StreamReader
from gateway.sources.redis.stream_servers import StreamServers


class RedisStreamSource(Source):
    """Reads the streams that ``topics`` name: exact keys, globs, templates."""

    def __init__(
        self, config: RedisStreamConfig, topics: Sequence[Template], placeholders: frozenset[str]
    ) -> None:
        self._target = RedisLocator(RedisUrl.parse(config.url.get_secret_value()))
        self._timeout = config.timeout
        self._plan = ReadPlan(
            exact_keys=[topic.text.encode() for topic in topics if topic.is_exact],
            patterns=[topic for topic in topics if not topic.is_exact],
            start=config.start,
            scan_seconds=config.scan,
        )
        self._payload_field = None if config.payload is None else config.payload.encode()
        self._field_placeholders = [
            (place, place[7:].encode()) for place in placeholders if place.startswith("fields.")
        ]
        self._needs_id = "id" in placeholders

    async def run(self, context: SourceContext) -> None:
        servers: list[Redis] = []
        try:
            topology = await self._target.locate_all(self._timeout)
            servers = [self._create_client(options) for options in topology.servers]
            reader = StreamReader(
                self._plan, self.decode_entry, context, StreamServers(servers, topology, self._timeout)
            )
            await reader.check_permissions()
            context.report_connected()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._monitor_servers(servers, topology))
                group.create_task(read_under_lease(context, reader.run))
        except ExceptionGroup as group_of:
            raise _to_source_error(group_of.exceptions[0], self._timeout) from None
        except (TimeoutError, RedisError, OSError) as error:
            raise _to_source_error(error, self._timeout) from None
        finally:
            # Closing writes to a server that may be frozen.
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
            client.response_callbacks.pop(command, None)  # answers as they come: half of the time is theirs
        return client

    async def _monitor_servers(self, servers: Sequence[Redis], topology: RedisTopology) -> None:
        """End the connection when a server is silent, or another one is master by now."""
        while True:
            await asyncio.sleep(jittered(self._timeout, 0.2))
            async with asyncio.timeout(self._timeout):
                for server in servers:
                    await server.ping()
            try:
                now = await self._target.locate_all(self._timeout)
            except (RedisError, TimeoutError, OSError):
                continue  # who says where the streams are is away; they answer, and that is enough
            if _server_addresses(now) != _server_addresses(topology):
                raise SourceError("other servers hold the streams by now")

    def decode_entry(self, topic: str, id: bytes, flat: Sequence[bytes]) -> Record:
        """Return what an entry is; of a field that is given twice the first. Raises Rejected."""
        # From the last to the first, so that the first is what stays.
        fields = dict(zip(flat[-2::-2], flat[::-2], strict=True))
        payload = fields.get(self._payload_field or b"payload")
        if payload is None:
            if self._payload_field is not None:
                raise RecordRejected("the entry has no such field", code="no_payload")
            payload = msgspec.json.encode(_fields_as_object(flat))
        type_, time = fields.get(b"type"), fields.get(b"timestamp", b"")
        values = NO_VALUES
        if self._field_placeholders or self._needs_id:
            values = {
                place: decode_lossless(fields[name])
                for place, name in self._field_placeholders
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
    """Return all fields of an entry; one that is given several times with all its values. Raises Rejected."""
    found: dict[str, str | list[str]] = {}
    for name, value in zip(flat[::2], flat[1::2], strict=True):
        key, text = _decode_field(name, name, "name"), _decode_field(value, name, "value")
        before = found.get(key)
        if before is None:
            found[key] = text
        elif isinstance(before, list):
            before.append(text)
        else:
            found[key] = [before, text]
    return found


def _decode_field(data: bytes, field: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise not_utf8_error(f"the {what} of the field {field[:100]!r}") from None


def _server_addresses(topology: RedisTopology) -> set[object]:
    return {(server.get("host"), server.get("port")) for server in topology.servers}


def _to_source_error(error: BaseException, timeout: float) -> Exception:
    if isinstance(error, BaseExceptionGroup):
        return _to_source_error(error.exceptions[0], timeout)
    if isinstance(error, TimeoutError):
        return SourceError(f"Redis gave no answer within {timeout:g} s")
    if isinstance(error, RedisError):
        return SourceError(f"Redis: {error or type(error).__name__}")
    return error if isinstance(error, Exception) else SourceError(type(error).__name__)
