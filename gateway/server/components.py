"""What a node is made of, and how the parts hang together. Only this file knows all of them."""

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import structlog

from gateway.admin.app import HEADERS as ADMIN_HEADERS
from gateway.admin.app import Admin, More
from gateway.admin.guard import Guard
from gateway.admin.page import Page
from gateway.admin.status import Status
from gateway.admin.status_stream import Feed
from gateway.admin.try_panel import Trial
from gateway.auth.authenticator import Authenticator
from gateway.broker.base import Broker
from gateway.broker.memory import MemoryBroker
from gateway.broker.redis.broker import RedisBroker
from gateway.broker.sqlite.broker import SqliteBroker
from gateway.config.catalog import Catalog
from gateway.config.model.config import Config
from gateway.config.model.paths import SQLITE_URL
from gateway.config.model.sources import EventFrom
from gateway.config.model.units import UnixPath
from gateway.core.clock import unix_ms
from gateway.core.event import Appended, Cursor, Draft, EventId, Fence
from gateway.http.bodies import Bodies
from gateway.http.cors import CorsPolicy
from gateway.http.listener import Listener
from gateway.http.query import OWN_NAMES
from gateway.http.routes.acks import MAX_BODY as MAX_ACK
from gateway.http.routes.acks import Acknowledge
from gateway.http.routes.app import public_app
from gateway.http.routes.health import Health
from gateway.http.routes.hook_refusals import HookRefusals
from gateway.http.routes.hooks import Hooks
from gateway.http.routes.receipts import Receipts
from gateway.http.routes.subscribe import Subscribe
from gateway.http.routes.tickets import TicketOffice
from gateway.http.sockets import Bindable
from gateway.http.tls.certificates import Certificates
from gateway.hub.canary import Canary
from gateway.hub.control_channel import Notices
from gateway.hub.hub import Hub
from gateway.hub.replay import Replay
from gateway.observability.background import Background
from gateway.observability.loop_lag import LoopLag
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import Refusals
from gateway.observability.staleness import Freshness, Watched
from gateway.server.shutdown import Shutdown
from gateway.server.systemd import Systemd
from gateway.sources.election import Leases
from gateway.sources.manager import Log, Upstreams
from gateway.sources.router import Router
from gateway.streams.acks.forwarder import Elsewhere
from gateway.streams.acks.nonces import Nonces
from gateway.streams.acks.tracker import Acks
from gateway.streams.heartbeat import Sweep
from gateway.streams.quotas.limits import Limits
from gateway.streams.registry import Streams
from gateway.streams.revocation_bus import Ending

log = structlog.get_logger("gateway")

DESCRIPTOR_RESERVE = 256
"""Descriptors that streams must leave for sources, webhooks and the admin port."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What one of several workers is given: the addresses that they share, and a socket of its own."""

    addresses: tuple[Bindable, ...]
    admin: str


