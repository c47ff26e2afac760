"""The parent of several workers: starts and supervises them, forwards signals, serves the admin port.

It reads no events and holds no stream. A worker that dies is restarted after a backoff; its clients
reconnect, to the other workers first. A worker that does not answer for `HANG_SECONDS` is killed. When the
parent itself is killed, each worker notices the end of its pipe and drains.
"""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from gateway import __version__
from gateway.admin.port import AdminPort
from gateway.admin.status_report import (
    StatusReport,
    StreamsStatus,
    TotalsStatus,
    WorkerStatus,
)
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import Config
from gateway.core.backoff import Backoff
from gateway.core.clock import unix_ms
from gateway.core.errors import StartupError, Unavailable
from gateway.http.sockets import ReservedAddresses, reserve_addresses
from gateway.observability.metrics import MetricFamily, Metrics
from gateway.observability.recent_errors import RecentErrors
from gateway.observability.task_supervisor import TaskSupervisor
from gateway.server.daemon import OnListening
from gateway.server.reload import ConfigFile, Reloader
from gateway.server.shutdown import Shutdown
from gateway.server.systemd import SystemdNotifier
from gateway.server.workers.merge import MetricTotals
from gateway.server.workers.relay import TryPanelRelay
from gateway.server.workers.worker_handle import WorkerHandle

log = structlog.get_logger("gateway.workers")

LIVENESS_CHECK_SECONDS = 5.0
"""How often the liveness of each worker is checked."""

PROBE_REFRESH_SECONDS = 1.0
"""How often the health of each worker is fetched, so that probes find a recent answer."""

HANG_SECONDS = 30.0
"""How long a worker may not answer before it is killed and restarted."""

START_SECONDS = 60.0
"""How long a worker may take to listen."""

HEALTHY_SECONDS = 30.0
"""How long a worker must have lived for its restart backoff to begin anew."""

KILL_GRACE_SECONDS = 5.0
"""How long a worker's shutdown may be overdue (`gateway.server.shutdown`) before it is killed."""


