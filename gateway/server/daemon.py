"""The life of a node: start, reload, drain and stop."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from gateway import __version__
from gateway.auth.backends import AuthBackends
from gateway.auth.revocation import ReconfigurationRule
from gateway.broker.memory import MemoryBroker
from gateway.config.diff import diff_configs
from gateway.config.model.config import Config
from gateway.config.model.section import CHECKS_ACCESS, CHECKS_ORIGINS
from gateway.core.errors import Unavailable
from gateway.http.tls.context import LoadedCertificate, load_certificate
from gateway.observability.metrics import Metrics
from gateway.server.components import WorkerSockets, build
from gateway.server.reload import ConfigFile

log = structlog.get_logger("gateway")

SOURCE_START_SECONDS = 2.0
"""How long a start waits for its sources before clients are let in; a source that is slower reports a gap."""

OnListening = Callable[[int, int], None]
"""Called with the public port and the admin port once both accept connections."""


@dataclass(frozen=True, slots=True)
class PreparedConfig:
    """A configuration, and everything of it that could have failed."""

    config: Config
    max_descriptors: int
    auth_backends: AuthBackends
    certificate: LoadedCertificate | None


class Daemon:
    """One node. `run` is its whole life: `start`, signals, `stop`."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics | None = None,
        worker_sockets: WorkerSockets | None = None,
        file: ConfigFile | None = None,
        on_listening: OnListening = lambda public, admin: None,
    ) -> None:
        """Build the components. ``file`` is where ``config`` comes from; without it nothing is reloaded.

        Raises StartupError.
        """
        self.config = config
        self.components = build(config, metrics, worker_sockets, file)
        self._is_worker = worker_sockets is not None
        self._on_listening = on_listening
        self._stack = AsyncExitStack()  # what `start` started, each with what stops it

    def drain(self, *, skip_pre_drain: bool = False) -> None:
        """Begin the shutdown, with or without `timeouts.pre_drain`; harmless when repeated."""
        self.components.shutdown.request(skip_pre_drain=skip_pre_drain)

    async def run(self) -> int:
        """Serve until a signal or `drain`, drain, and return the exit status. Raises StartupError."""
        parts, loop = self.components, asyncio.get_running_loop()
        for number in () if self._is_worker else (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, parts.shutdown.on_signal, number)
        if parts.reloader is not None:
            parts.reloader.handle_sighup(parts.shutdown.on_signal)
        if await self._start_unless_stopped():
            if parts.reloader is not None:
                parts.reloader.start(self.apply_config)
            urls = self.config.server.public_urls(parts.public_listener.ports)
            parts.systemd.notify_ready(f"serving on {urls}")
            parts.systemd.start_watchdog(lambda: not parts.loop_lag.is_stuck)
        else:
            self.drain(skip_pre_drain=True)  # no load balancer has sent a client here yet
        if await parts.shutdown.run(self.stop, lambda: len(parts.streams.active)):
            return 0
        await parts.streams.abort_all("killed")
        return 1

    async def _start_unless_stopped(self) -> bool:
        """Start; return False if a shutdown was requested meanwhile: then the public port was not opened.

        Raises StartupError.
        """
        starting = asyncio.create_task(self.start(), name="start")
        requested = asyncio.create_task(self.components.shutdown.requested.wait(), name="shutdown requested")
        try:
            await asyncio.wait((starting, requested), return_when=asyncio.FIRST_COMPLETED)
        finally:
            requested.cancel()
            starting.cancel()  # harmless once it is over
            await asyncio.wait((starting,))
        if not starting.cancelled():
            starting.result()
        return not self.components.status.is_starting

    async def start(self) -> None:
        """Start everything, the public port last. Raises StartupError; then call `stop` all the same.

        What stops a component is pushed on the stack before the component starts, so `stop` runs in the
        reverse order. Cancelling is safe. If a shutdown is requested meanwhile, the public port stays closed.
        """
        parts, stack, config = self.components, self._stack, self.config
        parts.descriptors.max_descriptors = parts.descriptors.raise_for(config.limits.connections)
        if config.server.development:
            log.warning(
                "development_mode",
                note="clients of the admin port may read every channel and publish events",
            )
        # 1. Both addresses: if another process has one, no record was read and no lease taken yet.
        stack.callback(parts.systemd.close)
        await parts.public_listener.bind()
        stack.push_async_callback(parts.admin_port.stop)
        await parts.admin_listener.bind()
        # 2. The log, and the hub that follows it.
        stack.push_async_callback(parts.broker.close)
        await parts.broker.start()
        stack.push_async_callback(parts.replay.close)
        parts.hub.start()
        stack.callback(parts.loop_lag.stop)
        parts.loop_lag.start()
        stack.push_async_callback(parts.limits.users.stop)
        parts.limits.users.start()
        stack.push_async_callback(parts.revocation_bus.close)
        stack.push_async_callback(parts.ack_forwarder.close)
        stack.callback(parts.streams.stop_sweeps)
        stack.callback(parts.ack_tracker.stop)
        # 3. The admin port, so that a start that hangs can be diagnosed.
        await parts.admin_listener.start()
        stack.push_async_callback(parts.canary.stop)
        await parts.canary.start()
        stack.push_async_callback(parts.nonces.close)
        if parts.ack_tracker.is_enabled:
            parts.nonces.start_sharing()
            await parts.nonces.wait_for_shared_key()
        # 4. Upstreams, and the issuers' keys.
        stack.push_async_callback(parts.source_manager.stop)
        await parts.source_manager.start(SOURCE_START_SECONDS)
        stack.push_async_callback(parts.authenticator.close)
        await parts.authenticator.start()
        stack.callback(parts.background.start_task("staleness", parts.staleness_monitor.run).cancel)
        # 5. Clients.
        if parts.shutdown.requested.is_set():
            return
        parts.source_manager.mark_serving()
        await parts.public_listener.start()
        parts.shutdown.set_serving()
        log.info(
            "listening",
            version=__version__,
            public=config.server.public_urls(parts.public_listener.ports),
            admin=None if self._is_worker else config.server.admin_url(parts.admin_listener.port),
            channels=len(config.channels),
            sources=len(config.sources),
        )
        self._on_listening(parts.public_listener.port, parts.admin_listener.port)

    async def stop(self) -> None:
        """Drain, and stop everything that was started; harmless when repeated."""
        parts, timeouts = self.components, self.config.timeouts
        if parts.reloader is not None:
            await parts.reloader.stop()
        # 1. Unready, no new connections; streams that are about to open are closed with a `stream.close`.
        parts.shutdown.set_phase("streams", streams=len(parts.streams.active), seconds=timeouts.drain)
        parts.streams.is_draining = True
        parts.public_listener.stop_accepting()
        # 2. Every stream ends at an event boundary, spread over the drain time. Sources still deliver.
        async with parts.shutdown.log_progress(lambda: len(parts.streams.active)):
            await asyncio.gather(parts.streams.drain(timeouts.drain), parts.public_listener.settle())
        # 3. Requests in progress are answered. Exclusive sources stop at the same time: this node has no
        # streams left, and another node can take over their leases at once.
        parts.shutdown.set_phase("requests", requests=parts.public_listener.request_connections)
        if isinstance(parts.broker, MemoryBroker):
            parts.source_manager.pause_webhooks()  # an event accepted from now on would end with this process
        await asyncio.gather(self._finish_requests(), parts.source_manager.stop(exclusive_only=True))
        # 4. Everything that `start` started, in reverse order: the sources first, the admin port last.
        parts.shutdown.set_phase("sources")
        await self._stack.aclose()
        log.info("stopped", seconds=round(parts.shutdown.elapsed_seconds, 1))

    async def _finish_requests(self) -> None:
        parts = self.components
        try:
            async with asyncio.timeout(
                self.config.timeouts.request + 1
            ):  # the body's deadline, and a response
                await parts.body_reader.drain()
                await parts.public_listener.stop()
        except TimeoutError:
            log.warning("requests_aborted", requests=parts.public_listener.request_connections)

    async def apply_config(self, config: Config) -> int:
        """Serve by another configuration, and return how many streams it ends.

        Raises StartupError, or Unavailable once a shutdown was requested: then nothing has changed.
        """
        prepared = await self.prepare(config)
        if self.components.shutdown.requested.is_set():
            self.discard(prepared)
            raise Unavailable("the gateway is shutting down")
        return self.commit(prepared)

    async def prepare(self, config: Config) -> PreparedConfig:
        """Do everything that may fail for another configuration; nothing changes until `commit`.

        Raises StartupError. Cancelling is safe.
        """
        parts = self.components
        descriptors = parts.descriptors.raise_for(config.limits.connections)
        parts.source_manager.validate(config.sources)
        tls, certificate = config.server.tls, None
        if parts.certificate_watcher is not None and tls is not None:
            certificate = await asyncio.to_thread(load_certificate, tls)
        backends = await parts.authenticator.prepare(config.auth, config.channels.values())
        return PreparedConfig(config, descriptors, backends, certificate)

    def discard(self, prepared: PreparedConfig) -> None:
        """Release what was prepared and will not be committed."""
        self.components.authenticator.dispose(prepared.auth_backends)

    def commit(self, prepared: PreparedConfig) -> int:
        """Apply a prepared configuration, and return how many streams it ends.

        It takes one turn of the event loop. Only sources that must reconnect take longer, on their own.
        """
        parts, config = self.components, prepared.config
        changes, self.config = diff_configs(self.config, config), config
        # 1. What was prepared.
        parts.descriptors.max_descriptors = prepared.max_descriptors
        revoked_grants = parts.authenticator.revoked_by(prepared.auth_backends)
        parts.authenticator.activate(prepared.auth_backends)
        if parts.certificate_watcher is not None and config.server.tls and prepared.certificate:
            parts.certificate_watcher.activate(config.server.tls, prepared.certificate)
        # 2. The settings of each component.
        for apply in parts.reload_steps():
            apply(config)
        # 3. Streams that may not continue; the others do not notice.
        rule = ReconfigurationRule(
            parts.catalog,
            changed_rules=[str(each.path[1]) for each in changes if each.effect is CHECKS_ACCESS],
            revoked_grants=revoked_grants,
            origin_check=parts.cors.refusing_rule
            if any(each.effect is CHECKS_ORIGINS for each in changes)
            else None,
        )
        parts.authenticator.apply_revocation(rule)
        return parts.streams.revoke(rule)
