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
    IDLE_CHANNEL_TTL_MS,
    MAX_RECENT_IDS,
    MIN_DEDUPLICATION_KEYS,
    AppendBatch,
    HistoryPage,
    HistorySpan,
    SpanIds,
)
from gateway.core.event import Event, EventId, FencingToken, pack_id

log = structlog.get_logger("gateway.broker")

FENCED = b"FENCED"
KEY_REUSED = b"REUSED"
SUBSCRIBE_CONFIRMATIONS = ("subscribe", "ssubscribe")

_ZERO = EventId(0, 0)


class _LiveEventHeader(msgspec.Struct, array_like=True):
    id: str
    channel: str
    timestamp: int
    type: str | None
    kept: bool
    size: int


_live_header_decoder = msgspec.json.Decoder(tuple[str, list[_LiveEventHeader]])


@dataclass(frozen=True, slots=True)
class _ChannelTail:
    """A channel's last id, and how long (milliseconds) its events are kept."""

    last_id: EventId | None
    age_ms: int | None

    @classmethod
    def parse(cls, text: bytes | None) -> "_ChannelTail":
        id, _, age = (text or b"").partition(b" ")
        return cls(parse_event_id(id) if id else None, int(age) if age.isdigit() else None)

    def expired_up_to(self, now: int) -> EventId:
        """Return the id up to which events are too old."""
        return _ZERO if self.age_ms is None else EventId.last_before_ms(now - self.age_ms + 1)


