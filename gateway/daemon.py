"""The composition root: builds the parts, starts them, drains and stops them. Only this file knows all."""

import asyncio
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import structlog

from gateway import __version__
from gateway.auth.authenticator import Authenticator
from gateway.auth.means import Means
from gateway.auth.reconfiguration import Reconfiguration
from gateway.broker.base import Broker
from gateway.broker.memory import MemoryBroker, unix_ms
from gateway.broker.redis import RedisBroker
from gateway.broker.sqlite import SqliteBroker
from gateway.config.catalog import Catalog
from gateway.config.diff import other_origins, other_rules
from gateway.config.model import SQLITE_URL, Config
from gateway.config.sources import EventFrom
from gateway.config.trust import unchecked_hosts
from gateway.errors import StartupError
from gateway.event import Cursor, Draft, EventId, Fence
from gateway.freshness import Freshness, Watched
from gateway.http.admin import HEADERS as ADMIN_HEADERS
from gateway.http.admin import Admin
from gateway.http.app import public_app
from gateway.http.bodies import Bodies
from gateway.http.certificates import Certificates
from gateway.http.cors import CorsPolicy
from gateway.http.guard import Guard
from gateway.http.hooks import Hooks
from gateway.http.query import OWN_NAMES
from gateway.http.receipts import Receipts
from gateway.http.server import Listener
from gateway.http.subscribe import Subscribe
from gateway.http.tickets import TicketOffice
from gateway.http.tls import Loaded
from gateway.hub.canary import Canary
from gateway.hub.hub import Hub
from gateway.hub.notices import Notices
from gateway.hub.replay import Replay
from gateway.limits.limits import Limits
from gateway.loop_lag import LoopLag
from gateway.metrics import Metrics
from gateway.shutdown import Shutdown
from gateway.sources.election import Leases
from gateway.sources.router import Router
from gateway.sources.upstreams import Log, Upstreams
from gateway.status import Status
from gateway.stream.ending import Ending
from gateway.stream.heartbeat import Sweep
from gateway.stream.streams import Streams
from gateway.systemd import Systemd

log = structlog.get_logger("gateway")

DESCRIPTOR_RESERVE = 256
"""Descriptors that streams must leave for sources, webhooks and the admin port."""


FIRST_TRY_SECONDS = 2.0
"""How long a start waits for its sources before clients are let in; a slower one tells a gap."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What a node that is one of several workers is given: the port that they share, and its own socket."""

    port: int
    admin: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """Another configuration, and what of it could have failed."""

    config: Config
    descriptors: int
    means: Means
    tls: Loaded | None


