"""The log as it lies in Redis: its keys, its scripts, and what they answer. Knows one server, no trouble.

Keys, all under one hash tag, ``{prefix}:``

- ``log`` hash: ``head`` (the last id), ``start`` (after which nothing was lost as a whole), ``evicted``
- ``h:<channel>`` stream: ``prev`` (the channel's id before), ``payload``, ``timestamp``, ``type``
- ``l:<channel>`` string: the channel's last id and its age; it outlives the stream
- ``keys``, ``keys:old`` hashes of deduplication keys, ``cursors``, ``tokens``, ``lease:<name>``
- ``sse-gateway:{prefix}:live``, ``…:canary:<node>`` pub/sub channels
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from gateway.broker.base import (
    CHANNEL_KEPT_MS,
    DEDUPLICATION_KEYS,
    RECENT_IDS,
    Batch,
    Page,
    Recent,
    Span,
)
from gateway.core.event import Event, EventId, Fence, pack

log = structlog.get_logger("gateway.broker")

FENCED = b"FENCED"
REUSED = b"REUSED"
CONFIRMATIONS = ("subscribe", "ssubscribe")

_ZERO = EventId(0, 0)


class _Row(msgspec.Struct, array_like=True):
    id: str
    channel: str
    timestamp: int
    type: str | None
    kept: bool
    size: int


_header = msgspec.json.Decoder(tuple[str, list[_Row]])


@dataclass(frozen=True, slots=True)
class _Last:
    """A channel's last id, and how long (milliseconds) its events are kept."""

    id: EventId | None
    age_ms: int | None

    @classmethod
    def parse(cls, text: bytes | None) -> "_Last":
        id, _, age = (text or b"").partition(b" ")
        return cls(parse(id) if id else None, int(age) if age.isdigit() else None)

    def expired(self, now: int) -> EventId:
        """Return the id up to which events are too old."""
        return _ZERO if self.age_ms is None else EventId.before(now - self.age_ms + 1)