class RedisEventLog:
    """Calls on a client. All raise what redis-py raises; deadlines are the caller's."""

    def __init__(self, prefix: str, node_id: str, *, is_sharded: bool) -> None:
        self.key_prefix = f"{{{prefix}}}:"
        self._node_id = node_id
        self._is_sharded = is_sharded
        self.log_key = f"{self.key_prefix}log"
        # Sources leave out what begins with this, so that a topic of "*" on the same Redis is no circle.
        self.live_channel = f"sse-gateway:{self.key_prefix}live".encode()
        self.canary_channel = f"sse-gateway:{self.key_prefix}canary:{node_id}".encode()
        scripts = files("gateway.broker.redis")
        bounds = f"local KEYS_KEPT, CHANNEL_KEPT = {MIN_DEDUPLICATION_KEYS}, {IDLE_CHANNEL_TTL_MS}\n"
        self._append_script = bounds + scripts.joinpath("append.lua").read_text()
        self._recent_script = scripts.joinpath("recent.lua").read_text()
        self._lease_script = scripts.joinpath("lease.lua").read_text()

    async def append(
        self, client: Redis, batches: Sequence[AppendBatch], last_known_id: EventId, now: int
    ) -> tuple[EventId, list[bytes]]:
        """Append batches, or none.

        Returns the head, and of each batch one string: how many were duplicates and all ids; or `FENCED`,
        or `KEY_REUSED`.

        ``known`` is the last id that this node knows of: the log goes on after it in any case.
        """
        answer: list[bytes] = await client.register_script(self._append_script)(
            keys=[self.log_key],
            args=[
                self.key_prefix,
                now,
                str(last_known_id),
                "SPUBLISH" if self._is_sharded else "PUBLISH",
                _encode_batches(batches) if batches else b"",
                b"".join(draft.payload for batch in batches for draft in batch.drafts),
            ],
        )
        return parse_event_id(answer[0]), answer[2:]

    async def subscribe(self, pubsub: PubSub) -> None:
        """Subscribe to the live messages and this node's canaries, and wait until that is confirmed."""
        await (pubsub.ssubscribe if self._is_sharded else pubsub.subscribe)(
            self.live_channel, self.canary_channel
        )
        confirmed = 0
        while confirmed < 2:
            message = await pubsub.get_message(timeout=3600)
            if message is not None and message["type"] in SUBSCRIBE_CONFIRMATIONS:
                confirmed += 1

    async def publish_canary(self, client: Redis, number: int) -> None:
        """Publish what must come back on the subscription."""
        await (client.spublish if self._is_sharded else client.publish)(self.canary_channel, str(number))

    async def read(
        self,
        client: Redis,
        after: Mapping[str, EventId],
        until: EventId,
        limit: int,
        last_known_id: EventId,
        now: int,
    ) -> dict[str, HistoryPage]:
        """Return what `gateway.broker.base.Broker.read` promises."""
        start, lasts = await self._read_channel_tails(client, list(after), last_known_id)
        pipe = client.pipeline(transaction=False)
        for (name, id), last in zip(after.items(), lasts, strict=True):
            low = max(id, start, last.expired_up_to(now))
            pipe.xrange(f"{self.key_prefix}h:{name}", f"({low}", "+", limit + 1)
        found = await pipe.execute(raise_on_error=False)
        return {
            name: _history_page(name, max(id, start), until, limit, rows, last, now)
            for (name, id), rows, last in zip(after.items(), found, lasts, strict=True)
        }

    async def read_recent_ids(self, client: Redis, spans: Sequence[HistorySpan], now: int) -> list[SpanIds]:
        """Return what `gateway.broker.base.BrokerConfig.read_recent_ids` promises."""
        arguments: list[Any] = [self.key_prefix, MAX_RECENT_IDS]
        for span in spans:
            before = "" if span.before is None else str(span.before)
            arguments += [span.channel, str(span.first), before, span.limit]
        answer = await client.register_script(self._recent_script)(keys=[self.log_key], args=arguments)
        return [
            SpanIds(
                [pack_id(parse_event_id(id)) for id in ids.split()],
                pack_id(_ChannelTail.parse(last).expired_up_to(now)),
                bool(is_cut),
            )
            for ids, last, is_cut in answer
        ]

    async def verify_last_event(self, client: Redis, channel: str, id: EventId) -> bool:
        """Tell whether the log still knows of a stored event; if not, mark what is older as not whole.

        Another node may have gone on already: then the event after this one names an earlier ``prev``.
        """
        pipe = client.pipeline(transaction=False)
        pipe.xrange(f"{self.key_prefix}h:{channel}", str(id), "+", 1)
        pipe.get(f"{self.key_prefix}l:{channel}")
        pipe.hmget(self.log_key, ["start"])
        rows, last, (start,) = await pipe.execute(raise_on_error=False)
        if isinstance(rows, Exception) or isinstance(last, Exception):
            return True  # another type: that is told when it is read
        if start is None or parse_event_id(start) >= id:
            return True  # whatever is older is told as lost in any case
        if rows:
            if parse_event_id(rows[0][0]) == id or parse_event_id(rows[0][1][b"prev"]) >= id:
                return True
        elif last is None or (_ChannelTail.parse(last).last_id or _ZERO) >= id:
            return True  # expired
        await client.hset(self.log_key, "start", str(id))
        return False

    async def read_head(self, client: Redis) -> EventId:
        """Return the last id of the log; 0-0 if it is gone."""
        found: Any = await client.hget(self.log_key, "head")
        return parse_event_id(found) if found else _ZERO

    async def read_offset(self, client: Redis, source: str) -> str | None:
        """Return a source's position."""
        found: Any = await client.hget(f"{self.key_prefix}cursors", source)
        return None if found is None else found.decode()

    async def list_partitions(self, client: Redis, source: str) -> list[str]:
        """Return the parts of a source that have a position."""
        start = f"{source}/"
        names = [
            name async for name, _ in client.hscan_iter(f"{self.key_prefix}cursors", f"{start}*", count=1000)
        ]
        return sorted({name.decode().removeprefix(start) for name in names})

    async def set_lease(self, client: Redis, name: str, milliseconds: int) -> FencingToken | None:
        """Take or keep a lease; with 0 milliseconds give it back."""
        token: bytes | None = await client.register_script(self._lease_script)(
            keys=[f"{self.key_prefix}tokens"], args=[self.key_prefix, name, self._node_id, milliseconds]
        )
        return None if token is None else FencingToken(name, int(token))

    async def _read_channel_tails(
        self, client: Redis, names: Sequence[str], last_known_id: EventId
    ) -> tuple[EventId, list[_ChannelTail]]:
        """Return from where on the log is whole, and what is known of each channel's last event."""
        pipe = client.pipeline(transaction=False)
        pipe.hmget(self.log_key, ["start", "evicted"])
        pipe.info("stats")
        pipe.mget([f"{self.key_prefix}l:{name}" for name in names])
        state, stats, lasts = await pipe.execute(raise_on_error=False)
        for answer in (state, lasts):
            if isinstance(answer, Exception):
                raise answer
        start = parse_event_id(state[0]) if state[0] else last_known_id
        if not isinstance(stats, Exception):  # INFO may be forbidden
            before, evicted = int(state[1] or 0), int(stats["evicted_keys"])
            if evicted != before:
                start = max(start, await self._mark_evicted(client, evicted, last_known_id))
        return start, [_ChannelTail.parse(last) for last in lasts]

    async def _mark_evicted(self, client: Redis, count: int, last_known_id: EventId) -> EventId:
        """Mark the log as not whole, because Redis evicted keys and nobody knows which."""
        fields: dict[Any, Any] = {"evicted": count}
        if count:  # else Redis was restarted, and counts from 0 again
            last_known_id = max(last_known_id, await self.read_head(client))
            fields["start"] = str(last_known_id)
            log.error(
                "redis_evicts_keys", keys=count, note="history is lost; set maxmemory-policy noeviction"
            )
        await client.hset(self.log_key, mapping=fields)
        return last_known_id if count else _ZERO


