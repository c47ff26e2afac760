"""Every cache is bounded in entries and bytes, whatever is put into it; and none is forgotten here."""

import ast
import asyncio
import gc
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import _lru_cache_wrapper, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy

from gateway.auth.forward import AuthRequest, ForwardAuth, _Decision
from gateway.auth.grant import ANONYMOUS, Grant
from gateway.auth.jwt import MAX_TOKEN_CHARS, Issuer, TokenVerifier
from gateway.auth.revocation import RecentRevocations, Revocation
from gateway.auth.tickets import TicketStore
from gateway.broker.base import AppendBatch
from gateway.broker.memory import MemoryBroker
from gateway.broker.memory_shared_store import MemorySharedStore
from gateway.broker.shared_store import QuotaSlot
from gateway.broker.sqlite.event_log import SqliteEventLog
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.auth import ForwardConfig, JwtConfig
from gateway.config.template import MAX_NAME_CHARS, Template
from gateway.core.bounded_dict import MAX_KEY_CHARS, BoundedDict
from gateway.core.clock import unix_ms
from gateway.core.errors import NotFound, Unauthorized
from gateway.core.event import Draft, Event, EventId, Record, Retention
from gateway.core.history import History
from gateway.http import responses
from gateway.http.cors import ANY_CHANNEL, CorsPolicy
from gateway.http.request import StreamRequest
from gateway.hub.conflation import ConflationIndex
from gateway.hub.control_channel import ControlChannel
from gateway.hub.encoded_event import EncodedEvent
from gateway.hub.recent_ids import RecentIds
from gateway.hub.subscription import Subscription
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentError, RecentErrors
from gateway.sources.redis.pubsub import TopicSet
from gateway.sources.redis.recent_messages import RecentMessages
from gateway.sources.router import Router
from gateway.streams.acks.forwarder import AckForwarder
from gateway.streams.acks.nonces import NonceSigner
from gateway.streams.acks.tracker import AckTracker
from gateway.streams.quotas.address_quotas import AddressQuotas, AddressUsage
from gateway.streams.quotas.client_address import TrustedProxies, address_key
from gateway.streams.quotas.client_limits import UNKNOWN_CALLER, StreamQuota
from gateway.streams.quotas.client_limits import ClientLimits as AllLimits
from gateway.streams.quotas.user_quotas import UserQuotas
from gateway.streams.reconnect_loops import ReconnectLoopDetector
from gateway.webhooks.credentials import VerifiedMessage
from gateway.webhooks.formats.base import WebhookResponse
from gateway.webhooks.idempotency import MAX_REMEMBERED_RESPONSE_BYTES, IdempotencyCache
from tests.soak import declared
from tests.soak.caches import CACHES, OTHERS, Cache
from tests.soak.containers import deep_bytes
from tests.support.config import loads

FEW = 400
"""Entries that a cache is bounded by here; more where the bound was taken when the module was imported."""

MANY = 250
"""Entries beyond the bound."""

HEAVY = 400
"""Entries where it is bytes that bound them."""

SECRET = "s" * 32
LONG = "é" * 4000
"""A text that some client sends where a short one is expected."""

WIDE = "\U00020000"