class Daemon:
    """One node. `start` and `stop` are its whole life; `run` is both, with signals between."""

    def __init__(self, config: Config, metrics: Metrics | None = None, shared: Shared | None = None) -> None:
        self.config = config
        self.metrics = metrics or Metrics()
        self._looking: asyncio.Task[None] | None = None
        self.on_listening: Callable[[], None] | None = None
        self._shared = shared
        limits, timeouts = config.limits, config.timeouts

        # Of several workers it is the parent whom the service manager knows.
        self.systemd = Systemd(os.environ if shared is None else {})
        self.shutdown = Shutdown(
            pre_drain=timeouts.pre_drain,
            drain=timeouts.drain,
            request=timeouts.request,
            systemd=self.systemd,
        )

        # The log and what hangs on it.
        self.catalog = Catalog(config.channels)
        self.broker = _broker(config)
        self.hub = Hub(
            self.broker,
            self.catalog,
            self.metrics,
            ring_seconds=timeouts.write,
            ring_bytes=limits.history_bytes,
            clock=unix_ms,
        )
        self.replay = Replay(self.hub, self.broker, self.metrics)
        self.authenticator = Authenticator(
            config.auth, config.channels.values(), self.broker.board, self.metrics, OWN_NAMES
        )
        self.limits = Limits(config.server, limits, self.broker.board, self.metrics)
        self.streams = Streams(
            self.hub,
            self.replay,
            self.metrics,
            timeouts,
            limit=limits.connections,
            rate=limits.connect_rate,
        )
        self.sweep = Sweep(self.streams)
        self.notices = Notices(self.broker, unix_ms)
        self.hub.on_notice, self.hub.on_cut = self.notices.receive, self.notices.cut
        self.canary = Canary(self.notices, self.hub.behind, self.metrics.canary_failures)
        self.loop_lag = LoopLag(self.hub.behind)
        self.ending = Ending(self.notices, self.streams, self.limits, self.authenticator)

        # Upstreams.
        self._published = cache(self.metrics.events_published.labels)
        self.router = Router(self.catalog, event_bytes=limits.event_bytes, events=_events(config))
        leases = Leases(self.broker.lease, self.broker.release)
        self.upstreams = Upstreams(
            self.router, Log(self._append, leases, self.broker.cursor), self.metrics, unix_ms
        )
        self.upstreams.make(config.sources, limits.event_bytes)
        self.freshness = Freshness(self._watched(config), unix_ms)

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
        )
        self.bodies = Bodies(limits.webhook_body, timeouts.request)
        self.receipts = Receipts(self.bodies, idle_seconds=timeouts.connection, write_seconds=timeouts.write)
        hooks = Hooks(self.upstreams.webhooks, self.bodies, self.receipts, self.limits.proxies)
        tls = config.server.tls
        self.certificates = certificates = None if tls is None else Certificates(tls, self.metrics)
        if certificates is not None:
            self.metrics.bind("tls_certificate_expiry_timestamp_seconds", lambda: certificates.expires)
        self.public = Listener(
            public_app(self.subscribe, hooks, self.cors, TicketOffice(self.subscribe, self.authenticator)),
            config.server.listen if shared is None else config.server.listen._replace(port=shared.port),
            is_shared=shared is not None,
            key="server.listen",
            request_seconds=timeouts.request,
            write_seconds=timeouts.write,
            tls=self.certificates,
            room=self._room,
            subscribe=self.subscribe,
            limits=self.limits,
        )
        self.guard = Guard.of(config.server) if shared is None else None
        self.admin = Listener(
            Admin(self.status, self.guard).app(),
            config.server.admin if shared is None else shared.admin,
            key="server.admin",
            request_seconds=timeouts.request,
            headers=ADMIN_HEADERS,
        )

    def drain(self, *, at_once: bool = False) -> None:
        """Begin to end, ``at_once`` without `timeouts.pre_drain`; harmless when repeated."""
        self.shutdown.ask(at_once=at_once)

    def end_now(self) -> None:
        """Cut what is still open, and end; harmless when repeated."""
        self.shutdown.hurry()

    async def run(self) -> int:
        """Serve until a signal or `drain`, drain, and return the exit status. Raises StartupError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT) if self._shared is None else ():
            loop.add_signal_handler(number, self.shutdown.signalled, number)
        await self.start()
        self.systemd.ready(f"serving on {self.config.server.public_url(self.public.port)}")
        self.systemd.watch(lambda: not self.loop_lag.is_stuck)
        if await self.shutdown.carry_out(self.stop, lambda: len(self.streams.open)):
            return 0
        await self.streams.abort("killed")
        return 1

    async def prepare(self, config: Config) -> "Prepared":
        """Make what another configuration needs and may fail over; nothing changes until `commit`.

        Raises StartupError. Cancelling is safe.
        """
        descriptors = _raise_descriptor_limit(config.limits.connections)
        self.upstreams.check(config.sources)
        tls = config.server.tls
        loaded = None
        if self.certificates is not None and tls is not None:
            loaded = await asyncio.to_thread(self.certificates.load, tls)
        means = await self.authenticator.prepare(config.auth, config.channels.values())
        return Prepared(config, descriptors, means, loaded)

    def discard(self, prepared: "Prepared") -> None:
        """Let go of what is not wanted after all."""
        self.authenticator.drop(prepared.means)

    async def commit(self, prepared: "Prepared") -> int:
        """Go over to what was prepared, and return how many streams end by it.

        All that decides about clients and records changes in one turn of the loop. Only sources that must
        connect again take longer. `gateway.config.diff` says what changes; keep the two in step.
        """
        old, config = self.config, prepared.config
        limits, timeouts = config.limits, config.timeouts
        self.config, self._descriptors = config, prepared.descriptors
        # 1. What the log's events become, and who hears them.
        self.catalog.reconfigure(config.channels)
        self.router.reconfigure(event_bytes=limits.event_bytes, events=_events(config))
        self.hub.reconfigure(ring_seconds=timeouts.write, ring_bytes=limits.history_bytes)
        if isinstance(self.broker, MemoryBroker):
            self.broker.limit(limits.history_bytes)
        # 2. Who may come, and how many.
        void = self.authenticator.voids(prepared.means)
        self.authenticator.take(prepared.means)
        self.limits.reconfigure(config.server, limits)
        self.cors.reconfigure(config)
        self.subscribe.channels_per_stream = limits.channels_per_stream
        self.streams.reconfigure(timeouts, limit=limits.connections, rate=limits.connect_rate)
        # 3. The ports.
        self.bodies.reconfigure(limits.webhook_body, timeouts.request)
        self.receipts.reconfigure(timeouts.connection, timeouts.write)
        self.public.reconfigure(timeouts.request, timeouts.write)
        self.admin.reconfigure(timeouts.request)
        if self.guard is not None:
            self.guard.reconfigure(config.server)
        if self.certificates is not None and config.server.tls is not None and prepared.tls is not None:
            self.certificates.reconfigure(config.server.tls, prepared.tls)
        self.shutdown.reconfigure(
            pre_drain=timeouts.pre_drain, drain=timeouts.drain, request=timeouts.request
        )
        # 4. Streams that may not go on; the others do not notice.
        withdrawal = Reconfiguration(
            self.catalog,
            rules=other_rules(old, config),
            void=void,
            refusing=self.cors.refusing if other_origins(old, config) else None,
        )
        self.authenticator.forget(withdrawal)
        ended = self.streams.revoke(withdrawal)
        # 5. Upstreams.
        await self.upstreams.reconfigure(config.sources, limits.event_bytes)
        self.freshness.reconfigure(self._watched(config))
        return ended

    async def start(self) -> None:
        """Start everything, the public port last. Raises StartupError; then call `stop` all the same."""
        self._descriptors = _raise_descriptor_limit(self.config.limits.connections)
        for key in unchecked_hosts(self.config):
            log.warning("tls_host_not_checked", key=key, note="any host of that authority will do")
        # 1. The log, and this node behind it.
        await self.broker.start()
        self.hub.start()
        self.sweep.start()
        self.loop_lag.start()
        self.limits.users.start()
        # 2. The admin port, so that a start that hangs can be looked at.
        await self.admin.start()
        await self.canary.start()
        # 3. Upstreams, and whoever vouches for clients.
        await self.upstreams.start(FIRST_TRY_SECONDS)
        await self.authenticator.start()
        self._looking = asyncio.create_task(self.freshness.run(), name="freshness")
        # 4. Clients.
        self.upstreams.exposed()
        await self.public.start()
        log.info(
            "listening",
            version=__version__,
            public=self.config.server.public_url(self.public.port),
            admin=self.config.server.admin_url(self.admin.port) if self._shared is None else None,
            channels=len(self.catalog.declared),
            sources=len(self.config.sources),
        )
        if self.on_listening is not None:
            self.on_listening()

    async def stop(self) -> None:
        """Drain and end everything; harmless when repeated."""
        # 1. Unready at once; no new connections; streams that were about to open are told to go.
        self.shutdown.enter("streams", streams=len(self.streams.open), seconds=self.config.timeouts.drain)
        self.streams.is_draining = True
        self.public.stop_accepting()
        # 2. Every stream ends at an event boundary, spread over the drain time. Sources still deliver.
        async with self.shutdown.progress(lambda: len(self.streams.open)):
            await self.streams.drain(self.config.timeouts.drain)
        # 3. Requests that are under way are answered, then nothing comes in any more. What is read once has
        # no reader left here: another node may have its lease at once.
        self.shutdown.enter("requests", requests=self.public.requests)
        if isinstance(self.broker, MemoryBroker):
            self.upstreams.pause_webhooks()  # what is taken from now on would die with this process
        self.bodies.drain()
        await asyncio.gather(self.public.stop(), self.upstreams.stop(reading_once=True))
        self.shutdown.enter("sources")
        await self.upstreams.stop()
        # 4. The rest, in the opposite order of the start.
        if self._looking is not None:
            self._looking.cancel()
        self.sweep.stop()
        await self.canary.stop()
        await self.ending.close()
        await self.limits.users.stop()
        await self.authenticator.close()
        await self.replay.close()
        await self.broker.close()
        await self.admin.stop()
        self.loop_lag.stop()
        self.systemd.close()
        log.info("stopped", seconds=round(self.shutdown.took, 1))

    def _room(self) -> int:
        """Return how many more connections leave enough descriptors for all the rest."""
        used = len(self.streams.open) + self.public.requests + DESCRIPTOR_RESERVE // 2
        return self._descriptors - used

    async def _append(
        self, drafts: Sequence[Draft], cursor: Cursor | None, fence: Fence | None
    ) -> list[EventId]:
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
                self._published(match.declared.name).inc(count)
        return ids

    def _watched(self, config: Config) -> Iterator[Watched]:
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


def _events(config: Config) -> dict[str, EventFrom]:
    return {name: source.event for name, source in config.sources.items()}


def _broker(config: Config) -> Broker:
    url = config.broker.url.get_secret_value()
    sqlite = re.fullmatch(SQLITE_URL, url)
    if sqlite is not None:
        return SqliteBroker(Path(sqlite[1]), clock=unix_ms)
    if url == "memory://":
        return MemoryBroker(history_bytes=config.limits.history_bytes)
    broker = config.broker
    return RedisBroker(url, prefix=broker.prefix, limits=broker.pool, timeout=broker.timeout, clock=unix_ms)


def _raise_descriptor_limit(connections: int) -> int:
    """Return how many files this process may open. Raises StartupError if streams alone could use them up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return 2**31
    if connections + DESCRIPTOR_RESERVE > hard:
        raise StartupError(
            f"limits.connections is {connections}, and this process may open {hard} files;"
            f" raise the limit (ulimit -n) to {connections + DESCRIPTOR_RESERVE}, or lower limits.connections"
        )
    return hard
