"""The components of a node and their wiring. No other file knows all of them."""

import os
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway.admin.port import AdminPort
from gateway.admin.status import NodeStatus
from gateway.admin.try_panel import TryPanel
from gateway.auth.authenticator import Authenticator
from gateway.broker.base import Broker
from gateway.broker.memory import MemoryBroker
from gateway.broker.redis.broker import RedisBroker
from gateway.broker.sqlite.broker import SqliteBroker
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import Config
from gateway.config.model.paths import SQLITE_URL
from gateway.core.clock import unix_ms
from gateway.core.errors import StartupError
from gateway.http.bodies import BodyReader
from gateway.http.cors import CorsPolicy
from gateway.http.listener import Listener
from gateway.http.query import STREAM_OPTION_NAMES
from gateway.http.request import RequestParser
from gateway.http.routes.acks import MAX_ACK_BYTES, AckHandler
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
from gateway.server.reload import ConfigFile, Reloader
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

DESCRIPTOR_RESERVE = 256
"""File descriptors that streams must leave for sources, webhooks and the admin port."""


@dataclass(frozen=True, slots=True)
class WorkerSockets:
    """The addresses that a worker shares with the others, and the socket on which its parent reaches it."""

    addresses: tuple[BindableAddress, ...]
    admin_path: str


class DescriptorLimit:
    """How many files this process may open, and how many of them further connections may use."""

    def __init__(self, streams: StreamRegistry) -> None:
        self._streams = streams
        self.max_descriptors = 0

    @staticmethod
    def raise_for(connections: int) -> int:
        """Return how many files this process may open. Raises StartupError if streams could use them up."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if hard == resource.RLIM_INFINITY:
            return 2**31
        if connections + DESCRIPTOR_RESERVE > hard:
            raise StartupError(
                f"limits.connections is {connections}, and this process may open {hard} files; raise the"
                f" limit (ulimit -n) to {connections + DESCRIPTOR_RESERVE}, or lower limits.connections"
            )
        return hard

    def available_connections(self, request_connections: int) -> int:
        """Return how many more connections leave enough descriptors for everything else."""
        used = len(self._streams.active) + request_connections + DESCRIPTOR_RESERVE // 2
        return self.max_descriptors - used


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Every component of a node, wired by `build`; `gateway.server.daemon.Daemon` starts and stops them."""

    metrics: Metrics
    background: TaskSupervisor
    systemd: SystemdNotifier
    shutdown: Shutdown
    reloader: Reloader | None
    """None where no file is reloaded, or the parent of several workers reloads it."""
    # The log and the streams that follow it.
    catalog: ChannelCatalog
    broker: Broker
    hub: Hub
    replay: Replay
    control_channel: ControlChannel
    canary: Canary
    loop_lag: LoopLagMonitor
    authenticator: Authenticator
    limits: ClientLimits
    nonces: NonceSigner
    ack_tracker: AckTracker
    ack_forwarder: AckForwarder
    streams: StreamRegistry
    revocation_bus: RevocationBus
    # Upstreams.
    appender: EventAppender
    router: Router
    source_manager: SourceManager
    staleness_monitor: StalenessMonitor
    # The two ports.
    status: NodeStatus
    cors: CorsPolicy
    subscribe_handler: SubscribeHandler
    body_reader: BodyReader
    records_handler: RecordsHandler
    ack_handler: AckHandler
    certificate_watcher: CertificateWatcher | None
    descriptors: DescriptorLimit
    public_listener: Listener
    admin_port: AdminPort

    @property
    def admin_listener(self) -> Listener:
        """The listener of the admin port."""
        return self.admin_port.listener

    def reload_steps(self) -> tuple[Callable[[Config], None], ...]:
        """Return what applies a configuration, in order: each step may use the ones before it."""
        return (
            # 1. What events become, and which streams get them.
            self.catalog.apply,
            self.appender.apply,
            self.router.apply,
            self.hub.apply,
            *((self.broker.apply,) if isinstance(self.broker, MemoryBroker) else ()),
            # 2. Who may open streams, and how many.
            self.limits.apply,
            self.cors.apply,
            self.subscribe_handler.apply,
            self.streams.apply,
            self.ack_tracker.apply,
            # 3. The ports.
            self.body_reader.apply,
            self.ack_handler.apply,
            self.records_handler.apply,
            self.public_listener.apply,
            self.admin_port.apply,
            self.shutdown.apply,
            # 4. Upstreams, by the new routes.
            self.source_manager.apply,
            self._apply_staleness,
        )

    def _apply_staleness(self, config: Config) -> None:
        self.staleness_monitor.replace_watches(
            staleness_watches(config, self.catalog, self.source_manager, self.hub)
        )


