"""The life of a node: it starts, goes over to other configurations, drains and stops."""

import asyncio
import resource
import signal
from dataclasses import dataclass

import structlog

from gateway import __version__
from gateway.auth.backends import AuthBackends
from gateway.auth.revocation import ReconfigurationRule
from gateway.broker.memory import MemoryBroker
from gateway.config.diff import channels_with_changed_access, have_origins_changed
from gateway.config.model.config import Config
from gateway.core.errors import StartupError, Unavailable
from gateway.http.routes.acks import MAX_ACK_BYTES as MAX_ACK
from gateway.http.tls.context import LoadedCertificate, load_certificate
from gateway.observability.metrics import Metrics
from gateway.server.components import DESCRIPTOR_RESERVE, Components, WorkerSockets, event_options
from gateway.server.reload import ConfigFile, Reloader

log = structlog.get_logger("gateway")

SOURCE_START_SECONDS = 2.0
"""How long a start waits for its sources before clients are let in; a slower one tells a gap."""


@dataclass(frozen=True, slots=True)
class PreparedConfig:
    """Another configuration, and what of it could have failed."""

    config: Config
    max_descriptors: int
    auth_backends: AuthBackends
    certificate: LoadedCertificate | None


class Daemon(Components):
    """`start` and `stop` are its whole life; `run` is both, with signals between."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics | None = None,
        worker_sockets: WorkerSockets | None = None,
        file: ConfigFile | None = None,
    ) -> None:
        """Make the parts. ``file`` is where ``config`` comes from; without it nothing is reloaded."""
        super().__init__(config, metrics, worker_sockets)
        self.reloader = self.status.reloader = None if file is None else Reloader(file, self)

    def on_signal(self, number: signal.Signals) -> None:
        """Begin to end; the second time, end now."""
        self.shutdown.on_signal(number)

    def drain(self, *, skip_pre_drain: bool = False) -> None:
        """Begin to end, ``at_once`` without `timeouts.pre_drain`; harmless when repeated."""
        self.shutdown.request(skip_pre_drain=skip_pre_drain)

    def force_stop(self) -> None:
        """Cut what is still open, and end; harmless when repeated."""
        self.shutdown.force()

    async def run(self) -> int:
        """Serve until a signal or `drain`, drain, and return the exit status. Raises StartupError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT) if self._worker_sockets is None else ():
            loop.add_signal_handler(number, self.on_signal, number)
        if self.reloader is not None:
            self.reloader.handle_sighup()
        if await self._start_unless_stopped():
            if self.reloader is not None:
                self.reloader.start()
            self.systemd.notify_ready(
                f"serving on {self.config.server.public_urls(self.public_listener.ports)}"
            )
            self.systemd.start_watchdog(lambda: not self.loop_lag.is_stuck)
        else:
            self.drain(skip_pre_drain=True)  # no balancer ever sent anybody here
        if await self.shutdown.run(self.stop, lambda: len(self.streams.active)):
            return 0
        await self.streams.abort_all("killed")
        return 1

    async def _start_unless_stopped(self) -> bool:
        """Start; give up when the end is asked for meanwhile, and return False: then no port was opened.

        Raises StartupError.
        """
        starting = asyncio.create_task(self.start(), name="start")
        asked = asyncio.create_task(self.shutdown.requested.wait(), name="asked to end")
        try:
            await asyncio.wait((starting, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            starting.cancel()  # harmless once it is over
            await asyncio.wait((starting,))
        if not starting.cancelled():
            starting.result()
        return not self.status.is_starting

    async def apply_config(self, config: Config) -> int:
        """Serve by another configuration, and return how many streams end by it.

        Raises StartupError, or Unavailable once it is about to end: then nothing has changed.
        """
        prepared = await self.prepare(config)
        if self.shutdown.requested.is_set():
            self.discard(prepared)
            raise Unavailable("the gateway is shutting down")
        return self.commit(prepared)

    async def prepare(self, config: Config) -> PreparedConfig:
        """Make what another configuration needs and may fail over; nothing changes until `commit`.

        Raises StartupError. Cancelling is safe.
        """
        descriptors = _raise_descriptor_limit(config.limits.connections)
        self.source_manager.validate(config.sources)
        tls = config.server.tls
        loaded = None
        if self.certificate_watcher is not None and tls is not None:
            loaded = await asyncio.to_thread(load_certificate, tls)
        means = await self.authenticator.prepare(config.auth, config.channels.values())
        return PreparedConfig(config, descriptors, means, loaded)

    def discard(self, prepared: PreparedConfig) -> None:
        """Let go of what is not wanted after all."""
        self.authenticator.dispose(prepared.auth_backends)

    def commit(self, prepared: PreparedConfig) -> int:
        """Go over to what was prepared, and return how many streams end by it.

        All changes in one turn of the loop. Only sources that must connect again take longer, by
        themselves. `gateway.config.diff` says what changes; keep the two in step.
        """
        old, config = self.config, prepared.config
        limits, timeouts = config.limits, config.timeouts
        self.config, self.max_descriptors = config, prepared.max_descriptors
        # 1. What the log's events become, and who hears them.
        self.catalog.reconfigure(config.channels)
        self.appender.init_counters()
        self.router.reconfigure(event_bytes=limits.event_bytes, events=event_options(config))
        self.hub.reconfigure(ring_seconds=timeouts.write, ring_bytes=limits.history_bytes)
        if isinstance(self.broker, MemoryBroker):
            self.broker.set_history_bytes(limits.history_bytes)
        # 2. Who may come, and how many.
        void = self.authenticator.revoked_by(prepared.auth_backends)
        self.authenticator.activate(prepared.auth_backends)
        self.limits.reconfigure(config.server, limits, timeouts.connection)
        self.cors.reconfigure(config)
        self.subscribe_handler.channels_per_stream = limits.channels_per_stream
        self.streams.reconfigure(timeouts, limit=limits.connections, rate=limits.connect_rate)
        self.ack_tracker.reconfigure(config.ack, config.channels)
        if self.ack_tracker.is_enabled:
            self.nonces.start_sharing()
        # 3. The ports.
        self.body_reader.reconfigure(limits.webhook_body, timeouts.request)
        self.ack_handler.body_reader.reconfigure(MAX_ACK, timeouts.request)
        self.records_handler.reconfigure(timeouts.connection, timeouts.write)
        self.public_listener.reconfigure(timeouts.request, timeouts.write)
        self.admin_listener.reconfigure(timeouts.request)
        if self.guard is not None:
            self.guard.reconfigure(config.server)
        if (
            self.certificate_watcher is not None
            and config.server.tls is not None
            and prepared.certificate is not None
        ):
            self.certificate_watcher.reconfigure(config.server.tls, prepared.certificate)
        self.shutdown.reconfigure(
            pre_drain_seconds=timeouts.pre_drain,
            drain_seconds=timeouts.drain,
            request_seconds=timeouts.request,
        )
        # 4. Streams that may not go on; the others do not notice.
        withdrawal = ReconfigurationRule(
            self.catalog,
            changed_rules=channels_with_changed_access(old, config),
            revoked_grants=void,
            origin_check=self.cors.refusing_rule if have_origins_changed(old, config) else None,
        )
        self.authenticator.apply_revocation(withdrawal)
        ended = self.streams.revoke(withdrawal)
        # 5. Upstreams.
        self.source_manager.reconfigure(config.sources, limits.event_bytes)
        self.staleness_monitor.reconfigure(self.staleness_targets(config))
        return ended

    async def start(self) -> None:
        """Start everything, the public port last. Raises StartupError; then call `stop` all the same.

        Cancelling is safe. If the end is asked for meanwhile, the public port stays closed.
        """
        self.max_descriptors = _raise_descriptor_limit(self.config.limits.connections)
        if self.config.server.development:
            log.warning(
                "development_mode", note="who may ask the admin port reads all channels and sends events"
            )
        # 1. Both addresses: where another process has one, nothing was read, and no lease taken.
        await self.public_listener.bind()
        await self.admin_listener.bind()
        # 2. The log, and this node behind it.
        await self.broker.start()
        self.hub.start()
        self.loop_lag.start()
        self.limits.users.start()
        # 3. The admin port, so that a start that hangs can be looked at.
        await self.admin_listener.start()
        await self.canary.start()
        if self.ack_tracker.is_enabled:
            self.nonces.start_sharing()
            await self.nonces.wait_for_shared_key()
        # 4. Upstreams, and the issuers' keys.
        await self.source_manager.start(SOURCE_START_SECONDS)
        await self.authenticator.start()
        self._staleness_task = self.background.start_task("staleness", self.staleness_monitor.run)
        # 5. Clients.
        if self.shutdown.requested.is_set():
            return
        self.source_manager.mark_serving()
        await self.public_listener.start()
        self.shutdown.set_serving()
        log.info(
            "listening",
            version=__version__,
            public=self.config.server.public_urls(self.public_listener.ports),
            admin=self.config.server.admin_url(self.admin_listener.port)
            if self._worker_sockets is None
            else None,
            channels=len(self.catalog.declared),
            sources=len(self.config.sources),
        )
        if self.on_listening is not None:
            self.on_listening()

    async def stop(self) -> None:
        """Drain and end everything; harmless when repeated."""
        if self.reloader is not None:
            await self.reloader.stop()
        # 1. Unready at once; no new connections; streams that were about to open are told to go.
        self.shutdown.set_phase(
            "streams", streams=len(self.streams.active), seconds=self.config.timeouts.drain
        )
        self.streams.is_draining = True
        self.public_listener.stop_accepting()
        # 2. Every stream ends at an event boundary, spread over the drain time. Sources still deliver.
        async with self.shutdown.log_progress(lambda: len(self.streams.active)):
            await asyncio.gather(
                self.streams.drain(self.config.timeouts.drain), self.public_listener.settle()
            )
        # 3. Requests that are under way are answered, then nothing comes in any more. What is read once has
        # no reader left here: another node may have its lease at once.
        self.shutdown.set_phase("requests", requests=self.public_listener.request_connections)
        if isinstance(self.broker, MemoryBroker):
            self.source_manager.pause_webhooks()  # what is taken from now on would die with this process
        await asyncio.gather(self._finish_requests(), self.source_manager.stop(exclusive_only=True))
        self.shutdown.set_phase("sources")
        await self.source_manager.stop()
        # 4. The rest, in the opposite order of the start.
        if self._staleness_task is not None:
            self._staleness_task.cancel()
        self.ack_tracker.stop()
        self.streams.stop_sweeps()
        await self.canary.stop()
        await self.ack_forwarder.close()
        await self.nonces.close()
        await self.revocation_bus.close()
        await self.limits.users.stop()
        await self.authenticator.close()
        await self.replay.close()
        await self.broker.close()
        self.status_stream.close()
        await self.admin_listener.stop()
        self.loop_lag.stop()
        self.systemd.close()
        log.info("stopped", seconds=round(self.shutdown.elapsed_seconds, 1))

    async def _finish_requests(self) -> None:
        try:
            async with asyncio.timeout(self.config.timeouts.request + 1):  # bodies have it, and an answer
                await self.body_reader.drain()
                await self.public_listener.stop()
        except TimeoutError:
            log.warning("requests_aborted", requests=self.public_listener.request_connections)


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