def decode_live_message(message: bytes) -> tuple[EventId, list[Event]]:
    """Return what a live message of ``append.lua`` says: the id before it, and its events."""
    header, _, payloads = message.partition(b"\n")
    before, rows = _live_header_decoder.decode(header)
    events, position = [], 0
    for row in rows:
        payload = payloads[position : position + row.size]
        position += row.size
        events.append(Event(parse_event_id(row.id), row.channel, payload, row.timestamp, row.type, row.kept))
    return parse_event_id(before), events


def parse_event_id(text: bytes | str) -> EventId:
    """Return the id that Redis wrote."""
    ms, _, seq = (text if isinstance(text, str) else text.decode()).partition("-")
    return EventId(int(ms), int(seq))


def _history_page(
    name: str, after: EventId, until: EventId, limit: int, rows: Any, tail: _ChannelTail, now: int
) -> HistoryPage:
    """Return what a channel's stream says: its first event tells whether one before it is gone."""
    floor = after
    if isinstance(rows, Exception):  # not a stream: somebody else's key
        rows, floor = [], max(after, until)
    elif rows:
        floor = max(floor, parse_event_id(rows[0][1][b"prev"]))
    elif tail.last_id is not None:
        floor = max(floor, tail.last_id)
    elif after.ms < now - IDLE_CHANNEL_TTL_MS:  # its last id may have expired as well
        floor = max(floor, EventId.last_before_ms(now - IDLE_CHANNEL_TTL_MS))
    events = [event for event in (_decode_event(name, *row) for row in rows) if after < event.id <= until]
    return HistoryPage(events[:limit], floor, has_more=len(events) > limit)


def _decode_event(channel: str, id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    type_ = fields[b"type"].decode() or None
    return Event(parse_event_id(id), channel, fields[b"payload"], int(fields[b"timestamp"]), type_)


def _encode_batches(batches: Sequence[AppendBatch]) -> bytes:
    """Return batches as ``append.lua`` takes them, but for their payloads."""
    return msgspec.msgpack.encode(
        [
            (
                [
                    (
                        draft.channel,
                        len(draft.payload),
                        draft.timestamp_ms,
                        draft.type,
                        draft.deduplication_key,
                        draft.retention.max_events,
                        draft.retention.max_age_ms,
                        draft.request_fingerprint,
                    )
                    for draft in batch.drafts
                ],
                batch.offset and batch.offset.key,
                batch.offset and batch.offset.value,
                batch.fence and batch.fence.lease,
                batch.fence and str(batch.fence.number),
            )
            for batch in batches
        ]
    )
