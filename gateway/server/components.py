"""What a node is made of, and how the parts hang together. Only this file knows all of them."""

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from gateway.admin.app import ADMIN_HEADERS as ADMIN_HEADERS
from gateway.admin.app import AdminApp, RouteGroup
from gateway.admin.console_page import ConsolePage
from gateway.admin.guard import AdminGuard
from gateway.admin.status import NodeStatus
from gateway.admin.status_stream import StatusStream
from gateway.admin.try_panel import TryPanel
from gateway.auth.authenticator import Authenticator
from gateway.broker.base import Broker
from gateway.broker.memory import MemoryBroker
from gateway.broker.redis.broker import RedisBroker
from gateway.broker.sqlite.broker import SqliteBroker
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import Config
from gateway.config.model.paths import SQLITE_URL
from gateway.config.model.sources import EventMappingConfig
from gateway.config.model.value_types import UnixSocketPath
from gateway.core.clock import unix_ms
from gateway.core.event import EventId
from gateway.http.bodies import BodyReader
from gateway.http.cors import CorsPolicy
from gateway.http.listener import Listener
from gateway.http.query import STREAM_OPTION_NAMES
from gateway.http.request import RequestParser
from gateway.http.routes.acks import MAX_ACK_BYTES as MAX_ACK
from gateway.http.routes.acks import AckHandler
from gateway.http.routes.app import build_public_app
from gateway.http.routes.health import HealthHandler
from gateway.http.routes.hook_refusals import HookRefusals
from gateway.http.routes.hooks import WebhookHandler
from gateway.http.routes.records import RecordsHandler
from gateway.http.routes.subscribe import SubscribeHandler
from gateway.http.routes.tickets import TicketHandler
from gateway.http.sockets import BindableAddress
from gateway.http.tls.certificates import CertificateWatcher
from gateway.hub.canary import Canary
from gateway.hub.control_channel import ControlChannel
from gateway.hub.hub import Hub
from gateway.hub.replay import Replay
from gateway.observability.loop_lag import LoopLagMonitor
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentErrors
from gateway.observability.staleness import StalenessMonitor, StalenessWatch
from gateway.observability.task_supervisor import TaskSupervisor
from gateway.server.shutdown import Shutdown
from gateway.server.systemd import SystemdNotifier
from gateway.sources.context import EventAppender
from gateway.sources.manager import SourceManager
from gateway.sources.router import Router
from gateway.streams.acks.forwarder import AckForwarder
from gateway.streams.acks.nonces import NonceSigner
from gateway.streams.acks.tracker import AckTracker
from gateway.streams.quotas.client_limits import ClientLimits
from gateway.streams.registry import StreamRegistry
from gateway.streams.revocation_bus import RevocationBus

log = structlog.get_logger("gateway")

DESCRIPTOR_RESERVE = 256
"""Descriptors that streams must leave for sources, webhooks and the admin port."""


@dataclass(frozen=True, slots=True)
class WorkerSockets:
    """What one of several workers is given: the addresses that they share, and a socket of its own."""

    addresses: tuple[BindableAddress, ...]
    admin_path: str


