"""The log's keys and scripts on one Redis server, and what the scripts return.

Keys, all under one hash tag, ``{prefix}:``

- ``log`` hash: ``head`` (the last id), ``start`` (after which nothing was lost as a whole), ``evicted``
- ``h:<channel>`` stream: ``prev`` (the id before in its channel), ``payload``, ``timestamp``, ``type``
- ``l:<channel>`` string: the channel's last id and its maximum age; it outlives the stream
- ``keys``, ``keys:old`` hashes of deduplication keys, ``cursors``, ``tokens``, ``lease:<name>``
- ``sse-gateway:{prefix}:live``, ``…:canary:<node>`` pub/sub channels
"""

from collections.abc import Callable, Mapping, Sequence
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
    AppendResult,
    HistoryPage,
    HistorySpan,
    SpanIds,
)
from gateway.core.clock import unix_ms
from gateway.core.errors import IdempotencyKeyReused, StaleFencingToken
from gateway.core.event import AppendedIds, Event, EventId, FencingToken, pack_id

log = structlog.get_logger("gateway.broker")

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
    """A channel's last id, and how long (milliseconds) its events are retained."""

    last_id: EventId | None
    age_ms: int | None

    @classmethod
    def parse(cls, text: bytes | None) -> "_ChannelTail":
        id, _, age = (text or b"").partition(b" ")
        return cls(_parse_event_id(id) if id else None, int(age) if age.isdigit() else None)

    def expired_up_to(self, now: int) -> EventId:
        return _ZERO if self.age_ms is None else EventId.last_before_ms(now - self.age_ms + 1)


