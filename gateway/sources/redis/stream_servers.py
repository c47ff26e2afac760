"""What is asked of the servers that hold Redis streams. One XREAD waits for all streams of a server; in a
cluster each slot needs commands of its own, so the streams are asked in turns there.

Entries are read together with what XINFO says at that moment, in one transaction: what was trimmed between
two commands could not be told from what was never there.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from gateway.config.template import Template
from gateway.core.errors import SourceError
from gateway.core.event import text_of
from gateway.net.redis_target import Topology
from gateway.sources.redis.stream_offset import StreamInfo, StreamPlace

BLOCK_SECONDS = 1.0
"""How long `StreamServers.ready` waits; new streams are waited for from then on."""

ASK_SECONDS = 0.05
"""How often the streams of a cluster are asked when all were silent."""

AT_ONCE = 500
"""Most commands in a pipeline."""

_SCAN_COUNT = 1000

Entries = Sequence[tuple[bytes, Sequence[bytes]]]


class Page(NamedTuple):
    """Entries of one stream, and what its server said of it at that moment."""

    key: bytes
    entries: Entries
    info: StreamInfo


class StreamServers:
    """The servers. All methods raise RedisError or TimeoutError, and are safe to cancel."""

    def __init__(self, servers: Sequence[Redis], topology: Topology, timeout: float) -> None:
        self._servers = servers
        self._owner = topology.owner
        self._is_cluster = topology.is_cluster
        self._timeout = timeout

    async def scan(self, pattern: Template) -> list[bytes]:
        """Return the keys of all streams that a topic names."""
        found: set[bytes] = set()
        for server in self._servers:
            cursor: Any = 0
            keys: Any
            while True:
                async with asyncio.timeout(self._timeout):
                    cursor, keys = await server.scan(
                        cursor, match=pattern.redis_pattern, count=_SCAN_COUNT, _type="stream"
                    )
                found.update(key for key in keys if pattern.match(text_of(key)) is not None)
                if not int(cursor):
                    break
        return sorted(found)

    async def infos(self, keys: Sequence[bytes]) -> list[StreamInfo | ResponseError | None]:
        """Return what the servers say of keys: None where there is none, an error where it is no stream."""
        found: dict[bytes, Any] = {}
        for first in range(0, len(keys), AT_ONCE):
            for server, own in self._by_server(keys[first : first + AT_ONCE]):
                pipe = server.pipeline(transaction=False)
                for key in own:
                    pipe.execute_command("XINFO STREAM", key)
                async with asyncio.timeout(self._timeout):
                    answers = await pipe.execute(raise_on_error=False)
                found.update(zip(own, answers, strict=True))
        return [_info(found[key]) for key in keys]

    async def ready(self, places: Mapping[bytes, StreamPlace], *, wait: bool) -> list[bytes]:
        """Return the streams that hold something behind their places; ``wait`` a while, if none does."""
        if not places:
            await asyncio.sleep(BLOCK_SECONDS)
            return []
        if self._is_cluster:
            found: list[bytes] = []
            for server, own in self._by_server(list(places)):
                pipe = server.pipeline(transaction=False)
                for keys in _by_slot(own):
                    pipe.execute_command("XREAD", "COUNT", 1, *_behind(keys, places))
                async with asyncio.timeout(self._timeout):
                    for answer in await pipe.execute():
                        found += [key for key, _ in answer or ()]
            if wait and not found:
                await asyncio.sleep(ASK_SECONDS)
            return found
        block = ["BLOCK", round(BLOCK_SECONDS * 1000)] if wait else []
        async with asyncio.timeout(BLOCK_SECONDS + self._timeout):
            answer = await self._servers[0].execute_command(  # type: ignore[no-untyped-call]
                "XREAD", "COUNT", 1, *block, *_behind(list(places), places)
            )
        return [key for key, _ in answer or ()]

    async def read(
        self, keys: Sequence[bytes], places: Mapping[bytes, StreamPlace], count: int
    ) -> list[Page]:
        """Return at most ``count`` entries of each of these streams behind its place."""
        found: list[Page] = []
        for server, own in self._by_server(keys):
            groups = _by_slot(own) if self._is_cluster else [own]
            pipe = server.pipeline(transaction=False)
            for group in groups:
                pipe.execute_command("MULTI")
                pipe.execute_command("XREAD", "COUNT", count, *_behind(group, places))
                for key in group:
                    pipe.execute_command("XINFO STREAM", key)
                pipe.execute_command("EXEC")
            async with asyncio.timeout(self._timeout):
                answers = await pipe.execute(raise_on_error=False)
            for group in groups:
                answer = answers[len(group) + 2]
                _check(answers[: len(group) + 3])
                del answers[: len(group) + 3]
                infos = {key: _info(each) for key, each in zip(group, answer[1:], strict=True)}
                for key, entries in answer[0] or ():
                    info = infos[key]
                    if isinstance(info, StreamInfo):
                        found.append(Page(key, entries, info))
        return found

    def _by_server(self, keys: Sequence[bytes]) -> Iterable[tuple[Redis, list[bytes]]]:
        if len(self._servers) == 1:
            return [(self._servers[0], list(keys))] if keys else []
        groups: dict[int, list[bytes]] = {}
        for key in keys:
            groups.setdefault(self._owner(key), []).append(key)
        return [(self._servers[owner], own) for owner, own in groups.items()]


_HEX = "hex:"


def part_of(key: bytes) -> str:
    """Return the name of a stream's position in the log: its key; in hex, where no log can store that."""
    try:
        part = key.decode()
    except UnicodeDecodeError:
        return f"{_HEX}{key.hex()}"
    return f"{_HEX}{key.hex()}" if part.startswith(_HEX) else part


def key_of(part: str) -> bytes:
    """Return the key of a stream from the name of its position."""
    try:
        return bytes.fromhex(part.removeprefix(_HEX)) if part.startswith(_HEX) else part.encode()
    except ValueError:
        return part.encode()  # what another version wrote


def _behind(keys: Sequence[bytes], places: Mapping[bytes, StreamPlace]) -> list[bytes | str]:
    return ["STREAMS", *keys, *(places[key].text for key in keys)]


def _by_slot(keys: Sequence[bytes]) -> list[list[bytes]]:
    slots: dict[int, list[bytes]] = {}
    for key in keys:
        slots.setdefault(key_slot(key), []).append(key)
    return list(slots.values())


def _check(answers: Sequence[Any]) -> None:
    """Raise the first error of a transaction."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    if isinstance(answers[-1][0], Exception):
        raise answers[-1][0]


def _info(answer: Any) -> StreamInfo | ResponseError | None:
    if isinstance(answer, ResponseError) and "no such key" in str(answer):
        return None
    if isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE"):
        return answer
    if isinstance(answer, Exception):
        raise answer  # moved, denied, busy: says nothing about the stream
    info = StreamInfo.of(answer)
    if info is None:
        raise SourceError("Redis 7 or Valkey is needed: an older one does not tell what was trimmed")
    return info
