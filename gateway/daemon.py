"""The composition root: builds the parts, starts them, drains and stops them. Only this file knows all."""

import asyncio
import re
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from gateway import __version__
from gateway.auth.authenticator import Authenticator
from gateway.broker.base import Broker
from gateway.broker.memory import MemoryBroker, unix_ms
from gateway.broker.redis import RedisBroker
from gateway.broker.sqlite import SqliteBroker
from gateway.config.catalog import Catalog
from gateway.config.model import SQLITE_URL, Config
from gateway.config.sources import Kafka, RedisPubSub, RedisStream, Webhook
from gateway.config.trust import unchecked_hosts
from gateway.console.feed import Feed
from gateway.console.page import Page
from gateway.console.trial import Trial
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
from gateway.hub.hub import Hub
from gateway.hub.notices import Notices
from gateway.hub.replay import Replay
from gateway.limits.limits import Limits
from gateway.metrics import Metrics
from gateway.refusals import Refusals
from gateway.sources.base import Source, SourceState
from gateway.sources.election import Leases
from gateway.sources.kafka import KafkaSource
from gateway.sources.publisher import Publisher
from gateway.sources.redis_pubsub import RedisPubSubSource
from gateway.sources.redis_stream import RedisStreamSource
from gateway.sources.router import Router
from gateway.sources.supervisor import Supervisor
from gateway.sources.webhook import WebhookSource
from gateway.status import Status
from gateway.stream.ending import Ending
from gateway.stream.heartbeat import Sweep
from gateway.stream.streams import Streams

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