USER = "user.{a}.{b}"
CONFIG = {
    "server": {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"},
    "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
    "cors": {"origins": ["*"]},
    "channels": {
        USER: {
            "from": [{"source": "hooks", "topic": "user:{a}:{b}"}],
            "access": "public",
            "slow_client": {"conflate": "{/id}"},
        },
        "all": {"from": [{"source": "hooks", "topic": "user:*"}], "access": "public"},
    },
}


def channel(number: int) -> str:
    """Return the longest name of a channel, of letters that take most bytes."""
    return f"user.{WIDE * 120}.{number}-".ljust(MAX_NAME_CHARS, WIDE)[: 5 + 120 + 1 + 128]


def long(number: int) -> str:
    """Return a text that is far too long, and no other one's."""
    return f"{LONG}{number}"


def configured() -> Any:
    """Return a configuration with a template."""
    return loads(json.dumps(CONFIG), environ={})


def catalog() -> ChannelCatalog:
    """Return its catalog."""
    return ChannelCatalog(configured().channels)


def ask(number: int, names: Iterable[str] = ()) -> StreamRequest:
    """Return a request of some page, for channels of any name."""
    headers = CIMultiDictProxy(CIMultiDict({hdrs.ORIGIN: f"https://{number:0>6}".ljust(500, "o")}))
    return StreamRequest(
        "GET", tuple(names), MultiDictProxy(MultiDict()), headers, True, UNKNOWN_CALLER, "/events"
    )


@dataclass
class Flooded:
    """What a flood filled: the container, how to count it, and what must live as long."""

    container: Any
    count: Callable[[], int] | None = None
    alive: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        if self.count is not None:
            return self.count()
        if isinstance(self.container, _lru_cache_wrapper):
            return self.container.cache_info().currsize
        return len(self.container)


def tokens() -> TokenVerifier:
    config = JwtConfig.model_validate({"algorithms": ["HS256"], "secret": SECRET})
    return TokenVerifier([Issuer(config, SECRET.encode())], ["tenants"])


def signed(number: int, size: int) -> str:
    claims = {
        "exp": time.time() + 600,
        "sub": f"{number}" + "s" * 500,
        "tenants": [[]] * (size // 3) + [number],
    }
    return jwt.encode(claims, SECRET, "HS256")


def flood_claims(entries: int) -> Flooded:
    async def flood() -> Flooded:
        made = tokens()
        for number in range(entries):
            await made.resolve(signed(number, 600))
        for number in range(20):
            await made.resolve(signed(number, 4000))
        return Flooded(made._interned_claims)

    return asyncio.run(flood())


def flood_verified(entries: int) -> Flooded:
    async def flood() -> Flooded:
        made = tokens()
        for number in range(entries):
            await made.resolve(signed(number, 1500))
        return Flooded(made._verified)

    return asyncio.run(flood())


def flood_failed(entries: int) -> Flooded:
    async def flood() -> Flooded:
        made = tokens()
        for number in range(entries):
            with pytest.raises(Unauthorized):
                await made.resolve(f"{number}".ljust(MAX_TOKEN_CHARS, "."))
            with pytest.raises(Unauthorized):
                await made.resolve(f"{number}".ljust(MAX_TOKEN_CHARS + 1, "."))
        return Flooded(made._failures)

    return asyncio.run(flood())


def flood_tickets(entries: int) -> Flooded:
    async def flood() -> Flooded:
        board = MemorySharedStore(unix_ms)
        made = TicketStore(board, 600, RecentRevocations())
        for number in range(entries):
            opened = [channel(100 * number + each) for each in range(50)]
            given = await made.issue(Grant(subject=long(number)), opened, None)
            await made.resolve(given.value)
        return Flooded(made._cache)

    return asyncio.run(flood())


def flood_answers(entries: int) -> Flooded:
    config = ForwardConfig.model_validate({"url": "http://127.0.0.1:1/", "cache": "10m"})
    made = ForwardAuth(config, aiohttp.ClientSession, Metrics(), RecentRevocations())

    async def answer(opened: Iterable[str], number: int) -> _Decision:
        return _Decision(time.time() + 600, Grant(long(number), opened=frozenset(opened)), 200)

    async def flood() -> None:
        for number in range(entries):
            names = tuple(channel(100 * number + each) for each in range(50))
            question = AuthRequest(names, {}, {}, "/events", None, None)
            task = asyncio.create_task(answer(names, number))
            await task
            made._on_decision(made._cache_key(question), task, 0)

    asyncio.run(flood())
    return Flooded(made._decisions)


def flood_revocations(entries: int) -> Flooded:
    made = RecentRevocations()
    for number in range(entries):
        made.add(Revocation(f"{number}".ljust(8000, "é"), f"{number}".ljust(8000, "é")))  # as long as a URL
    return Flooded(made._recent)


def flood_keys(entries: int) -> Flooded:
    async def flood() -> Flooded:
        broker = MemoryBroker(history_bytes=1 << 20)
        for number in range(entries):
            await broker.append(
                [Draft(channel(number), b"", 0, Retention(0), deduplication_key=f"{number}".ljust(255, "é"))]
            )
        return Flooded(broker._deduplication_keys)

    return asyncio.run(flood())


def flood_notes(entries: int) -> Flooded:
    async def flood() -> Flooded:
        board = MemorySharedStore(unix_ms)
        for number in range(entries):
            await board.put(f"ticket:{number:0>64}", b"x" * 10_000, 600)
        return Flooded(board._entries)

    return asyncio.run(flood())


def flood_seats(entries: int) -> Flooded:
    async def flood() -> Flooded:
        board = MemorySharedStore(unix_ms)
        for number in range(entries):
            await board.acquire_slots(
                [QuotaSlot(f"tickets:{number:0>64}", f"ticket:{number:0>64}", 100)], 600
            )
        return Flooded(board._slots)

    return asyncio.run(flood())


def stored(entries: int, folder: Path) -> SqliteEventLog:
    store = SqliteEventLog(folder / "log.db", unix_ms)
    for number in range(entries):
        with store.transaction():
            store.append([AppendBatch([Draft(channel(number), b"", 0, Retention(1))], None, None)], 0)
    return store


def flood_rows(entries: int, folder: Path) -> Flooded:
    store = stored(entries, folder)
    return Flooded(store._channel_cache, alive=[store])


def flood_written(entries: int, folder: Path) -> Flooded:
    store = stored(entries, folder)
    return Flooded(store._channels_to_sweep, alive=[store])


def flood_catalog(entries: int) -> Flooded:
    made = catalog()
    for number in range(entries):
        assert made.resolve(channel(number)) is not None
        assert made.resolve(long(number)) is None
        assert made.resolve(f"nowhere.{number}") is None
    return Flooded(made._resolved_instances)


def flood_floors(entries: int) -> Flooded:
    now = [1000]
    history: History[Event] = History(max_bytes=1 << 20, start=EventId(1, 0), clock=lambda: now[0])
    for number in range(entries):
        event = Event(EventId(now[0], number), channel(number), b"", 0)
        history.append(event, 1, Retention(1, max_age_ms=1))
    now[0] += 10
    history.expire()
    return Flooded(history._empty_channel_floors, alive=[history])


def flood_newest(entries: int) -> Flooded:
    made, known = ConflationIndex(1 << 30), catalog()
    for number in range(entries):
        match = known.resolve(channel(number))
        assert match is not None
        payload = json.dumps({"id": long(number)}).encode()
        made.record(EncodedEvent(Event(EventId(1, number), match.name, payload, 0), match.declared))
    return Flooded(made._channels, lambda: len(made))


def policy() -> CorsPolicy:
    return CorsPolicy(configured(), catalog())


def flood_tails(entries: int) -> Flooded:
    async def flood() -> Flooded:
        broker = MemoryBroker(history_bytes=1 << 20)
        await broker.append([Draft(channel(0), b"1", 1, Retention(10))])
        made = RecentIds(broker)
        for number in range(0, entries, 50):
            await made.find_start({channel(each): 10 for each in range(number, number + 50)}, 5)
        await made.close()
        return Flooded(made._tails)

    return asyncio.run(flood())


def flood_cors(entries: int) -> Flooded:
    made = policy()
    for number in range(entries):
        made.refusing_rule(
            f"https://{number:0>6}".ljust(200, "é"),
            tuple(f"{number}-{each}".ljust(30, "😀") for each in range(10)),
        )
        made.refusing_rule("https://a", (long(number),))
        made.refusing_rule(long(number), ("all",))
        made.refusing_rule(f"https://{number:0>6}".ljust(500, "😀"), ANY_CHANNEL)
        made.refusing_rule(long(number), ANY_CHANNEL)
    return Flooded(made._cached_refusing_rule, alive=[made])


def flood_pages(entries: int) -> Flooded:
    made = policy()
    for number in range(entries):
        assert made.page_origin(ask(number)) is not None
    return Flooded(made._interned_origins, alive=[made])


def flood_heads(entries: int) -> Flooded:
    responses._encode_head_lines.cache_clear()
    made = policy()
    for number in range(entries):
        headers = {
            **responses.raw_error_response(NotFound("no")).headers,
            **made.response_headers(ask(number), ("all",)),
        }
        assert hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in headers
        responses.encode_head(404, headers, {hdrs.CONTENT_LENGTH: str(number)})
    return Flooded(responses._encode_head_lines)


def address(number: int) -> str:
    """Return a client's address as long as they are; each is in another network."""
    return f"2001:db80:{number >> 16:0>4x}:{number & 65535:0>4x}:aaaa:bbbb:cccc:dddd"


def flood_trusts(entries: int) -> Flooded:
    made = TrustedProxies(configured().server.trusted_proxies)
    for number in range(entries):
        assert made.client_address("127.0.0.1", f"{long(number)}, {address(number)}") is not None
    return Flooded(made.is_trusted, alive=[made])


def flood_units(entries: int) -> Flooded:
    address_key.cache_clear()
    made = TrustedProxies(configured().server.trusted_proxies)
    for number in range(entries):
        found = made.client_address("127.0.0.1", f"{long(number)}, {address(number)}")
        assert found is not None
        address_key(found)
    return Flooded(address_key)


def flood_announced(entries: int) -> Flooded:
    config = configured()
    made = AllLimits(config.server, config.limits, MemorySharedStore(unix_ms), Metrics())
    for number in range(entries):
        made.on_announced(f"client:{number:0>32}", "c" * 24, (unix_ms(), number, 0))
    return Flooded(made._newest_stream)


def flood_served(entries: int) -> Flooded:
    config = configured()
    made = AllLimits(config.server, config.limits, MemorySharedStore(unix_ms), Metrics())
    for number in range(entries):
        hold = made.acquire(UNKNOWN_CALLER, ANONYMOUS, f"{number:0>32}")
        hold.activate(Gone())
        hold.release()
    return Flooded(made._recently_served)


class Gone:
    """A stream that ended."""

    id = "c" * 24

    def close_replaced(self) -> None:
        """End once more."""


def flood_peers(entries: int) -> Flooded:
    made = AddressQuotas(10, 1000.0, lambda address: False)
    for number in range(entries):
        made.usage_of(address(number))
    return Flooded(made._usages)


class MultiNodeSharedStore(MemorySharedStore):
    """One that nodes share, as those of the other logs are."""

    is_shared = True


def flood_leaving(entries: int) -> Flooded:
    async def flood() -> Flooded:
        made = UserQuotas(MultiNodeSharedStore(unix_ms), 10)
        made.start()
        for number in range(entries):
            user, member = f"user:{number:0>32}", f"client:{number:0>32}"
            made.acquire(user, member)
            made.release(user, member)
        found = Flooded(dict(made._pending_releases))
        await made.stop()
        return found

    return asyncio.run(flood())


def flood_refusals(entries: int) -> Flooded:
    made = RecentErrors()
    for number in range(entries):
        text = long(number)
        made.record(text, RecentError("stream", "bad", text, source=text, origin=text, client=text))
    return Flooded(made._errors_by_cause)


def flood_seldom(entries: int) -> Flooded:
    made = LogThrottle()
    for number in range(entries):
        made.should_log(("code", long(number)))
        made.should_log(("code", f"{number}".ljust(MAX_KEY_CHARS, "😀")))
        made.should_log(long(number))
    return Flooded(made._last_logged)


def flood_topics(entries: int) -> Flooded:
    made = TopicSet([Template("*", glob=True)])
    for number in range(entries):
        made.is_primary_copy(b"%d" % number + b"x" * 1000, b"*")
        made.is_primary_copy(b"%d" % number + b"x" * 100_000, b"*")
    return Flooded(made._cached_owner, alive=[made])


def flood_routes(entries: int) -> Flooded:
    made = Router(catalog(), event_bytes=1000)
    for number in range(entries):
        topic = f"user:{number}{'a' * 100}:".ljust(MAX_NAME_CHARS, "b")[
            : 5 + len(str(number)) + 100 + 1 + 128
        ]
        assert len(made.route("hooks", Record(topic, b"1"), 0)) == 2
        for lost in (long(number), f"user:{long(number)}", f"nowhere:{number}"):
            try:
                made.route("hooks", Record(lost, b"1"), 0)
            except Exception as error:
                assert getattr(error, "code", "") == "no_route"
    return Flooded(made._sources["hooks"].cache, alive=[made])


def flood_markers(entries: int) -> Flooded:
    made = RecentMessages("plan")
    for number in range(entries):
        made.add_marker(f"{number:0>12}")
    return Flooded(made._markers)


def elsewhere() -> AckForwarder:
    broker = MemoryBroker(history_bytes=1 << 20)
    config = configured()
    acks = AckTracker(NonceSigner(broker.shared_store), Metrics(), config.ack, config.channels)
    return AckForwarder(ControlChannel(broker, unix_ms), acks, is_shared=True)


def flood_untold(entries: int) -> Flooded:
    async def flood() -> Flooded:
        made = elsewhere()
        for number in range(entries):
            try:
                made.forward(f"{number:0>24}", 1)
            except Exception as error:
                assert getattr(error, "status", 0) == 503
        found = Flooded(dict(made._pending))
        await made.close()
        return found

    return asyncio.run(flood())


def flood_told(entries: int) -> Flooded:
    async def flood() -> Flooded:
        made = elsewhere()
        for first in range(0, entries, 100):
            for number in range(first, min(first + 100, entries)):
                made.forward(f"{number:0>24}", 1)
            while made._pending:
                await asyncio.sleep(0)
                for each in list(made._pending):
                    made._mark_forwarded(each, 1)
        await made.close()
        return Flooded(made._forwarded)

    return asyncio.run(flood())


def flood_nonces(entries: int) -> Flooded:
    async def flood() -> Flooded:
        board = MemorySharedStore(unix_ms)
        made = NonceSigner(board)
        for number in range(entries):
            await board.put("ack-key", number.to_bytes(32, "big"), 60)
            await made._poll_shared_key()
        return Flooded(made._known_keys)

    return asyncio.run(flood())


def flood_ended(entries: int, *, is_stuck: bool) -> Flooded:
    made = ReconnectLoopDetector(Metrics())
    subscription = Subscription.of(())
    for number in range(entries):
        peer = AddressUsage(f"2001:db8:{number:x}::/64".ljust(43, " "), None)
        stream = EndedStream(
            "client_closed", 0, StreamQuota(peer, ANONYMOUS, None, "", None, None), subscription
        )
        if is_stuck:
            event = Event(EventId(10**14 - 1, number), "c", b"1", 1)
            made.on_large_first_event(stream, EncodedEvent(event, catalog().declared["all"]))
        made.on_closed(stream, 2.0, 15.0)
    assert not made._large_first_events
    return Flooded(made._closes_by_event if is_stuck else made._quiet_closes)


@dataclass(eq=False)
class EndedStream:
    """What is looked at of a stream that has ended."""

    close_reason: str | None
    events_sent: int
    quota: StreamQuota
    subscription: Subscription


def flood_replays(entries: int) -> Flooded:
    made = IdempotencyCache()
    for number in range(entries):
        proof = VerifiedMessage(attempt_id=long(number))
        made.begin(proof)
        made.finish(proof, WebhookResponse(200, "application/json", bytes(MAX_REMEMBERED_RESPONSE_BYTES)), 1)
    return Flooded(made._messages)


FLOODS: dict[str, Callable[..., Flooded]] = {
    "gateway.auth.forward.ForwardAuth._decisions": flood_answers,
    "gateway.auth.revocation.RecentRevocations._recent": flood_revocations,
    "gateway.auth.tickets.TicketStore._cache": flood_tickets,
    "gateway.auth.jwt.TokenVerifier._interned_claims": flood_claims,
    "gateway.auth.jwt.TokenVerifier._failures": flood_failed,
    "gateway.auth.jwt.TokenVerifier._verified": flood_verified,
    "gateway.broker.memory.MemoryBroker._deduplication_keys": flood_keys,
    "gateway.broker.memory_shared_store.MemorySharedStore._entries": flood_notes,
    "gateway.broker.memory_shared_store.MemorySharedStore._slots": flood_seats,
    "gateway.broker.sqlite.event_log.SqliteEventLog._channel_cache": flood_rows,
    "gateway.broker.sqlite.event_log.SqliteEventLog._channels_to_sweep": flood_written,
    "gateway.config.channel_catalog.ChannelCatalog._resolved_instances": flood_catalog,
    "gateway.core.history.History._empty_channel_floors": flood_floors,
    "gateway.http.cors.CorsPolicy._cached_refusing_rule": flood_cors,
    "gateway.http.cors.CorsPolicy._interned_origins": flood_pages,
    "gateway.http.responses._encode_head_lines": flood_heads,
    "gateway.hub.conflation.ConflationIndex._channels": flood_newest,
    "gateway.hub.recent_ids.RecentIds._tails": flood_tails,
    "gateway.streams.quotas.client_address.TrustedProxies.is_trusted": flood_trusts,
    "gateway.streams.quotas.client_address.address_key": flood_units,
    "gateway.streams.quotas.client_limits.ClientLimits._newest_stream": flood_announced,
    "gateway.streams.quotas.client_limits.ClientLimits._recently_served": flood_served,
    "gateway.streams.quotas.address_quotas.AddressQuotas._usages": flood_peers,
    "gateway.streams.quotas.user_quotas.UserQuotas._pending_releases": flood_leaving,
    "gateway.observability.recent_errors.RecentErrors._errors_by_cause": flood_refusals,
    "gateway.observability.log_throttle.LogThrottle._last_logged": flood_seldom,
    "gateway.sources.redis.pubsub.TopicSet._cached_owner": flood_topics,
    "gateway.sources.router._SourceRoutes.cache": flood_routes,
    "gateway.sources.redis.recent_messages.RecentMessages._markers": flood_markers,
    "gateway.streams.acks.forwarder.AckForwarder._forwarded": flood_told,
    "gateway.streams.acks.forwarder.AckForwarder._pending": flood_untold,
    "gateway.streams.acks.nonces.NonceSigner._known_keys": flood_nonces,
    "gateway.streams.reconnect_loops.ReconnectLoopDetector._quiet_closes": partial(
        flood_ended, is_stuck=False
    ),
    "gateway.streams.reconnect_loops.ReconnectLoopDetector._closes_by_event": partial(
        flood_ended, is_stuck=True
    ),
    "gateway.webhooks.idempotency.IdempotencyCache._messages": flood_replays,
}
"""What puts entries into each cache, by its own interface: as many as it is told, with all as long as can be."""

TOGETHER = 2 << 20
"""What a bound in bytes is set to here."""


LINK = 100
"""Bytes of an entry of `lru_cache` beside its key and value."""


def taken_by(container: Any) -> int:
    """Return about how many bytes a container takes, with what it holds."""
    if not isinstance(container, _lru_cache_wrapper):
        return deep_bytes(container, levels=50)
    held = [
        each
        for each in gc.get_referents(container)
        if not callable(each) and not isinstance(each, ModuleType)
    ]
    assert len(held) >= container.cache_info().currsize, "keys and values are among them"
    return deep_bytes(held, levels=50) + LINK * container.cache_info().currsize


@pytest.mark.parametrize(
    "cache", [cache for cache in CACHES if cache.container], ids=lambda cache: cache.container
)
def test_a_flood_stays_within_the_bounds(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever sends names that nobody sent before must not decide how much memory the gateway takes."""
    module, limit = import_module(cache.module), cache.limit()
    flood = FLOODS[cache.container]
    owner = cache.container.rpartition(".")[0]
    is_made_at_import = owner == cache.module
    bound = limit if is_made_at_import else min(limit, FEW)
    monkeypatch.setattr(module, cache.bound, bound)
    if cache.bytes:
        assert getattr(module, cache.bytes) <= 64 << 20
        monkeypatch.setattr(module, cache.bytes, TOGETHER)
    more = (
        HEAVY if cache.bytes else bound + MANY,
        *([tmp_path] if flood in (flood_rows, flood_written) else []),
    )
    found = flood(*more)
    assert 0 < len(found) <= bound
    taken = taken_by(found.container)
    if cache.bytes:
        assert TOGETHER / 2 < taken <= TOGETHER * 1.1, f"{taken:,} bytes"
        assert len(found) < bound, "the bytes must be what bounds it here"
    else:
        assert taken <= bound * cache.each, f"{taken / bound:,.0f} bytes an entry"


def test_seats_of_all_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One subject may have a hundred tickets, and there may be many subjects."""
    module = import_module("gateway.broker.memory_shared_store")
    monkeypatch.setattr(module, "MAX_QUOTA_SLOTS", 500)

    async def flood() -> MemorySharedStore:
        board = MemorySharedStore(unix_ms)
        for number in range(5000):
            await board.acquire_slots(
                [QuotaSlot(f"tickets:{number // 50}", f"ticket:{number:0>64}", 100)], 600
            )
            if number % 7 == 0:
                await board.release_slots(
                    [QuotaSlot(f"tickets:{number // 50}", f"ticket:{number:0>64}", None)]
                )
        return board

    board = asyncio.run(flood())
    held = sum(map(len, board._slots.values()))
    assert held == board._slot_count
    assert 400 < held <= 500


def test_each_cache_has_a_flood() -> None:
    """A row without a flood proves nothing."""
    assert set(FLOODS) == {cache.container for cache in CACHES if cache.container}


def test_every_container_of_the_source_is_listed() -> None:
    """A cache that nobody thought of is the one that grows: list it in tests/soak/caches.py, with its bound."""
    found = declared.containers()
    caches = {cache.container for cache in CACHES if cache.container}
    others = [name for names in OTHERS.values() for name in names]
    assert len(others) == len(set(others)), "once each"
    assert not caches & set(others)
    listed = caches | set(others)
    assert {name: where for name, where in found.items() if name not in listed} == {}
    assert listed - found.keys() == set(), "these are gone, or have another name"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "class A:\n def __init__(self):\n  self.x = {}\n  self.y: list[int] = []\n  self.z = 1",
            {"A.x", "A.y"},
        ),
        ("class A:\n def later(self):\n  self.x = self.y = OrderedDict()", {"A.x", "A.y"}),
        ("class A:\n def f(self):\n  self.x = lru_cache(LIMIT)(self.g)\n  self.y = cache(h)", {"A.x", "A.y"}),
        (
            "class A(Struct):\n x: dict[str, int] = {}\n y: int = 0\n z: set[str] | None = None",
            {"A.x", "A.z"},
        ),
        ("@lru_cache(5)\ndef f(): ...\n@functools.cache\ndef g(): ...\n@property\ndef h(): ...", {"f", "g"}),
        ("x = {}\ny: WeakValueDictionary[str, A] = WeakValueDictionary()\nz = {'a': 1}", {"x", "y"}),
        ("x = {'a': 1}\ndef f(key): x[key] = 1", {"x"}),
        ("x = ['a']\ndef f(key): x.append(key)", {"x"}),
        (
            "class A:\n def f(self):\n  self.x = [{} for _ in range(3)]\n  self.y = BoundedDict(1, 2)",
            {"A.x", "A.y"},
        ),
        ("class A:\n def f(self):\n  self.x = given or {}\n  self.y = dict.fromkeys(b)", {"A.x", "A.y"}),
        (
            "class A:\n def f(self):\n  self.x = queue.SimpleQueue()\n  self.y = deque(maxlen=3)",
            {"A.x", "A.y"},
        ),
        ("X = list[int] | None\nclass A:\n def f(self):\n  local = {}\n  self.x = tuple([1])", set()),
    ],
)
def test_the_search_finds_containers(source: str, expected: set[str]) -> None:
    """A search that finds nothing would let everything pass."""
    assert {name for name, _ in declared._of_module(ast.parse(source))} == expected