class Components:
    """The parts, joined; nothing runs yet. `gateway.server.daemon.Daemon` is their life."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics | None = None,
        worker_sockets: WorkerSockets | None = None,
    ) -> None:
        self.config = config
        self.metrics = metrics or Metrics()
        self.background = background = TaskSupervisor(self.metrics.count_background_failure)
        self._staleness_task: asyncio.Task[None] | None = None
        self.on_listening: Callable[[], None] | None = None
        self.max_descriptors = 0
        """How many files this process may open."""
        self._worker_sockets = worker_sockets
        limits, timeouts = config.limits, config.timeouts
        self.recent_errors = RecentErrors()

        # Of several workers it is the parent whom the service manager knows.
        self.systemd = SystemdNotifier(os.environ if worker_sockets is None else {}, background)
        self.shutdown = Shutdown(
            pre_drain_seconds=timeouts.pre_drain,
            drain_seconds=timeouts.drain,
            request_seconds=timeouts.request,
            systemd=self.systemd,
        )

        # The log and what hangs on it.
        self.catalog = ChannelCatalog(config.channels)
        self.broker = _build_broker(config, background)
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
            config.auth,
            config.channels.values(),
            self.broker.shared_store,
            self.metrics,
            STREAM_OPTION_NAMES,
            background,
        )
        self.limits = ClientLimits(
            config.server,
            limits,
            self.broker.shared_store,
            self.metrics,
            background,
            stream_seconds=timeouts.connection,
        )
        self.nonces = NonceSigner(self.broker.shared_store, background)
        self.ack_tracker = AckTracker(self.nonces, self.metrics, config.ack, config.channels, background)
        self.streams = StreamRegistry(
            self.hub,
            self.replay,
            self.metrics,
            timeouts,
            self.ack_tracker,
            limit=limits.connections,
            rate=limits.connect_rate,
            background=background,
        )
        self.control_channel = ControlChannel(self.broker, unix_ms, background)
        self.hub.on_control_event, self.hub.on_log_gap = self.control_channel.receive, self._on_gap
        self.canary = Canary(
            self.control_channel, self.hub.run_after_writes, self.metrics.canary_failures, background
        )
        self.loop_lag = LoopLagMonitor(self.hub.run_after_writes, background)
        self.revocation_bus = RevocationBus(
            self.control_channel, self.streams, self.limits, self.authenticator, background
        )
        self.ack_forwarder = AckForwarder(
            self.control_channel,
            self.ack_tracker,
            is_shared=self.broker.shared_store.is_shared,
            background=background,
        )
        self.ack_tracker.is_log_reachable = lambda: self.broker.is_up and self.canary.fault is None
        self.nonces.on_change = self.ack_tracker.reset

        # Upstreams.
        self.appender = EventAppender(self.broker, self.catalog, self.metrics)
        self.router = Router(self.catalog, event_bytes=limits.event_bytes, events=event_options(config))
        self.source_manager = SourceManager(
            self.router, self.appender, self.metrics, self.recent_errors, background
        )
        self.source_manager.build(config.sources, limits.event_bytes)
        self.staleness_monitor = StalenessMonitor(self.staleness_targets(config), unix_ms)

        # The two ports.
        self.status = NodeStatus(
            self.metrics,
            self.broker,
            self.streams,
            self.catalog,
            self.source_manager,
            self.staleness_monitor,
            self.revocation_bus,
            self.shutdown,
            self.canary,
            self.loop_lag,
            self.recent_errors,
            config.server.development,
            background,
        )
        self.status.bind_gauges()
        self.cors = CorsPolicy(config, self.catalog)
        parser = RequestParser(self.catalog.resolve, self.limits.forwarded_caller, config.server.base_path)
        self.subscribe_handler = SubscribeHandler(
            parser=parser,
            catalog=self.catalog,
            streams=self.streams,
            cors=self.cors,
            authenticator=self.authenticator,
            limits=self.limits,
            metrics=self.metrics,
            channels_per_stream=limits.channels_per_stream,
            base_path=config.server.base_path,
            recent_errors=self.recent_errors,
        )
        self.body_reader = BodyReader(limits.webhook_body, timeouts.request)
        self.records_handler = RecordsHandler(
            self.body_reader, idle_seconds=timeouts.connection, write_seconds=timeouts.write
        )
        self.ack_handler = AckHandler(
            self.ack_tracker,
            self.nonces,
            self.ack_forwarder,
            self.cors,
            parser,
            self.limits,
            BodyReader(MAX_ACK, timeouts.request, "an answer may be"),
            self.metrics.acks,
        )
        office = TicketHandler(self.subscribe_handler, self.authenticator)
        webhooks, proxies = self.source_manager.webhooks, self.limits.proxies
        self.hook_refusals = HookRefusals(
            webhooks, proxies, self.metrics, self.recent_errors, config.server.base_path
        )
        hooks = WebhookHandler(webhooks, self.body_reader, self.records_handler, proxies, self.hook_refusals)
        tls = config.server.tls
        self.certificate_watcher = certificates = (
            None if tls is None else CertificateWatcher(tls, self.metrics, background=background)
        )
        if certificates is not None:
            self.metrics.bind_gauge(
                "tls_certificate_expiry_timestamp_seconds", lambda: certificates.expires_at
            )
        self.public_listener = Listener(
            build_public_app(
                self.subscribe_handler,
                hooks,
                office,
                self.ack_handler,
                config.server.base_path,
                HealthHandler(self.status) if config.server.health_on_public else None,
            ),
            config.server.listen if worker_sockets is None else worker_sockets.addresses,
            is_shared=worker_sockets is not None,
            config_key="server.listen",
            request_seconds=timeouts.request,
            write_seconds=timeouts.write,
            certificate_watcher=self.certificate_watcher,
            available_connections=self._available_connections,
            subscribe_handler=self.subscribe_handler,
            limits=self.limits,
            on_refused=self.hook_refusals.record_unparsed,
            is_draining=self.shutdown.requested.is_set,
            background=background,
        )
        trial = TryPanel(self.catalog, self.streams, self.router, self.appender.append, timeouts.request)
        more: list[RouteGroup] = [trial] if config.server.development else []
        self.status_stream = StatusStream(
            self.status.status_report, write_seconds=timeouts.write, background=background
        )
        self.guard = (
            AdminGuard.from_config(config.server, self.recent_errors) if worker_sockets is None else None
        )
        self.admin_listener = Listener(
            AdminApp(
                self.status,
                self.guard,
                more if worker_sockets else [ConsolePage(), self.status_stream, *more],
            ).build(),
            [config.server.admin if worker_sockets is None else UnixSocketPath(worker_sockets.admin_path)],
            config_key="server.admin",
            request_seconds=timeouts.request,
            headers=ADMIN_HEADERS,
            on_traffic=self.hub.favor_latency,  # probes are answered in time, also during a broadcast
            is_draining=self.shutdown.requested.is_set,
            background=background,
        )

    def _on_gap(self, after: EventId, until: EventId) -> None:
        """See to what this node did not hear between two ids."""
        self.control_channel.read_missed(after, until)
        self.ack_tracker.reset()

    def _available_connections(self) -> int:
        """Return how many more connections leave enough descriptors for all the rest."""
        used = len(self.streams.active) + self.public_listener.request_connections + DESCRIPTOR_RESERVE // 2
        return self.max_descriptors - used

    def staleness_targets(self, config: Config) -> Iterator[StalenessWatch]:
        """Yield what has a ``stale_after``."""
        for name, source in config.sources.items():
            if source.stale_after is not None and name in self.source_manager.supervisors:
                last = self.source_manager.supervisors[name].last_record_ms
                yield StalenessWatch("source", name, source.stale_after, source.critical, last)
        for name, declared in self.catalog.declared.items():
            spec = declared.config
            if spec.stale_after is not None:
                last = partial(self.hub.last_event_at.get, name, 0)
                yield StalenessWatch("channel", name, spec.stale_after, spec.critical, last)


def event_options(config: Config) -> dict[str, EventMappingConfig]:
    """Return what of each source's records becomes the event."""
    return {name: source.event for name, source in config.sources.items()}


def _build_broker(config: Config, background: TaskSupervisor) -> Broker:
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
        pool_limits=broker.pool,
        timeout=broker.timeout,
        clock=unix_ms,
        background=background,
    )
