"""The commands to the servers that hold Redis streams.

One XREAD waits for all streams of a server. In a cluster each slot needs commands of its own, so the streams
are polled there. Entries are read together with XINFO in one transaction: otherwise entries that are trimmed
between the two commands could not be told from entries that were never there.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from gateway.config.template import Template
from gateway.core.errors import SourceError
from gateway.core.event import decode_lossless
from gateway.net.redis_locator import RedisTopology
from gateway.sources.redis.stream_offset import RedisStreamOffset, StreamInfo

BLOCK_SECONDS = 1.0
"""How long `StreamServers.find_readable_keys` waits; only then it includes streams discovered meanwhile."""

CLUSTER_POLL_SECONDS = 0.05
"""How often the streams of a cluster are polled while all are idle."""

MAX_PIPELINE_COMMANDS = 500
"""Most commands in a pipeline."""

_SCAN_COUNT = 1000

Entries = Sequence[tuple[bytes, Sequence[bytes]]]


class EntryBatch(NamedTuple):
    """Entries of one stream, and its XINFO at that moment."""

    key: bytes
    entries: Entries
    info: StreamInfo


class StreamServers:
    """The servers of one source. All methods raise RedisError or TimeoutError, and are safe to cancel."""

    def __init__(self, servers: Sequence[Redis], topology: RedisTopology, timeout: float) -> None:
        self._servers = servers
        self._owner_index = topology.server_index
        self._is_cluster = topology.is_cluster
        self._timeout = timeout

    async def scan(self, pattern: Template) -> list[bytes]:
        """Return the keys of all streams that a topic matches."""
        found: set[bytes] = set()
        for server in self._servers:
            cursor: Any = 0
            keys: Any
            while True:
                async with asyncio.timeout(self._timeout):
                    cursor, keys = await server.scan(
                        cursor, match=pattern.redis_pattern, count=_SCAN_COUNT, _type="stream"
                    )
                found.update(key for key in keys if pattern.match(decode_lossless(key)) is not None)
                if not int(cursor):
                    break
        return sorted(found)

    async def read_infos(self, keys: Sequence[bytes]) -> list[StreamInfo | ResponseError | None]:
        """Return XINFO of each key: None if it does not exist, an error if it is no stream."""
        found: dict[bytes, Any] = {}
        for first in range(0, len(keys), MAX_PIPELINE_COMMANDS):
            for server, own in self._group_by_server(keys[first : first + MAX_PIPELINE_COMMANDS]):
                pipe = server.pipeline(transaction=False)
                for key in own:
                    pipe.execute_command("XINFO STREAM", key)
                async with asyncio.timeout(self._timeout):
                    answers = await pipe.execute(raise_on_error=False)
                found.update(zip(own, answers, strict=True))
        return [_parse_info(found[key]) for key in keys]

    async def find_readable_keys(
        self, offsets: Mapping[bytes, RedisStreamOffset], *, wait: bool
    ) -> list[bytes]:
        """Return the streams that have entries after their offsets; ``wait`` a while if none has."""
        if not offsets:
            await asyncio.sleep(BLOCK_SECONDS)
            return []
        if self._is_cluster:
            found: list[bytes] = []
            for server, own in self._group_by_server(list(offsets)):
                pipe = server.pipeline(transaction=False)
                for keys in _group_by_slot(own):
                    pipe.execute_command("XREAD", "COUNT", 1, *_xread_arguments(keys, offsets))
                async with asyncio.timeout(self._timeout):
                    for answer in await pipe.execute():
                        found += [key for key, _ in answer or ()]
            if wait and not found:
                await asyncio.sleep(CLUSTER_POLL_SECONDS)
            return found
        block = ["BLOCK", round(BLOCK_SECONDS * 1000)] if wait else []
        async with asyncio.timeout(BLOCK_SECONDS + self._timeout):
            answer = await self._servers[0].execute_command(  # type: ignore[no-untyped-call]
                "XREAD", "COUNT", 1, *block, *_xread_arguments(list(offsets), offsets)
            )
        return [key for key, _ in answer or ()]

    async def read_entries(
        self, keys: Sequence[bytes], offsets: Mapping[bytes, RedisStreamOffset], count: int
    ) -> list[EntryBatch]:
        """Return at most ``count`` entries after the offset of each of these streams."""
        found: list[EntryBatch] = []
        for server, own in self._group_by_server(keys):
            groups = _group_by_slot(own) if self._is_cluster else [own]
            pipe = server.pipeline(transaction=False)
            for group in groups:
                pipe.execute_command("MULTI")
                pipe.execute_command("XREAD", "COUNT", count, *_xread_arguments(group, offsets))
                for key in group:
                    pipe.execute_command("XINFO STREAM", key)
                pipe.execute_command("EXEC")
            async with asyncio.timeout(self._timeout):
                answers = await pipe.execute(raise_on_error=False)
            for group in groups:
                answer = answers[len(group) + 2]
                _raise_first_error(answers[: len(group) + 3])
                del answers[: len(group) + 3]
                infos = {key: _parse_info(each) for key, each in zip(group, answer[1:], strict=True)}
                for key, entries in answer[0] or ():
                    info = infos[key]
                    if isinstance(info, StreamInfo):
                        found.append(EntryBatch(key, entries, info))
        return found

    def _group_by_server(self, keys: Sequence[bytes]) -> Iterable[tuple[Redis, list[bytes]]]:
        if len(self._servers) == 1:
            return [(self._servers[0], list(keys))] if keys else []
        groups: dict[int, list[bytes]] = {}
        for key in keys:
            groups.setdefault(self._owner_index(key), []).append(key)
        return [(self._servers[owner], own) for owner, own in groups.items()]


_HEX_PREFIX = "hex:"


def partition_of_key(key: bytes) -> str:
    """Return the partition under which a stream's offset is stored: its key, in hex if that is not UTF-8."""
    try:
        part = key.decode()
    except UnicodeDecodeError:
        return f"{_HEX_PREFIX}{key.hex()}"
    return f"{_HEX_PREFIX}{key.hex()}" if part.startswith(_HEX_PREFIX) else part


def key_of_partition(partition: str) -> bytes:
    """Return the key of the stream that `partition_of_key` named."""
    try:
        return (
            bytes.fromhex(partition.removeprefix(_HEX_PREFIX))
            if partition.startswith(_HEX_PREFIX)
            else partition.encode()
        )
    except ValueError:
        return partition.encode()  # written by another version


def _xread_arguments(keys: Sequence[bytes], offsets: Mapping[bytes, RedisStreamOffset]) -> list[bytes | str]:
    return ["STREAMS", *keys, *(offsets[key].id_text for key in keys)]


def _group_by_slot(keys: Sequence[bytes]) -> list[list[bytes]]:
    slots: dict[int, list[bytes]] = {}
    for key in keys:
        slots.setdefault(key_slot(key), []).append(key)
    return list(slots.values())


def _raise_first_error(answers: Sequence[Any]) -> None:
    """Raise the first error of a transaction, of queueing or of XREAD."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    if isinstance(answers[-1][0], Exception):
        raise answers[-1][0]


def _parse_info(answer: Any) -> StreamInfo | ResponseError | None:
    if isinstance(answer, ResponseError) and "no such key" in str(answer):
        return None
    if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
        return answer
    if isinstance(answer, Exception):
        raise answer  # MOVED, NOPERM, BUSY: the stream may still exist
    info = StreamInfo.parse(answer)
    if info is None:
        raise SourceError(
            "the server is older than Redis 7, which cannot report trimmed entries; use Redis 7 or Valkey"
        )
    return info
