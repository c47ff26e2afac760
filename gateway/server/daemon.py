"""The life of a node: it starts, goes over to other configurations, drains and stops."""

import asyncio
import resource
import signal
from dataclasses import dataclass

import structlog

from gateway import __version__
from gateway.auth.backends import Means
from gateway.auth.revocation import Reconfiguration
from gateway.broker.memory import MemoryBroker
from gateway.config.diff import other_origins, other_rules
from gateway.config.model.config import Config
from gateway.core.errors import StartupError, Unavailable
from gateway.http.routes.acks import MAX_BODY as MAX_ACK
from gateway.http.tls.context import Loaded
from gateway.observability.metrics import Metrics
from gateway.server.components import DESCRIPTOR_RESERVE, Node, Shared, events_of
from gateway.server.reload import ConfigFile, Reload

log = structlog.get_logger("gateway")

FIRST_TRY_SECONDS = 2.0
"""How long a start waits for its sources before clients are let in; a slower one tells a gap."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Another configuration, and what of it could have failed."""

    config: Config
    descriptors: int
    means: Means
    tls: Loaded | None


class Daemon(Node):
    """`start` and `stop` are its whole life; `run` is both, with signals between."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics | None = None,
        shared: Shared | None = None,
        file: ConfigFile | None = None,
    ) -> None:
        """Make the parts. ``file`` is where ``config`` comes from; without it nothing is reloaded."""
        super().__init__(config, metrics, shared)
        self.reloads = self.status.reloads = None if file is None else Reload(file, self)

    def signalled(self, number: signal.Signals) -> None:
        """Begin to end; the second time, end now."""
        self.shutdown.signalled(number)

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
            loop.add_signal_handler(number, self.signalled, number)
        if self.reloads is not None:
            self.reloads.listen()
        if await self._start_unless_asked_to_end():
            if self.reloads is not None:
                self.reloads.start()
            self.systemd.ready(f"serving on {self.config.server.public_urls(self.public.ports)}")
            self.systemd.watch(lambda: not self.loop_lag.is_stuck)
        else:
            self.drain(at_once=True)  # no balancer ever sent anybody here
        if await self.shutdown.carry_out(self.stop, lambda: len(self.streams.open)):
            return 0
        await self.streams.abort("killed")
        return 1

    async def _start_unless_asked_to_end(self) -> bool:
        """Start; give up when the end is asked for meanwhile, and return False: then no port was opened.

        Raises StartupError.
        """
        starting = asyncio.create_task(self.start(), name="start")
        asked = asyncio.create_task(self.shutdown.asked.wait(), name="asked to end")
        try:
            await asyncio.wait((starting, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            starting.cancel()  # harmless once it is over
            await asyncio.wait((starting,))
        if not starting.cancelled():
            starting.result()
        return not self.status.is_starting

    async def go_over(self, config: Config) -> int:
        """Serve by another configuration, and return how many streams end by it.

        Raises StartupError, or Unavailable once it is about to end: then nothing has changed.
        """
        prepared = await self.prepare(config)
        if self.shutdown.asked.is_set():
            self.discard(prepared)
            raise Unavailable("the gateway is shutting down")
        return self.commit(prepared)

    async def prepare(self, config: Config) -> Prepared:
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

    def discard(self, prepared: Prepared) -> None:
        """Let go of what is not wanted after all."""
        self.authenticator.drop(prepared.means)

    def commit(self, prepared: Prepared) -> int:
        """Go over to what was prepared, and return how many streams end by it.

        All changes in one turn of the loop. Only sources that must connect again take longer, by
        themselves. `gateway.config.diff` says what changes; keep the two in step.
        """
        old, config = self.config, prepared.config
        limits, timeouts = config.limits, config.timeouts
        self.config, self.descriptors = config, prepared.descriptors
        # 1. What the log's events become, and who hears them.
        self.catalog.reconfigure(config.channels)
        self.count_channels()
        self.router.reconfigure(event_bytes=limits.event_bytes, events=events_of(config))
        self.hub.reconfigure(ring_seconds=timeouts.write, ring_bytes=limits.history_bytes)
        if isinstance(self.broker, MemoryBroker):
            self.broker.limit(limits.history_bytes)
        # 2. Who may come, and how many.
        void = self.authenticator.voids(prepared.means)
        self.authenticator.take(prepared.means)
        self.limits.reconfigure(config.server, limits, timeouts.connection)
        self.cors.reconfigure(config)
        self.subscribe.channels_per_stream = limits.channels_per_stream
        self.streams.reconfigure(timeouts, limit=limits.connections, rate=limits.connect_rate)
        self.acks.reconfigure(config.ack, config.channels)
        if self.acks.is_on:
            self.nonces.share()
        # 3. The ports.
        self.bodies.reconfigure(limits.webhook_body, timeouts.request)
        self.acknowledge.bodies.reconfigure(MAX_ACK, timeouts.request)
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
        self.upstreams.reconfigure(config.sources, limits.event_bytes)
        self.freshness.reconfigure(self.watched(config))
        return ended

    async def start(self) -> None:
        """Start everything, the public port last. Raises StartupError; then call `stop` all the same.

        Cancelling is safe. If the end is asked for meanwhile, the public port stays closed.
        """
        self.descriptors = _raise_descriptor_limit(self.config.limits.connections)
        if self.config.server.development:
            log.warning(
                "development_mode", note="who may ask the admin port reads all channels and sends events"
            )
        # 1. Both addresses: where another process has one, nothing was read, and no lease taken.
        await self.public.bind()
        await self.admin.bind()
        # 2. The log, and this node behind it.
        await self.broker.start()
        self.hub.start()
        self.sweep.start()
        self.loop_lag.start()
        self.limits.users.start()
        # 3. The admin port, so that a start that hangs can be looked at.
        await self.admin.start()
        await self.canary.start()
        if self.acks.is_on:
            self.nonces.share()
            await self.nonces.settled()
        # 4. Upstreams, and the issuers' keys.
        await self.upstreams.start(FIRST_TRY_SECONDS)
        await self.authenticator.start()
        self._looking = self.background.start("freshness", self.freshness.run)
        # 5. Clients.
        if self.shutdown.asked.is_set():
            return
        self.upstreams.exposed()
        await self.public.start()
        self.shutdown.serve()
        log.info(
            "listening",
            version=__version__,
            public=self.config.server.public_urls(self.public.ports),
            admin=self.config.server.admin_url(self.admin.port) if self._shared is None else None,
            channels=len(self.catalog.declared),
            sources=len(self.config.sources),
        )
        if self.on_listening is not None:
            self.on_listening()

    async def stop(self) -> None:
        """Drain and end everything; harmless when repeated."""
        if self.reloads is not None:
            await self.reloads.stop()
        # 1. Unready at once; no new connections; streams that were about to open are told to go.
        self.shutdown.enter("streams", streams=len(self.streams.open), seconds=self.config.timeouts.drain)
        self.streams.is_draining = True
        self.public.stop_accepting()
        # 2. Every stream ends at an event boundary, spread over the drain time. Sources still deliver.
        async with self.shutdown.progress(lambda: len(self.streams.open)):
            await asyncio.gather(self.streams.drain(self.config.timeouts.drain), self.public.settle())
        # 3. Requests that are under way are answered, then nothing comes in any more. What is read once has
        # no reader left here: another node may have its lease at once.
        self.shutdown.enter("requests", requests=self.public.requests)
        if isinstance(self.broker, MemoryBroker):
            self.upstreams.pause_webhooks()  # what is taken from now on would die with this process
        await asyncio.gather(self._finish_requests(), self.upstreams.stop(reading_once=True))
        self.shutdown.enter("sources")
        await self.upstreams.stop()
        # 4. The rest, in the opposite order of the start.
        if self._looking is not None:
            self._looking.cancel()
        self.sweep.stop()
        self.acks.stop()
        self.streams.short_heartbeats.stop()
        await self.canary.stop()
        await self.elsewhere.close()
        await self.nonces.close()
        await self.ending.close()
        await self.limits.users.stop()
        await self.authenticator.close()
        await self.replay.close()
        await self.broker.close()
        self.feed.close()
        await self.admin.stop()
        self.loop_lag.stop()
        self.systemd.close()
        log.info("stopped", seconds=round(self.shutdown.took, 1))

    async def _finish_requests(self) -> None:
        try:
            async with asyncio.timeout(self.config.timeouts.request + 1):  # bodies have it, and an answer
                await self.bodies.drain()
                await self.public.stop()
        except TimeoutError:
            log.warning("requests_cut", requests=self.public.requests)


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