class Store:
    """Calls on a client. All raise what redis-py raises; deadlines are the caller's."""

    def __init__(self, prefix: str, node: str, *, is_sharded: bool) -> None:
        self.base = f"{{{prefix}}}:"
        self._node = node
        self._is_sharded = is_sharded
        self.log_key = f"{self.base}log"
        # Sources leave out what begins with this, so that a topic of "*" on the same Redis is no circle.
        self.live = f"sse-gateway:{self.base}live".encode()
        self.canary = f"sse-gateway:{self.base}canary:{node}".encode()
        scripts = files("gateway.broker.redis")
        bounds = f"local KEYS_KEPT, CHANNEL_KEPT = {DEDUPLICATION_KEYS}, {CHANNEL_KEPT_MS}\n"
        self._append = bounds + scripts.joinpath("append.lua").read_text()
        self._recent = scripts.joinpath("recent.lua").read_text()
        self._lease = scripts.joinpath("lease.lua").read_text()

    async def append(
        self, client: Redis, batches: Sequence[Batch], known: EventId, now: int
    ) -> tuple[EventId, list[bytes]]:
        """Append batches, or none.

        Returns the head, and of each batch one string: how many were duplicates and all ids; or `FENCED`,
        or `REUSED`.

        ``known`` is the last id that this node knows of: the log goes on after it in any case.
        """
        answer: list[bytes] = await client.register_script(self._append)(
            keys=[self.log_key],
            args=[
                self.base,
                now,
                str(known),
                "SPUBLISH" if self._is_sharded else "PUBLISH",
                _encoded(batches) if batches else b"",
                b"".join(draft.payload for batch in batches for draft in batch.drafts),
            ],
        )
        return parse(answer[0]), answer[2:]

    async def subscribe(self, pubsub: PubSub) -> None:
        """Subscribe to the live messages and this node's canaries, and wait until that is confirmed."""
        await (pubsub.ssubscribe if self._is_sharded else pubsub.subscribe)(self.live, self.canary)
        confirmed = 0
        while confirmed < 2:
            message = await pubsub.get_message(timeout=3600)
            if message is not None and message["type"] in CONFIRMATIONS:
                confirmed += 1

    async def send_canary(self, client: Redis, number: int) -> None:
        """Publish what must come back on the subscription."""
        await (client.spublish if self._is_sharded else client.publish)(self.canary, str(number))

    async def read(
        self,
        client: Redis,
        after: Mapping[str, EventId],
        until: EventId,
        limit: int,
        known: EventId,
        now: int,
    ) -> dict[str, Page]:
        """Return what `gateway.broker.base.Broker.read` promises."""
        start, lasts = await self._lasts(client, list(after), known)
        pipe = client.pipeline(transaction=False)
        for (name, id), last in zip(after.items(), lasts, strict=True):
            low = max(id, start, last.expired(now))
            pipe.xrange(f"{self.base}h:{name}", f"({low}", "+", limit + 1)
        found = await pipe.execute(raise_on_error=False)
        return {
            name: _page(name, max(id, start), until, limit, rows, last, now)
            for (name, id), rows, last in zip(after.items(), found, lasts, strict=True)
        }

    async def recent(self, client: Redis, spans: Sequence[Span], now: int) -> list[Recent]:
        """Return what `gateway.broker.base.Broker.recent` promises."""
        arguments: list[Any] = [self.base, RECENT_IDS]
        for span in spans:
            before = "" if span.before is None else str(span.before)
            arguments += [span.channel, str(span.first), before, span.limit]
        answer = await client.register_script(self._recent)(keys=[self.log_key], args=arguments)
        return [
            Recent(
                [pack(parse(id)) for id in ids.split()], pack(_Last.parse(last).expired(now)), bool(is_cut)
            )
            for ids, last, is_cut in answer
        ]

    async def check_back(self, client: Redis, channel: str, id: EventId) -> bool:
        """Tell whether the log still knows of a stored event; if not, mark what is older as not whole.

        Another node may have gone on already: then the event after this one names an earlier ``prev``.
        """
        pipe = client.pipeline(transaction=False)
        pipe.xrange(f"{self.base}h:{channel}", str(id), "+", 1)
        pipe.get(f"{self.base}l:{channel}")
        pipe.hmget(self.log_key, ["start"])
        rows, last, (start,) = await pipe.execute(raise_on_error=False)
        if isinstance(rows, Exception) or isinstance(last, Exception):
            return True  # another type: that is told when it is read
        if start is None or parse(start) >= id:
            return True  # whatever is older is told as lost in any case
        if rows:
            if parse(rows[0][0]) == id or parse(rows[0][1][b"prev"]) >= id:
                return True
        elif last is None or (_Last.parse(last).id or _ZERO) >= id:
            return True  # expired
        await client.hset(self.log_key, "start", str(id))
        return False

    async def head(self, client: Redis) -> EventId:
        """Return the last id of the log; 0-0 if it is gone."""
        found: Any = await client.hget(self.log_key, "head")
        return parse(found) if found else _ZERO

    async def cursor(self, client: Redis, source: str) -> str | None:
        """Return a source's position."""
        found: Any = await client.hget(f"{self.base}cursors", source)
        return None if found is None else found.decode()

    async def parts(self, client: Redis, source: str) -> list[str]:
        """Return the parts of a source that have a position."""
        start = f"{source}/"
        names = [name async for name, _ in client.hscan_iter(f"{self.base}cursors", f"{start}*", count=1000)]
        return sorted({name.decode().removeprefix(start) for name in names})

    async def lease(self, client: Redis, name: str, milliseconds: int) -> Fence | None:
        """Take or keep a lease; with 0 milliseconds give it back."""
        token: bytes | None = await client.register_script(self._lease)(
            keys=[f"{self.base}tokens"], args=[self.base, name, self._node, milliseconds]
        )
        return None if token is None else Fence(name, int(token))

    async def _lasts(
        self, client: Redis, names: Sequence[str], known: EventId
    ) -> tuple[EventId, list[_Last]]:
        """Return from where on the log is whole, and what is known of each channel's last event."""
        pipe = client.pipeline(transaction=False)
        pipe.hmget(self.log_key, ["start", "evicted"])
        pipe.info("stats")
        pipe.mget([f"{self.base}l:{name}" for name in names])
        state, stats, lasts = await pipe.execute(raise_on_error=False)
        for answer in (state, lasts):
            if isinstance(answer, Exception):
                raise answer
        start = parse(state[0]) if state[0] else known
        if not isinstance(stats, Exception):  # INFO may be forbidden
            before, evicted = int(state[1] or 0), int(stats["evicted_keys"])
            if evicted != before:
                start = max(start, await self._evicted(client, evicted, known))
        return start, [_Last.parse(last) for last in lasts]

    async def _evicted(self, client: Redis, count: int, known: EventId) -> EventId:
        """Mark the log as not whole, because Redis evicted keys and nobody knows which."""
        fields: dict[Any, Any] = {"evicted": count}
        if count:  # else Redis was restarted, and counts from 0 again
            known = max(known, await self.head(client))
            fields["start"] = str(known)
            log.error(
                "redis_evicts_keys", keys=count, note="history is lost; set maxmemory-policy noeviction"
            )
        await client.hset(self.log_key, mapping=fields)
        return known if count else _ZERO