class Daemon:
    """One node. `start` and `stop` are its whole life; `run` is both, with signals between."""

    def __init__(self, config: Config, metrics: Metrics | None = None, shared: Shared | None = None) -> None:
        self.config = config
        self.metrics = metrics or Metrics()
        self._ending = asyncio.Event()
        self._ending_now = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self.on_listening: Callable[[], None] | None = None
        self._shared = shared
        limits, timeouts = config.limits, config.timeouts
        self.refusals = Refusals()

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
        self.ending = Ending(self.notices, self.streams, self.limits, self.authenticator)

        # Upstreams.
        events = {name: source.event for name, source in config.sources.items()}
        self.router = Router(self.catalog, event_bytes=limits.event_bytes, events=events)
        self.supervisors: dict[str, Supervisor] = {}
        self.webhooks: dict[str, WebhookSource] = {}
        self.off: dict[str, SourceState] = {}
        for name in config.sources:
            self._add_source(name)

        self.freshness = Freshness(self._watched(), unix_ms)
        self._published = {name: self.metrics.events_published.labels(name) for name in self.catalog.declared}

        # The two ports.
        self.status = Status(
            self.metrics,
            tuple(config.sources),
            self.broker,
            self.streams,
            self.catalog,
            self.supervisors,
            self.off,
            self.freshness,
            self.ending,
            limits.connections,
            self.refusals,
            config.server.development,
        )
        self.status.add_gauges()
        cors = CorsPolicy(config, self.catalog)
        subscribe = Subscribe(
            catalog=self.catalog,
            streams=self.streams,
            cors=cors,
            authenticator=self.authenticator,
            limits=self.limits,
            metrics=self.metrics,
            channels_per_stream=limits.channels_per_stream,
            refusals=self.refusals,
        )
        self.bodies = Bodies(limits.webhook_body, timeouts.request)
        receipts = Receipts(self.bodies, idle_seconds=timeouts.connection, write_seconds=timeouts.write)
        hooks = Hooks(self.webhooks, self.bodies, receipts, self.limits.proxies)
        certificates = Certificates(config.server.tls, self.metrics) if config.server.tls else None
        self.metrics.gauge(
            "tls_certificate_expiry_timestamp_seconds",
            "When the certificate of the public port ends (unix seconds)",
            lambda: {(): certificates.expires} if certificates else {},
            merge="min",
        )
        self.public = Listener(
            public_app(subscribe, hooks, cors, self._tickets(subscribe)),
            config.server.listen if shared is None else config.server.listen._replace(port=shared.port),
            is_shared=shared is not None,
            key="server.listen",
            request_seconds=timeouts.request,
            write_seconds=timeouts.write,
            tls=certificates,
            room=self._room,
            subscribe=subscribe,
            limits=self.limits,
        )
        trial = Trial(self.catalog, self.streams, self.router, self._append, timeouts.request)
        more = [trial] if config.server.development else []
        self.feed = Feed(self.status.report, write_seconds=timeouts.write)
        guard = None if shared else Guard.of(config.server, self.refusals)
        self.admin = Listener(
            Admin(self.status, guard, more if shared else [Page(), self.feed, *more]).app(),
            config.server.admin if shared is None else shared.admin,
            key="server.admin",
            request_seconds=timeouts.request,
            headers=ADMIN_HEADERS,
        )

    def drain(self) -> None:
        """Begin to end; harmless when repeated."""
        self._ending.set()

    def end_now(self) -> None:
        """Cut what is still open, and end; harmless when repeated."""
        self._ending.set()
        self._ending_now.set()

    async def run(self) -> int:
        """Serve until a signal or `drain`, drain, and return the exit status. Raises StartupError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT) if self._shared is None else ():
            loop.add_signal_handler(number, self._signalled, signal.Signals(number).name)
        await self.start()
        await self._ending.wait()
        drain = asyncio.create_task(self.stop(), name="drain")
        now = asyncio.create_task(self._ending_now.wait(), name="second signal")
        await asyncio.wait((drain, now), return_when=asyncio.FIRST_COMPLETED)
        if drain.done():
            now.cancel()
            await drain
            return 0
        log.warning("ended_by_second_signal", streams=len(self.streams.open))
        drain.cancel()
        await self.streams.abort("killed")
        return 1

    async def start(self) -> None:
        """Start everything, the public port last. Raises StartupError; then call `stop` all the same."""
        self._descriptors = _raise_descriptor_limit(self.config.limits.connections)
        for key in unchecked_hosts(self.config):
            log.warning("tls_host_not_checked", key=key, note="any host of that authority will do")
        if self.config.server.development:
            log.warning(
                "development_mode", note="who may ask the admin port reads all channels and sends events"
            )
        # 1. The log, and this node behind it.
        await self.broker.start()
        self.hub.start()
        self.sweep.start()
        self.limits.users.start()
        # 2. The admin port, so that a start that hangs can be looked at.
        await self.admin.start()
        # 3. Upstreams, and whoever vouches for clients.
        for supervisor in self.supervisors.values():
            supervisor.start()
        for state in self.off.values():
            log.info("source_off", source=state.name, reason=state.last_error)
        tries = [asyncio.ensure_future(supervisor.tried()) for supervisor in self.supervisors.values()]
        if tries:
            _, late = await asyncio.wait(tries, timeout=FIRST_TRY_SECONDS)
            for task in late:
                task.cancel()
        await self.authenticator.start()
        self._looking = asyncio.create_task(self.freshness.run(), name="freshness")
        # 4. Clients.
        for supervisor in self.supervisors.values():
            supervisor.exposed()
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
        self._ending.set()
        self.streams.is_draining = True
        self.public.stop_accepting()
        log.info("draining", streams=len(self.streams.open), seconds=self.config.timeouts.drain)
        # 2. Every stream ends at an event boundary, spread over the drain time. Sources still deliver.
        await self.streams.drain(self.config.timeouts.drain)
        # 3. Requests that are under way are answered, then nothing comes in any more.
        if isinstance(self.broker, MemoryBroker):
            for hook in self.webhooks.values():
                hook.pause()  # what is taken from now on would die with this process
        self.bodies.drain()
        await self.public.stop()
        for supervisor in self.supervisors.values():
            await supervisor.stop()
        # 4. The rest, in the opposite order of the start.
        if self._looking is not None:
            self._looking.cancel()
        self.sweep.stop()
        await self.ending.close()
        await self.limits.users.stop()
        await self.authenticator.close()
        await self.replay.close()
        await self.broker.close()
        self.feed.close()
        await self.admin.stop()
        log.info("stopped")

    def _tickets(self, subscribe: Subscribe) -> TicketOffice | None:
        return TicketOffice(subscribe, self.authenticator) if self.authenticator.gives_tickets else None

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
                self._published[match.declared.name].inc(count)
        return ids

    def _add_source(self, name: str) -> None:
        config = self.config.sources[name]
        state = SourceState(name=name, type=config.type, critical=config.critical)
        source: Source
        if isinstance(config, Webhook):
            source = self.webhooks[name] = WebhookSource(config, event_bytes=self.config.limits.event_bytes)
        elif isinstance(config, RedisPubSub | RedisStream) and not config.url.get_secret_value():
            self._turn_off(state, "its url is empty")
            return
        elif isinstance(config, Kafka) and not config.brokers:
            self._turn_off(state, "its brokers are empty")
            return
        elif not self.router.topics(name):
            self._turn_off(state, "no channel reads from it")
            return
        elif isinstance(config, Kafka):
            source = KafkaSource(name, config, self.router.topics(name), self.router.places(name))
        elif isinstance(config, RedisStream):
            source = RedisStreamSource(config, self.router.topics(name), self.router.places(name))
        else:
            source = RedisPubSubSource(
                config.url.get_secret_value(), self.router.topics(name), timeout=config.timeout
            )
        publisher = Publisher(state, self.router, self._append, self.metrics, unix_ms, self.refusals)
        leases = Leases(self.broker.lease, self.broker.release)
        self.supervisors[name] = Supervisor(source, publisher, leases, self.broker.cursor, unix_ms)

    def _turn_off(self, state: SourceState, reason: str) -> None:
        state.status, state.last_error = "off", reason
        self.off[state.name] = state

    def _watched(self) -> Iterator[Watched]:
        """Yield what has a ``stale_after``."""
        for name, source in self.config.sources.items():
            if source.stale_after is not None and name in self.supervisors:
                last = self.supervisors[name].heard
                yield Watched("source", name, source.stale_after, source.critical, last)
        for name, declared in self.catalog.declared.items():
            spec = declared.spec
            if spec.stale_after is not None:
                last = partial(self.hub.heard.get, name, 0)
                yield Watched("channel", name, spec.stale_after, spec.critical, last)

    def _signalled(self, name: str) -> None:
        if self._ending.is_set():
            self.end_now()
        else:
            log.info("signal", signal=name)
            self.drain()


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