class Parent:
    """`run` is its whole life; `AdminPort` serves what it says of its workers."""

    def __init__(
        self,
        config: Config,
        workers: int,
        metrics: Metrics,
        file: ConfigFile | None = None,
        on_listening: OnListening = lambda public, admin: None,
    ) -> None:
        """Prepare ``workers`` workers. ``file`` is where ``config`` comes from, for reloads."""
        self.config = config
        self.metrics = metrics
        self.background = background = TaskSupervisor(metrics.count_background_failure)
        self._reserved_addresses = ReservedAddresses((), ())
        self._on_listening = on_listening
        self._recent_errors = RecentErrors()
        self.systemd = SystemdNotifier(os.environ, background)
        self.shutdown = Shutdown(config.timeouts, self.systemd)
        self.reloader = None
        if file is not None:
            self.reloader = Reloader(file, config, metrics, self.shutdown, self.systemd, background)
        self._admin_port = AdminPort(
            config,
            self,
            self._recent_errors,
            background,
            is_draining=self.shutdown.requested.is_set,
            try_panel=TryPanelRelay(self._listening_socket_paths, idle_seconds=2 * config.timeouts.heartbeat),
        )
        self._worker_count = workers
        self.catalog = ChannelCatalog(config.channels)
        self._workers: dict[int, WorkerHandle] = {}
        self._restarts = dict.fromkeys(range(workers), 0)
        self._metric_totals = MetricTotals()
        self._started_at = time.monotonic()
        self._exit_status = 0
        # Values while no worker answers: a missing gauge would look like a missing scrape.
        for name in ("ready", "workers", "active_connections"):
            metrics.bind_gauge(name, lambda: 0)
        metrics.bind_gauge("draining", self.shutdown.requested.is_set)

    @property
    def port(self) -> int:
        """The port of the first address that has one, also where the configuration says 0."""
        return next(filter(None, self._reserved_addresses.ports), 0)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, and return the exit status. Raises StartupError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.on_signal, number)
        if self.reloader is not None:
            self.reloader.handle_sighup(self.on_signal)
        with (
            tempfile.TemporaryDirectory(prefix="sse-gateway-") as folder,
            reserve_addresses(self.config.server.listen, "server.listen") as self._reserved_addresses,
        ):
            checks = [
                self.background.start_task("worker_liveness", self._check_liveness),
                self.background.start_task("worker_probes", self._refresh_probes),
            ]
            try:
                await self._admin_port.listener.start()
                # One before the others: an error in it is an error in all, and should be logged once.
                are_listening = await self._start_worker(0, Path(folder)) and all(
                    await asyncio.gather(
                        *(self._start_worker(n, Path(folder)) for n in range(1, self._worker_count))
                    )
                )
                if are_listening and not self.shutdown.requested.is_set():
                    await self._serve(Path(folder))
                elif not self.shutdown.requested.is_set():
                    self._exit_status = 1  # a worker could not start, and has logged why
            finally:
                for task in checks:
                    task.cancel()
                if self.reloader is not None:
                    await self.reloader.stop()
                await self._stop_workers()
                await self._admin_port.stop()
                self.systemd.close()
        log.info("stopped")
        return self._exit_status

    async def _serve(self, folder: Path) -> None:
        log.info(
            "workers_listening",
            version=__version__,
            workers=self._worker_count,
            public=self.config.server.public_urls(self._reserved_addresses.ports),
            admin=self.config.server.admin_url(self._admin_port.listener.port),
        )
        self._on_listening(self.port, self._admin_port.listener.port)
        if self.reloader is not None:
            self.reloader.start(self.apply_config)
        urls = self.config.server.public_urls(self._reserved_addresses.ports)
        self.systemd.notify_ready(f"{self._worker_count} workers serve on {urls}")
        self.systemd.start_watchdog(self._is_any_worker_alive)
        tasks = [
            *(
                self.background.start_task(
                    "worker_supervisor", partial(self._supervise_worker, number, folder)
                )
                for number in self._workers
            ),
        ]
        try:
            await self.shutdown.requested.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def apply_config(self, config: Config) -> int:
        """Let all workers serve by another configuration, and return how many streams it ends.

        Each prepares it first; they commit it only when all have. A worker that then fails, or that is just
        starting, is restarted. Raises StartupError: then nothing has changed.
        """
        serialized = config.serialize()
        listening = [worker for worker in self._workers.values() if worker.is_listening]
        replies = await asyncio.gather(*(worker.reload("prepare", serialized) for worker in listening))
        ready = [worker for worker, reply in zip(listening, replies, strict=True) if reply is not None]
        error = next((reply.error for reply in replies if reply and reply.error), None)
        if self.shutdown.requested.is_set():
            error = "the gateway is shutting down"
        if error is not None or not ready:
            await asyncio.gather(*(worker.reload("discard") for worker in ready))
            raise StartupError(error or "no worker is running")
        self.config = config
        for apply in (self.catalog.apply, self.shutdown.apply, self._admin_port.apply):
            apply(config)
        replies = await asyncio.gather(*(worker.reload("commit") for worker in ready))
        for worker, reply in zip(ready, replies, strict=True):
            if reply is not None and reply.error is not None:
                log.error("worker_not_reloaded", worker=worker.number, error=reply.error)
            elif reply is not None:
                worker.config = config
        for worker in self._workers.values():
            if worker.config is not config:
                worker.kill()
        return sum(reply.ended for reply in replies if reply is not None)

    async def _start_worker(self, number: int, folder: Path) -> bool:
        """Start a worker and wait until it listens; return False if it failed, or during a shutdown."""
        if self.shutdown.requested.is_set():
            return False
        worker = self._workers[number] = WorkerHandle(number, self.config, self._reserved_addresses, folder)
        await worker.start()
        if worker.config is not self.config:
            worker.kill()  # a reload came before the process existed; it is restarted
        if self.shutdown.requested.is_set() and not worker.is_stopping:
            worker.stop(skip_pre_drain=True)  # a signal came before the process existed
        return await worker.wait_until_listening()

    async def _supervise_worker(self, number: int, folder: Path) -> None:
        """Restart a worker whenever it ends."""
        backoff = Backoff(0.2, 30)
        while True:
            worker = self._workers[number]
            status = await worker.wait_until_exit()
            if self.shutdown.requested.is_set():
                return
            lived = time.monotonic() - worker.started_at
            log.error(
                "worker_died",
                worker=number,
                pid=worker.pid,
                status=_format_exit_status(status),
                seconds=round(lived, 1),
            )
            self._metric_totals.retire(worker.last_families)
            worker.last_families = []
            if lived >= HEALTHY_SECONDS:
                backoff.reset()
            await asyncio.sleep(backoff.next_delay())
            self._restarts[number] += 1
            self.metrics.worker_restarts.inc()
            try:
                await self._start_worker(number, folder)
            except Exception:  # no more processes, or no memory, at the moment
                log.exception("worker_not_started", worker=number)

    async def _refresh_probes(self) -> None:
        """Fetch the health of each worker, so that probes find a recent answer."""
        while True:
            await asyncio.sleep(PROBE_REFRESH_SECONDS)
            workers = list(self._workers.values())
            probes = (worker.probe(path) for worker in workers for path in ("/healthz", "/readyz"))
            await asyncio.gather(*probes, return_exceptions=True)

    async def _check_liveness(self) -> None:
        """Kill workers that hang, or that do not start in time."""
        while True:
            await asyncio.sleep(LIVENESS_CHECK_SECONDS)
            workers = list(self._workers.values())
            requests = (worker.request_json("/healthz") for worker in workers)
            answers = await asyncio.gather(*requests, return_exceptions=True)
            for worker, answer in zip(workers, answers, strict=True):
                if isinstance(answer, dict) and not answer["alive"]:
                    log.error("worker_stuck", worker=worker.number, pid=worker.pid, **answer)
                    worker.kill()
                silent = time.monotonic() - worker.last_answer_at
                if silent > (HANG_SECONDS if worker.is_listening else START_SECONDS):
                    log.error(
                        "worker_unresponsive", worker=worker.number, pid=worker.pid, seconds=round(silent, 1)
                    )
                    worker.kill()

    async def _stop_workers(self) -> None:
        """Let the workers drain; kill those that are overdue."""
        self._reserved_addresses.release()
        for worker in self._workers.values():
            if not worker.is_stopping:
                worker.stop()
        ends = [asyncio.ensure_future(worker.wait_until_exit()) for worker in self._workers.values()]
        if not ends:
            return
        _, late = await asyncio.wait(ends, timeout=self.shutdown.max_seconds + KILL_GRACE_SECONDS)
        if late:
            log.error(
                "workers_overdue", workers=len(late), seconds=self.shutdown.max_seconds + KILL_GRACE_SECONDS
            )
        for worker in self._workers.values() if late else ():
            worker.kill()
        statuses = await asyncio.gather(*ends)
        # A signal to the whole process group may end a worker before it can handle signals: no failure.
        clean = (0, -signal.SIGTERM, -signal.SIGINT)
        self._exit_status = max(self._exit_status, *(0 if status in clean else 1 for status in statuses))

    def on_signal(self, number: signal.Signals) -> None:
        """Begin the shutdown; the second signal forces it."""
        self.shutdown.on_signal(number)
        for worker in self._workers.values():
            worker.stop(
                skip_pre_drain=number is signal.SIGINT
            )  # the first one lets it drain, the second ends it now
        self.systemd.notify_stopping("the workers drain", self.shutdown.max_seconds + KILL_GRACE_SECONDS)

    def _is_any_worker_alive(self) -> bool:
        """Return whether any worker answers; those that do not are killed and restarted."""
        if self.shutdown.requested.is_set():
            return True  # liveness is no longer checked, and the shutdown has a deadline
        silent = min(time.monotonic() - worker.last_answer_at for worker in self._workers.values())
        return silent < HANG_SECONDS

    async def metric_families(self) -> list[MetricFamily]:
        """Return the metrics of all workers, with the counters of those that ended."""
        workers = list(self._workers.values())
        answered = await asyncio.gather(*(worker.fetch_metrics() for worker in workers))
        # Of a worker that does not answer the counters stay; its gauges would be stale.
        running = [
            [family for family in worker.last_families if is_fresh or family.type != "gauge"]
            for worker, is_fresh in zip(workers, answered, strict=True)
        ]
        return self._metric_totals.combine([await self.metrics.families(), *running])

    async def liveness(self) -> tuple[bool, dict[str, Any]]:
        """Return whether every running worker answers."""
        listening = [worker for worker in self._workers.values() if worker.is_listening]
        answers = await asyncio.gather(*(worker.probe("/healthz") for worker in listening))
        silent = [worker.number for worker, answer in zip(listening, answers, strict=True) if answer is None]
        # A worker that just died is being restarted already; a restart of the whole would not be faster.
        return not [number for number in silent if self._workers[number].is_listening], {"silent": silent}

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Return whether any worker accepts new clients."""
        workers = list(self._workers.values())
        answers = await asyncio.gather(*(worker.probe("/readyz") for worker in workers))
        by_worker = {
            str(worker.number): answer or {"not_ready": ["starting" if worker.is_starting else "not running"]}
            for worker, answer in zip(workers, answers, strict=True)
        }
        # Ready workers accept the clients of the others: only without any should a load balancer avoid this
        # node.
        ready = not self.shutdown.requested.is_set() and any(answer and answer["ready"] for answer in answers)
        reasons = ["draining"] if self.shutdown.requested.is_set() else []
        if not ready and not reasons:
            reasons = sorted({reason for answer in by_worker.values() for reason in answer["not_ready"]})
            reasons = reasons or ["starting"]  # the first worker does not exist yet
        return ready, {"not_ready": reasons, "workers": by_worker}

    async def end_streams(self, subject: str | None, channel: str | None) -> Mapping[str, Any]:
        """End streams on every node, through any worker. Raises Unavailable."""
        parameters = {"subject": subject, "channel": channel}
        query = {name: value for name, value in parameters.items() if value is not None}
        for worker in self._workers.values():
            answer = await worker.request_json("/streams", "DELETE", **query)
            if answer is not None and "error" not in answer:
                return dict(answer)
        raise Unavailable("no worker could reach the log")

    def _listening_socket_paths(self) -> list[Path]:
        """Return the admin sockets of the workers that listen."""
        return [worker.socket_path for worker in self._workers.values() if worker.is_listening]

    async def status_report(self) -> StatusReport:
        """Return what ``/status`` shows: the reports of the workers as one, and the workers."""
        workers = list(self._workers.values())
        reports = await asyncio.gather(*(worker.fetch_status() for worker in workers))
        ready, details = await self.readiness()
        own = StatusReport(
            version=__version__,
            uptime_seconds=round(time.monotonic() - self._started_at, 1),
            now_ms=unix_ms(),
            ready=ready,
            not_ready=details["not_ready"],
            development=self.config.server.development,
            phase=None,
            config=None if self.reloader is None else self.reloader.config_status(),
            broker=None,
            streams=StreamsStatus(),
            totals=TotalsStatus(),
            sources=[],
            channels=[],
            recent_errors=self._recent_errors.list_newest(),
        )
        return own.merge(
            [report for report in reports if report is not None],
            [
                WorkerStatus(
                    worker.number,
                    worker.pid,
                    self._restarts[worker.number],
                    report.uptime_seconds if report else None,
                    report.streams.active if report else None,
                    report is not None and report.ready,
                    report.phase if report else None,
                )
                for worker, report in zip(workers, reports, strict=True)
            ],
        )


def _format_exit_status(status: int) -> str:
    if status >= 0:
        return f"exit {status}"
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