def events_of(message: bytes) -> tuple[EventId, list[Event]]:
    """Return what a live message of ``append.lua`` says: the id before it, and its events."""
    header, _, payloads = message.partition(b"\n")
    before, rows = _header.decode(header)
    events, position = [], 0
    for row in rows:
        payload = payloads[position : position + row.size]
        position += row.size
        events.append(Event(parse(row.id), row.channel, payload, row.timestamp, row.type, row.kept))
    return parse(before), events


def parse(text: bytes | str) -> EventId:
    """Return the id that Redis wrote."""
    ms, _, seq = (text if isinstance(text, str) else text.decode()).partition("-")
    return EventId(int(ms), int(seq))


def _page(name: str, after: EventId, until: EventId, limit: int, rows: Any, last: _Last, now: int) -> Page:
    """Return what a channel's stream says: its first event tells whether one before it is gone."""
    floor = after
    if isinstance(rows, Exception):  # not a stream: somebody else's key
        rows, floor = [], max(after, until)
    elif rows:
        floor = max(floor, parse(rows[0][1][b"prev"]))
    elif last.id is not None:
        floor = max(floor, last.id)
    elif after.ms < now - CHANNEL_KEPT_MS:  # its last id may have expired as well
        floor = max(floor, EventId.before(now - CHANNEL_KEPT_MS))
    events = [event for event in (_event(name, *row) for row in rows) if after < event.id <= until]
    return Page(events[:limit], floor, more=len(events) > limit)


def _event(channel: str, id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    type_ = fields[b"type"].decode() or None
    return Event(parse(id), channel, fields[b"payload"], int(fields[b"timestamp"]), type_)


def _encoded(batches: Sequence[Batch]) -> bytes:
    """Return batches as ``append.lua`` takes them, but for their payloads."""
    return msgspec.msgpack.encode(
        [
            (
                [
                    (
                        draft.channel,
                        len(draft.payload),
                        draft.timestamp,
                        draft.type,
                        draft.key,
                        draft.retention.events,
                        draft.retention.age_ms,
                        draft.fingerprint,
                    )
                    for draft in batch.drafts
                ],
                batch.cursor and batch.cursor.source,
                batch.cursor and batch.cursor.position,
                batch.fence and batch.fence.name,
                batch.fence and str(batch.fence.token),
            )
            for batch in batches
        ]
    )