def build(
    config: Config,
    metrics: Metrics | None = None,
    worker_sockets: WorkerSockets | None = None,
    file: ConfigFile | None = None,
) -> Components:
    """Return the components of a node; nothing runs yet. Raises StartupError.

    ``file`` is where the configuration comes from; without it nothing is reloaded.
    """
    limits, timeouts = config.limits, config.timeouts
    metrics = metrics or Metrics()
    background = TaskSupervisor(metrics.count_background_failure)
    recent_errors = RecentErrors()
    # Of several workers the service manager knows the parent.
    systemd = SystemdNotifier(os.environ if worker_sockets is None else {}, background)
    shutdown = Shutdown(timeouts, systemd)
    reloader = None if file is None else Reloader(file, config, metrics, shutdown, systemd, background)

    # 1. The log and what follows it.
    catalog = ChannelCatalog(config.channels)
    broker = _build_broker(config, background)
    hub = Hub(
        broker,
        catalog,
        metrics,
        ring_seconds=timeouts.write,
        ring_bytes=limits.history_bytes,
        clock=unix_ms,
        background=background,
    )
    replay = Replay(hub, broker, metrics)
    control_channel = ControlChannel(broker, unix_ms, background)
    hub.on_control_event.add(control_channel.receive)
    hub.on_log_gap.add(control_channel.read_missed)
    canary = Canary(control_channel, hub.run_after_writes, metrics.canary_failures, background)
    loop_lag = LoopLagMonitor(hub.run_after_writes, background)

    # 2. Clients and their streams.
    authenticator = Authenticator(
        config.auth, config.channels.values(), broker.shared_store, metrics, STREAM_OPTION_NAMES, background
    )
    client_limits = ClientLimits(
        config.server, limits, broker.shared_store, metrics, background, stream_seconds=timeouts.connection
    )
    nonces = NonceSigner(broker.shared_store, background)
    ack_tracker = AckTracker(
        nonces,
        metrics,
        config.ack,
        config.channels,
        background,
        is_log_reachable=lambda: broker.is_up and canary.fault is None,
    )
    hub.on_log_gap.add(lambda after, until: ack_tracker.reset())
    ack_forwarder = AckForwarder(
        control_channel, ack_tracker, is_shared=broker.shared_store.is_shared, background=background
    )
    streams = StreamRegistry(
        hub,
        replay,
        metrics,
        timeouts,
        ack_tracker,
        limit=limits.connections,
        rate=limits.connect_rate,
        background=background,
    )
    revocation_bus = RevocationBus(control_channel, streams, client_limits, authenticator, background)

    # 3. Upstreams.
    appender = EventAppender(broker, catalog, metrics)
    router = Router(
        catalog,
        event_bytes=limits.event_bytes,
        events={name: source.event for name, source in config.sources.items()},
    )
    source_manager = SourceManager(router, appender, metrics, recent_errors, background)
    source_manager.build(config.sources, limits.event_bytes)
    staleness_monitor = StalenessMonitor(staleness_watches(config, catalog, source_manager, hub), unix_ms)

    # 4. The two ports.
    status = NodeStatus(
        metrics=metrics,
        broker=broker,
        streams=streams,
        catalog=catalog,
        source_manager=source_manager,
        staleness_monitor=staleness_monitor,
        revocation_bus=revocation_bus,
        shutdown=shutdown,
        canary=canary,
        loop_lag=loop_lag,
        recent_errors=recent_errors,
        is_development=config.server.development,
        background=background,
        reloader=reloader,
    )
    status.bind_gauges()
    cors = CorsPolicy(config, catalog)
    parser = RequestParser(catalog.resolve, client_limits.forwarded_caller, config.server.base_path)
    subscribe_handler = SubscribeHandler(
        parser=parser,
        catalog=catalog,
        streams=streams,
        cors=cors,
        authenticator=authenticator,
        limits=client_limits,
        metrics=metrics,
        channels_per_stream=limits.channels_per_stream,
        base_path=config.server.base_path,
        recent_errors=recent_errors,
    )
    body_reader = BodyReader(limits.webhook_body, timeouts.request)
    records_handler = RecordsHandler(
        body_reader, idle_seconds=timeouts.connection, write_seconds=timeouts.write
    )
    ack_handler = AckHandler(
        ack_tracker,
        nonces,
        ack_forwarder,
        cors,
        parser,
        client_limits,
        BodyReader(MAX_ACK_BYTES, timeouts.request, "an answer may be"),
        metrics.acks,
    )
    webhooks, proxies = source_manager.webhooks, client_limits.proxies
    hook_refusals = HookRefusals(webhooks, proxies, metrics, recent_errors, config.server.base_path)
    hooks = WebhookHandler(webhooks, body_reader, records_handler, proxies, hook_refusals)
    certificate_watcher = None
    if config.server.tls is not None:
        certificate_watcher = CertificateWatcher(config.server.tls, metrics, background=background)
    descriptors = DescriptorLimit(streams)
    public_listener = Listener(
        build_public_app(
            subscribe_handler,
            hooks,
            TicketHandler(subscribe_handler, authenticator),
            ack_handler,
            config.server.base_path,
            HealthHandler(status) if config.server.health_on_public else None,
        ),
        config.server.listen if worker_sockets is None else worker_sockets.addresses,
        is_shared=worker_sockets is not None,
        config_key="server.listen",
        request_seconds=timeouts.request,
        write_seconds=timeouts.write,
        certificate_watcher=certificate_watcher,
        available_connections=lambda: descriptors.available_connections(public_listener.request_connections),
        subscribe_handler=subscribe_handler,
        limits=client_limits,
        on_refused=hook_refusals.record_unparsed,
        is_draining=shutdown.requested.is_set,
        background=background,
    )
    admin_port = AdminPort(
        config,
        status,
        recent_errors,
        background,
        is_draining=shutdown.requested.is_set,
        try_panel=TryPanel(catalog, streams, router, appender.append, timeouts.request),
        on_traffic=hub.favor_latency,  # probes are answered in time, also during a broadcast
        worker_socket=None if worker_sockets is None else worker_sockets.admin_path,
    )
    return Components(
        metrics=metrics,
        background=background,
        systemd=systemd,
        shutdown=shutdown,
        reloader=reloader,
        catalog=catalog,
        broker=broker,
        hub=hub,
        replay=replay,
        control_channel=control_channel,
        canary=canary,
        loop_lag=loop_lag,
        authenticator=authenticator,
        limits=client_limits,
        nonces=nonces,
        ack_tracker=ack_tracker,
        ack_forwarder=ack_forwarder,
        streams=streams,
        revocation_bus=revocation_bus,
        appender=appender,
        router=router,
        source_manager=source_manager,
        staleness_monitor=staleness_monitor,
        status=status,
        cors=cors,
        subscribe_handler=subscribe_handler,
        body_reader=body_reader,
        records_handler=records_handler,
        ack_handler=ack_handler,
        certificate_watcher=certificate_watcher,
        descriptors=descriptors,
        public_listener=public_listener,
        admin_port=admin_port,
    )