def calls(attribute: str) -> list[tuple[Path, ast.Call]]:
    """Return all calls of a method or function of that name in the gateway."""
    return [
        (file, node)
        for file in declared.files()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == attribute
    ]


def test_no_text_is_interned() -> None:
    """Python 3.12.0 to 3.12.5 keeps what is interned for ever."""
    assert calls("intern") == []


LABELS = {
    "error.code": "codes of errors, which are words: `test_codes_of_errors_are_words_of_the_code`",
    "reason": "of gaps and rejections: the same codes, and words of `gateway.hub.replay`",
    "result": "what became of an answer: words of `gateway.http.routes.acks`",
    "outcome.result": "what became of a reload: words of `gateway.server.reload`",
    "name": "channels as they are declared",
    "label": "sources as they are declared, or nothing: `gateway.http.routes.hook_refusals`",
    "state.name": "sources as they are declared",
    "self.state.name": "sources as they are declared",
    "value": "words of `gateway.observability.metrics.definitions`",
    "AddressLimitReached.code": "a word",
    "SOURCE_INTERRUPTED": "a word",
}
"""What metrics are labelled with besides words that stand there, and why it is a closed set."""


def test_labels_are_words_of_the_code() -> None:
    """A label that a client can choose is a series for each of its words, for ever."""
    found = {
        ast.unparse(each): f"{file}:{node.lineno}"
        for file, node in calls("labels")
        for each in node.args
        if not isinstance(each, ast.Constant) and not isinstance(each, ast.IfExp)
    }
    assert {label: where for label, where in found.items() if label not in LABELS} == {}
    assert LABELS.keys() - found.keys() == set()