class Node:
    """The parts, joined; nothing runs yet. `gateway.server.daemon.Daemon` is their life."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics or Metrics()
        self.background = background = Background(self.metrics.background_failed)
        self._looking: asyncio.Task[None] | None = None
        self.on_listening: Callable[[], None] | None = None
        self.descriptors = 0
        """How many files this process may open."""
        self._shared = shared
        limits, timeouts = config.limits, config.timeouts
        self.refusals = Refusals()

        # Of several workers it is the parent whom the service manager knows.
        self.systemd = Systemd(os.environ if shared is None else {}, background)
        self.shutdown = Shutdown(
            pre_drain=timeouts.pre_drain,
            drain=timeouts.drain,
            request=timeouts.request,
            systemd=self.systemd,
        )

        # The log and what hangs on it.
        self.catalog = Catalog(config.channels)
        self.broker = _broker(config, background)
        self.hub = Hub(
            self.broker,
            self.catalog,
            self.metrics,
            ring_seconds=timeouts.write,
            ring_bytes=limits.history_bytes,
            clock=unix_ms,
            background=background,
        )
        self.replay = Replay(self.hub, self.broker, self.metrics)
        self.authenticator = Authenticator(
            config.auth, config.channels.values(), self.broker.board, self.metrics, OWN_NAMES, background
        )
        self.limits = Limits(
            config.server,
            limits,
            self.broker.board,
            self.metrics,
            background,
            stream_seconds=timeouts.connection,
        )
        self.nonces = Nonces(self.broker.board, background)
        self.acks = Acks(self.nonces, self.metrics, config.ack, config.channels, background)
        self.streams = Streams(
            self.hub,
            self.replay,
            self.metrics,
            timeouts,
            self.acks,
            limit=limits.connections,
            rate=limits.connect_rate,
            background=background,
        )
        self.sweep = Sweep(self.streams, background)
        self.notices = Notices(self.broker, unix_ms, background)
        self.hub.on_notice, self.hub.on_cut = self.notices.receive, self._cut
        self.canary = Canary(self.notices, self.hub.behind, self.metrics.canary_failures, background)
        self.loop_lag = LoopLag(self.hub.behind, background)
        self.ending = Ending(self.notices, self.streams, self.limits, self.authenticator, background)
        self.elsewhere = Elsewhere(
            self.notices, self.acks, is_shared=self.broker.board.is_shared, background=background
        )
        self.acks.is_reached = lambda: self.broker.is_up and self.canary.fault is None
        self.nonces.on_change = self.acks.forgive

        # Upstreams.
        self.published = cache(self.metrics.events_published.labels)
        self.count_channels()
        self.router = Router(self.catalog, event_bytes=limits.event_bytes, events=events_of(config))
        leases = Leases(self.broker.lease, self.broker.release)
        log = Log(self._append, leases, self.broker.cursor, self.broker.parts)
        self.upstreams = Upstreams(self.router, log, self.metrics, unix_ms, self.refusals, background)
        self.upstreams.make(config.sources, limits.event_bytes)
        self.freshness = Freshness(self.watched(config), unix_ms)

        # The two ports.
        self.status = Status(
            self.metrics,
            self.broker,
            self.streams,
            self.catalog,
            self.upstreams,
            self.freshness,
            self.ending,
            self.shutdown,
            self.canary,
            self.loop_lag,
            self.refusals,
            config.server.development,
            background,
        )
        self.status.bind_gauges()
        self.cors = CorsPolicy(config, self.catalog)
        self.subscribe = Subscribe(
            catalog=self.catalog,
            streams=self.streams,
            cors=self.cors,
            authenticator=self.authenticator,
            limits=self.limits,
            metrics=self.metrics,
            channels_per_stream=limits.channels_per_stream,
            base_path=config.server.base_path,
            refusals=self.refusals,
        )
        self.bodies = Bodies(limits.webhook_body, timeouts.request)
        self.receipts = Receipts(self.bodies, idle_seconds=timeouts.connection, write_seconds=timeouts.write)
        self.acknowledge = Acknowledge(
            self.acks,
            self.nonces,
            self.elsewhere,
            self.cors,
            self.limits,
            Bodies(MAX_ACK, timeouts.request, "an answer may be"),
            self.metrics.acks,
        )
        office = TicketOffice(self.subscribe, self.authenticator)
        webhooks, proxies = self.upstreams.webhooks, self.limits.proxies
        self.hook_refusals = HookRefusals(
            webhooks, proxies, self.metrics, self.refusals, config.server.base_path
        )
        hooks = Hooks(webhooks, self.bodies, self.receipts, proxies, self.hook_refusals)
        tls = config.server.tls
        self.certificates = certificates = (
            None if tls is None else Certificates(tls, self.metrics, background=background)
        )
        if certificates is not None:
            self.metrics.bind("tls_certificate_expiry_timestamp_seconds", lambda: certificates.expires)
        self.public = Listener(
            public_app(
                self.subscribe,
                hooks,
                self.cors,
                office,
                self.acknowledge,
                config.server.base_path,
                Health(self.status) if config.server.health_on_public else None,
            ),
            config.server.listen if shared is None else shared.addresses,
            is_shared=shared is not None,
            key="server.listen",
            request_seconds=timeouts.request,
            write_seconds=timeouts.write,
            tls=self.certificates,
            room=self._room,
            subscribe=self.subscribe,
            limits=self.limits,
            on_refused=self.hook_refusals.note_unread,
            is_ending=self.shutdown.asked.is_set,
            background=background,
        )
        trial = Trial(self.catalog, self.streams, self.router, self._append, timeouts.request)
        more: list[More] = [trial] if config.server.development else []
        self.feed = Feed(self.status.report, write_seconds=timeouts.write, background=background)
        self.guard = Guard.of(config.server, self.refusals) if shared is None else None
        self.admin = Listener(
            Admin(self.status, self.guard, more if shared else [Page(), self.feed, *more]).app(),
            [config.server.admin if shared is None else UnixPath(shared.admin)],
            key="server.admin",
            request_seconds=timeouts.request,
            headers=ADMIN_HEADERS,
            on_traffic=self.hub.give_way,  # probes are answered in time, also during a broadcast
            is_ending=self.shutdown.asked.is_set,
            background=background,
        )

    def _cut(self, after: EventId, until: EventId) -> None:
        """See to what this node did not hear between two ids."""
        self.notices.cut(after, until)
        self.acks.forgive()

    def _room(self) -> int:
        """Return how many more connections leave enough descriptors for all the rest."""
        used = len(self.streams.open) + self.public.requests + DESCRIPTOR_RESERVE // 2
        return self.descriptors - used

    async def _append(self, drafts: Sequence[Draft], cursor: Cursor | None, fence: Fence | None) -> Appended:
        before = self.broker.head
        with self.metrics.broker_append.time():
            ids = await self.broker.append(drafts, cursor, fence)
        counts: dict[str, int] = {}
        for draft, id in zip(drafts, ids, strict=True):
            if id > before:  # an older id is that of a deduplicated draft's first one
                counts[draft.channel] = counts.get(draft.channel, 0) + 1
        for name, count in counts.items():
            match = self.catalog.resolve(name)
            if match is not None:
                self.published(match.declared.name).inc(count)
        return ids

    def count_channels(self) -> None:
        """Let the counter of each channel be there from the start."""
        for name in self.catalog.declared:
            self.published(name)

    def watched(self, config: Config) -> Iterator[Watched]:
        """Yield what has a ``stale_after``."""
        for name, source in config.sources.items():
            if source.stale_after is not None and name in self.upstreams.supervisors:
                last = self.upstreams.supervisors[name].heard
                yield Watched("source", name, source.stale_after, source.critical, last)
        for name, declared in self.catalog.declared.items():
            spec = declared.spec
            if spec.stale_after is not None:
                last = partial(self.hub.heard.get, name, 0)
                yield Watched("channel", name, spec.stale_after, spec.critical, last)


def events_of(config: Config) -> dict[str, EventFrom]:
    """Return what of each source's records becomes the event."""
    return {name: source.event for name, source in config.sources.items()}


def _broker(config: Config, background: Background) -> Broker:
    url = config.broker.url.get_secret_value()
    sqlite = re.fullmatch(SQLITE_URL, url)
    if sqlite is not None:
        return SqliteBroker(Path(sqlite[1]), clock=unix_ms, background=background)
    if url == "memory://":
        return MemoryBroker(history_bytes=config.limits.history_bytes, background=background)
    broker = config.broker
    return RedisBroker(
        url,
        prefix=broker.prefix,
        limits=broker.pool,
        timeout=broker.timeout,
        clock=unix_ms,
        background=background,
    )