def staleness_watches(
    config: Config, catalog: ChannelCatalog, source_manager: SourceManager, hub: Hub
) -> Iterator[StalenessWatch]:
    """Yield a watch for each source and channel that has a ``stale_after``."""
    for name, source in config.sources.items():
        if source.stale_after is not None and name in source_manager.supervisors:
            last = source_manager.supervisors[name].last_record_ms
            yield StalenessWatch("source", name, source.stale_after, source.critical, last)
    for name, declared in catalog.declared.items():
        spec = declared.config
        if spec.stale_after is not None:
            last = partial(hub.last_event_at.get, name, 0)
            yield StalenessWatch("channel", name, spec.stale_after, spec.critical, last)


def _build_broker(config: Config, background: TaskSupervisor) -> Broker:
    broker, url = config.broker, config.broker.url.get_secret_value()
    if url == "memory://":
        return MemoryBroker(history_bytes=config.limits.history_bytes, background=background)
    if (sqlite := re.fullmatch(SQLITE_URL, url)) is not None:
        return SqliteBroker(Path(sqlite[1]), clock=unix_ms, background=background)
    return RedisBroker(
        url,
        prefix=broker.prefix,
        pool_limits=broker.pool,
        timeout=broker.timeout,
        clock=unix_ms,
        background=background,
    )