def test_codes_of_errors_are_words_of_the_code() -> None:
    """They are labels, and keys of what is told seldom."""
    for file in declared.files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code":
                words = ast.unparse(node.value)
                is_word = isinstance(node.value, ast.Constant) or words in ("code", "error.code", "each.code")
                assert is_word, f"{file}:{node.lineno}: {words}"
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith(".code"):
                assert ast.unparse(node.value) == "code", f"{file}:{node.lineno}"
            elif isinstance(node, ast.ClassDef):
                for each in node.body:
                    if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "code":
                        assert isinstance(each.value, ast.Constant), f"{file}:{each.lineno}"


def test_reasons_of_ends_are_words_of_the_code() -> None:
    """`disconnects_total` has a child for each, which is kept for ever."""
    words, found = {"reason", "stream.expiry_reason", "why"}, 0
    for name in ("close", "abort"):
        for file, node in calls(name):
            of_stream = ast.unparse(node.func).rpartition(".")[0] in (
                "stream",
                "self",
                "member",
                "streams.pop()",
            )
            if not {"streams", "hub"} & set(file.parts) or not of_stream:
                continue
            found += 1
            text = ast.unparse(node.args[0])
            assert isinstance(node.args[0], ast.Constant) or text in words, f"{file}:{node.lineno}: {text}"
    assert found > 5


def test_a_bounded_mapping_weighs_what_it_holds() -> None:
    """Entries are replaced, removed and pushed out; the count of bytes must not drift."""
    made: BoundedDict[int, str] = BoundedDict(10, 64_000)
    for number in range(100):
        made.put(number % 13, "x" * (number * 37 % 3000))
        if number % 5 == 0:
            made.remove(number % 7)
    assert len(made) <= 10 and 0 < made.total_bytes <= 64_000
    made.put(1, "x" * 64_000)
    assert 1 not in made, "one must not push out many, and what it replaced is not right any more"
    for key in list(made):
        made.remove(key)
    assert made.total_bytes == 0
    made.put(1, "x")
    made.clear()
    assert made.total_bytes == 0