class RedisEventLog:
    """Calls on a client. All raise what redis-py raises; the caller sets the deadline. ``clock``: unix ms."""

    def __init__(
        self, prefix: str, node_id: str, *, is_sharded: bool, clock: Callable[[], int] = unix_ms
    ) -> None:
        self.last_known_id = _ZERO
        """The last id that this node has seen: the log goes on after it, even if Redis lost events."""
        self._clock = clock
        self.key_prefix = f"{{{prefix}}}:"
        self._node_id = node_id
        self._is_sharded = is_sharded
        self.log_key = f"{self.key_prefix}log"
        # Sources skip channels with this prefix: otherwise a topic of "*" on the same Redis would loop.
        self.live_channel = f"sse-gateway:{self.key_prefix}live".encode()
        self.canary_channel = f"sse-gateway:{self.key_prefix}canary:{node_id}".encode()
        scripts = files("gateway.broker.redis")
        bounds = f"local KEYS_KEPT, CHANNEL_KEPT = {MIN_DEDUPLICATION_KEYS}, {IDLE_CHANNEL_TTL_MS}\n"
        self._append_script = bounds + scripts.joinpath("append.lua").read_text()
        self._recent_script = scripts.joinpath("recent.lua").read_text()
        self._lease_script = scripts.joinpath("lease.lua").read_text()

    def note_id(self, id: EventId) -> None:
        """Record an id that this node has seen."""
        self.last_known_id = max(self.last_known_id, id)

    async def append(
        self, client: Redis, batches: Sequence[AppendBatch]
    ) -> tuple[EventId, list[AppendResult]]:
        """Append batches; without any, only create the log where it is missing.

        Returns the head, and for each batch its ids, or why nothing of it was appended.
        """
        answer: list[bytes] = await client.register_script(self._append_script)(
            keys=[self.log_key],
            args=[
                self.key_prefix,
                self._clock(),
                str(self.last_known_id),
                "SPUBLISH" if self._is_sharded else "PUBLISH",
                _encode_batches(batches) if batches else b"",
                b"".join(draft.payload for batch in batches for draft in batch.drafts),
            ],
        )
        return _parse_event_id(answer[0]), [self._parse_append_result(each) for each in answer[2:]]

    def _parse_append_result(self, text: bytes) -> AppendResult:
        if text == b"FENCED":
            return StaleFencingToken("another node holds the lease now")
        if text == b"REUSED":
            return IdempotencyKeyReused()
        duplicates, *found = text.split()
        ids = AppendedIds(map(_parse_event_id, found), int(duplicates))
        self.last_known_id = max((self.last_known_id, *ids))
        return ids

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
        """Publish a number that the subscription must receive."""
        await (client.spublish if self._is_sharded else client.publish)(self.canary_channel, str(number))

    async def read(
        self, client: Redis, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> dict[str, HistoryPage]:
        """Read history as in `gateway.broker.base.Broker.read`."""
        now = self._clock()
        start, lasts = await self._read_channel_tails(client, list(after))
        pipe = client.pipeline(transaction=False)
        for (name, id), last in zip(after.items(), lasts, strict=True):
            low = max(id, start, last.expired_up_to(now))
            pipe.xrange(f"{self.key_prefix}h:{name}", f"({low}", "+", limit + 1)
        found = await pipe.execute(raise_on_error=False)
        return {
            name: _history_page(name, max(id, start), until, limit, rows, last, now)
            for (name, id), rows, last in zip(after.items(), found, lasts, strict=True)
        }

    async def read_recent_ids(self, client: Redis, spans: Sequence[HistorySpan]) -> list[SpanIds]:
        """Read ids as in `gateway.broker.base.Broker.read_recent_ids`."""
        now = self._clock()
        arguments: list[Any] = [self.key_prefix, MAX_RECENT_IDS]
        for span in spans:
            before = "" if span.before is None else str(span.before)
            arguments += [span.channel, str(span.first), before, span.limit]
        answer = await client.register_script(self._recent_script)(keys=[self.log_key], args=arguments)
        return [
            SpanIds(
                [pack_id(_parse_event_id(id)) for id in ids.split()],
                pack_id(_ChannelTail.parse(last).expired_up_to(now)),
                bool(is_cut),
            )
            for ids, last, is_cut in answer
        ]

    async def verify_last_event(self, client: Redis, channel: str, id: EventId) -> bool:
        """Return whether the log still has a stored event; if not, mark everything older as incomplete.

        Another node may have appended meanwhile: then the event after this one names an earlier ``prev``.
        """
        pipe = client.pipeline(transaction=False)
        pipe.xrange(f"{self.key_prefix}h:{channel}", str(id), "+", 1)
        pipe.get(f"{self.key_prefix}l:{channel}")
        pipe.hmget(self.log_key, ["start"])
        rows, last, (start,) = await pipe.execute(raise_on_error=False)
        if isinstance(rows, Exception) or isinstance(last, Exception):
            return True  # not a stream: reported when it is read
        if start is None or _parse_event_id(start) >= id:
            return True  # everything older is reported as lost in any case
        if rows:
            if _parse_event_id(rows[0][0]) == id or _parse_event_id(rows[0][1][b"prev"]) >= id:
                return True
        elif last is None or (_ChannelTail.parse(last).last_id or _ZERO) >= id:
            return True  # expired
        await client.hset(self.log_key, "start", str(id))
        return False

    async def read_head(self, client: Redis) -> EventId:
        """Return the last id of the log; 0-0 if there is no log."""
        found: Any = await client.hget(self.log_key, "head")
        return _parse_event_id(found) if found else _ZERO

    async def read_offset(self, client: Redis, source: str) -> str | None:
        """Return the offset stored for a source."""
        found: Any = await client.hget(f"{self.key_prefix}cursors", source)
        return None if found is None else found.decode()

    async def list_partitions(self, client: Redis, source: str) -> list[str]:
        """Return the partitions of a source that have an offset."""
        start = f"{source}/"
        names = [
            name async for name, _ in client.hscan_iter(f"{self.key_prefix}cursors", f"{start}*", count=1000)
        ]
        return sorted({name.decode().removeprefix(start) for name in names})

    async def set_lease(self, client: Redis, name: str, milliseconds: int) -> FencingToken | None:
        """Acquire or renew a lease; with 0 milliseconds release it."""
        token: bytes | None = await client.register_script(self._lease_script)(
            keys=[f"{self.key_prefix}tokens"], args=[self.key_prefix, name, self._node_id, milliseconds]
        )
        return None if token is None else FencingToken(name, int(token))

    async def _read_channel_tails(
        self, client: Redis, names: Sequence[str]
    ) -> tuple[EventId, list[_ChannelTail]]:
        """Return the id after which the log is complete, and each channel's tail."""
        pipe = client.pipeline(transaction=False)
        pipe.hmget(self.log_key, ["start", "evicted"])
        pipe.info("stats")
        pipe.mget([f"{self.key_prefix}l:{name}" for name in names])
        state, stats, lasts = await pipe.execute(raise_on_error=False)
        for answer in (state, lasts):
            if isinstance(answer, Exception):
                raise answer
        start = _parse_event_id(state[0]) if state[0] else self.last_known_id
        if not isinstance(stats, Exception):  # INFO may be forbidden
            before, evicted = int(state[1] or 0), int(stats["evicted_keys"])
            if evicted != before:
                start = max(start, await self._mark_evicted(client, evicted))
        return start, [_ChannelTail.parse(last) for last in lasts]

    async def _mark_evicted(self, client: Redis, count: int) -> EventId:
        """Mark the log as incomplete: Redis evicted keys and does not say which. Returns its new start."""
        fields: dict[Any, Any] = {"evicted": count}
        start = _ZERO
        if count:  # otherwise Redis was restarted, and counts from 0 again
            start = max(self.last_known_id, await self.read_head(client))
            fields["start"] = str(start)
            note = "history is lost; set maxmemory-policy noeviction"
            log.error("redis_evicts_keys", keys=count, note=note)
        await client.hset(self.log_key, mapping=fields)
        return start


def decode_live_message(message: bytes) -> tuple[EventId, list[Event]]:
    """Return the id before a live message of ``append.lua``, and its events."""
    header, _, payloads = message.partition(b"\n")
    before, rows = _live_header_decoder.decode(header)
    events, position = [], 0
    for row in rows:
        payload = payloads[position : position + row.size]
        position += row.size
        events.append(Event(_parse_event_id(row.id), row.channel, payload, row.timestamp, row.type, row.kept))
    return _parse_event_id(before), events


def _parse_event_id(text: bytes | str) -> EventId:
    ms, _, seq = (text if isinstance(text, str) else text.decode()).partition("-")
    return EventId(int(ms), int(seq))


def _history_page(
    name: str, after: EventId, until: EventId, limit: int, rows: Any, tail: _ChannelTail, now: int
) -> HistoryPage:
    """Return a page of a channel's stream; ``prev`` of its first event shows whether older ones are gone."""
    floor = after
    if isinstance(rows, Exception):  # not a stream: another program's key
        rows, floor = [], max(after, until)
    elif rows:
        floor = max(floor, _parse_event_id(rows[0][1][b"prev"]))
    elif tail.last_id is not None:
        floor = max(floor, tail.last_id)
    elif after.ms < now - IDLE_CHANNEL_TTL_MS:  # its last id may have expired as well
        floor = max(floor, EventId.last_before_ms(now - IDLE_CHANNEL_TTL_MS))
    events = [event for event in (_decode_event(name, *row) for row in rows) if after < event.id <= until]
    return HistoryPage(events[:limit], floor, has_more=len(events) > limit)


def _decode_event(channel: str, id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    type_ = fields[b"type"].decode() or None
    return Event(_parse_event_id(id), channel, fields[b"payload"], int(fields[b"timestamp"]), type_)


def _encode_batches(batches: Sequence[AppendBatch]) -> bytes:
    """Return the batches as ``append.lua`` takes them, without their payloads."""
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
