"""The parent of several workers: starts them, watches them, hands signals on, and answers on the admin port.

It reads no events and holds no stream. A worker that dies is started again after a backoff; its clients come
back by themselves, to the others first. One that does not answer for `HANG_SECONDS` is as good as dead, and
is killed. When the parent itself is killed, each worker notices the end of its pipe and drains.
"""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from gateway import __version__
from gateway.admin.app import HEADERS, Admin, More
from gateway.admin.guard import Guard
from gateway.admin.page import Page
from gateway.admin.status import Outcome
from gateway.admin.status_stream import Feed
from gateway.config.catalog import Catalog
from gateway.config.model.config import Config
from gateway.core.backoff import Backoff
from gateway.core.clock import unix_ms
from gateway.core.errors import NotFound, StartupError, Unavailable
from gateway.http.listener import Listener
from gateway.http.sockets import Reserved, reserve
from gateway.observability.background import Background
from gateway.observability.metrics import Family, Metrics
from gateway.observability.recent_errors import Refusals
from gateway.server.reload import ConfigFile, Reload
from gateway.server.shutdown import Shutdown
from gateway.server.systemd import Systemd
from gateway.server.workers.child import COMMIT, DISCARD, PREPARE
from gateway.server.workers.merge import Totals, merged_status
from gateway.server.workers.relay import Relay
from gateway.server.workers.worker import Worker

log = structlog.get_logger("gateway.workers")

LOOK_SECONDS = 5.0
"""How often each worker is asked whether it lives."""

ASK_EVERY_SECONDS = 1.0
"""How often each is asked what probes will ask."""

HANG_SECONDS = 30.0
"""How long a worker may answer nothing before it is killed and started again."""

START_SECONDS = 60.0
"""How long a worker may take until it listens."""

HEALTHY_SECONDS = 30.0
"""How long a worker must have lived for its next death to count as the first."""

KILL_SECONDS = 5.0
"""How long a worker may be overdue (`gateway.server.shutdown`) before it is killed."""


class Parent:
    """`run` is its whole life."""

    def __init__(
        self, config: Config, workers: int, metrics: Metrics, file: ConfigFile | None = None
    ) -> None:
        """Prepare ``workers`` of them. ``file`` is where ``config`` comes from, for reloads."""
        self.config = config
        self.metrics = metrics
        self.background = background = Background(metrics.background_failed)
        self._reserved = Reserved((), ())
        self.on_listening: Callable[[], None] | None = None
        self.reloads = None if file is None else Reload(file, self)
        self._refusals = Refusals()
        self._guard = Guard.of(config.server, self._refusals)
        self._feed = Feed(self.report, write_seconds=config.timeouts.write, background=background)
        timeouts = config.timeouts
        self.systemd = Systemd(os.environ, background)
        self.shutdown = Shutdown(
            pre_drain=timeouts.pre_drain,
            drain=timeouts.drain,
            request=timeouts.request,
            systemd=self.systemd,
        )
        more: list[More] = [Page(), self._feed]
        if config.server.development:
            more.append(Relay(self._sockets, idle_seconds=2 * config.timeouts.heartbeat))
        self.admin = Listener(
            Admin(self, self._guard, more).app(),
            [config.server.admin],
            key="server.admin",
            request_seconds=config.timeouts.request,
            headers=HEADERS,
            is_ending=self.shutdown.asked.is_set,
            background=background,
        )
        self._count = workers
        self._catalog = Catalog(config.channels)
        self._workers: dict[int, Worker] = {}
        self._restarts = dict.fromkeys(range(workers), 0)
        self._totals = Totals()
        self._started = time.monotonic()
        self._status = 0
        # What is told while no worker answers: nothing would look as if nobody had asked.
        for name in ("ready", "workers", "active_connections"):
            metrics.bind(name, lambda: 0)
        metrics.bind("draining", self.shutdown.asked.is_set)

    @property
    def port(self) -> int:
        """The port of the first address that has one, also where the configuration says 0."""
        return next(filter(None, self._reserved.ports), 0)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, and return the exit status. Raises StartupError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.signalled, number)
        if self.reloads is not None:
            self.reloads.listen()
        with (
            tempfile.TemporaryDirectory(prefix="sse-gateway-") as folder,
            reserve(self.config.server.listen, "server.listen") as self._reserved,
        ):
            looking = [
                self.background.start("worker_look", self._look),
                self.background.start("worker_probes", self._keep_fresh),
            ]
            try:
                await self.admin.start()
                # One before the others: what is wrong for it is wrong for all, and should be told once.
                good = await self._start(0, Path(folder)) and all(
                    await asyncio.gather(*(self._start(n, Path(folder)) for n in range(1, self._count)))
                )
                if good and not self.shutdown.asked.is_set():
                    await self._serve(Path(folder))
                elif not self.shutdown.asked.is_set():
                    self._status = 1  # a worker could not start, and has said why
            finally:
                for task in looking:
                    task.cancel()
                if self.reloads is not None:
                    await self.reloads.stop()
                await self._stop()
                self._feed.close()
                await self.admin.stop()
                self.systemd.close()
        log.info("stopped")
        return self._status

    async def _serve(self, folder: Path) -> None:
        log.info(
            "workers_listening",
            version=__version__,
            workers=self._count,
            public=self.config.server.public_urls(self._reserved.ports),
            admin=self.config.server.admin_url(self.admin.port),
        )
        if self.on_listening is not None:
            self.on_listening()
        if self.reloads is not None:
            self.reloads.start()
        urls = self.config.server.public_urls(self._reserved.ports)
        self.systemd.ready(f"{self._count} workers serve on {urls}")
        self.systemd.watch(self._is_answered)
        tasks = [
            *(
                self.background.start("worker_keeper", partial(self._keep, number, folder))
                for number in self._workers
            ),
        ]
        try:
            await self.shutdown.asked.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def go_over(self, config: Config) -> int:
        """Let all workers serve by another configuration, and return how many streams end by it.

        First each makes ready; only when all can does any go over to it. One that cannot follow then, or is
        only just starting, is started again. Raises Unavailable or StartupError: then nothing has changed.
        """
        asked = [worker for worker in self._workers.values() if worker.is_listening]
        told = await asyncio.gather(*(worker.reload(PREPARE, config) for worker in asked))
        ready = [worker for worker, answer in zip(asked, told, strict=True) if answer is not None]
        error = next((answer.error for answer in told if answer and answer.error), None)
        if self.shutdown.asked.is_set():
            error = "the gateway is shutting down"
        if error is not None or not ready:
            await asyncio.gather(*(worker.reload(DISCARD) for worker in ready))
            raise StartupError(error or "no worker runs just now")
        self.config = config
        self._catalog.reconfigure(config.channels)
        self._guard.reconfigure(config.server)
        timeouts = config.timeouts
        self.shutdown.reconfigure(
            pre_drain=timeouts.pre_drain, drain=timeouts.drain, request=timeouts.request
        )
        self.admin.reconfigure(timeouts.request)
        done = await asyncio.gather(*(worker.reload(COMMIT) for worker in ready))
        for worker, answer in zip(ready, done, strict=True):
            if answer is not None and answer.error is not None:
                log.error("worker_not_reloaded", worker=worker.number, error=answer.error)
            elif answer is not None:
                worker.config = config
        for worker in self._workers.values():
            if worker.config is not config:
                worker.kill()
        return sum(answer.ended for answer in done if answer is not None)

    async def reload(self) -> Outcome:
        """Read the configuration's file again. Raises NotFound where there is none."""
        if self.reloads is None:
            raise NotFound("there is no file to reload here")
        return await self.reloads.reload("POST /reload")

    async def _start(self, number: int, folder: Path) -> bool:
        """Start a worker and wait until it listens; False if it could not, or should not any more."""
        if self.shutdown.asked.is_set():
            return False
        worker = self._workers[number] = Worker(number, self.config, self._reserved, folder)
        await worker.start()
        if worker.config is not self.config:
            worker.kill()  # a reload came while there was nothing to kill yet; it is started again
        if self.shutdown.asked.is_set() and not worker.is_ending:
            worker.end(at_once=True)  # a signal came while there was nobody to hear of it
        return await worker.listening()

    async def _keep(self, number: int, folder: Path) -> None:
        """Start a worker again, for ever."""
        backoff = Backoff(0.2, 30)
        while True:
            worker = self._workers[number]
            status = await worker.ended()
            if self.shutdown.asked.is_set():
                return
            lived = time.monotonic() - worker.started
            log.error(
                "worker_died", worker=number, pid=worker.pid, status=_told(status), seconds=round(lived, 1)
            )
            self._totals.retire(worker.families)
            worker.families = []
            if lived >= HEALTHY_SECONDS:
                backoff.reset()
            await asyncio.sleep(backoff.next())
            self._restarts[number] += 1
            self.metrics.worker_restarts.inc()
            try:
                await self._start(number, folder)
            except Exception:  # no more processes, or no memory, for now
                log.exception("worker_not_started", worker=number)

    async def _keep_fresh(self) -> None:
        """Ask what probes will ask, so that there is an answer for them."""
        while True:
            await asyncio.sleep(ASK_EVERY_SECONDS)
            workers = list(self._workers.values())
            asked = (worker.probe(path) for worker in workers for path in ("/healthz", "/readyz"))
            await asyncio.gather(*asked, return_exceptions=True)

    async def _look(self) -> None:
        """Kill workers that hang, or that do not come up."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            workers = list(self._workers.values())
            asked = (worker.ask("/healthz") for worker in workers)
            told = await asyncio.gather(*asked, return_exceptions=True)
            for worker, answer in zip(workers, told, strict=True):
                if isinstance(answer, dict) and not answer["alive"]:
                    log.error("worker_stuck", worker=worker.number, pid=worker.pid, **answer)
                    worker.kill()
                silent = time.monotonic() - worker.answered
                if silent > (HANG_SECONDS if worker.is_listening else START_SECONDS):
                    log.error("worker_hangs", worker=worker.number, pid=worker.pid, seconds=round(silent, 1))
                    worker.kill()

    async def _stop(self) -> None:
        """Let the workers drain; kill those that take too long."""
        self._reserved.release()
        for worker in self._workers.values():
            if not worker.is_ending:
                worker.end()
        ends = [asyncio.ensure_future(worker.ended()) for worker in self._workers.values()]
        if not ends:
            return
        _, late = await asyncio.wait(ends, timeout=self.shutdown.seconds + KILL_SECONDS)
        if late:
            log.error("workers_overdue", workers=len(late), seconds=self.shutdown.seconds + KILL_SECONDS)
        for worker in self._workers.values() if late else ():
            worker.kill()
        statuses = await asyncio.gather(*ends)
        # One that a signal to the whole group met before it could listen to signals did as it was told.
        well = (0, -signal.SIGTERM, -signal.SIGINT)
        self._status = max(self._status, *(0 if status in well else 1 for status in statuses))

    def signalled(self, number: signal.Signals) -> None:
        """Begin to end; the second time, end now."""
        self.shutdown.signalled(number)
        for worker in self._workers.values():
            worker.end(at_once=number is signal.SIGINT)  # the first one lets it drain, the second ends it now
        self.systemd.stopping("the workers drain", self.shutdown.seconds + KILL_SECONDS)

    def _is_answered(self) -> bool:
        """Tell whether any worker answers; the others are killed one by one, and started again."""
        if self.shutdown.asked.is_set():
            return True  # they are not asked any more, and an end that hangs has a deadline
        silent = min(time.monotonic() - worker.answered for worker in self._workers.values())
        return silent < HANG_SECONDS

    async def families(self) -> list[Family]:
        """Return the metrics of all workers, and of those that are gone."""
        workers = list(self._workers.values())
        told = await asyncio.gather(*(worker.tell_metrics() for worker in workers))
        living = [worker.families for worker, answered in zip(workers, told, strict=True) if answered]
        for worker, answered in zip(workers, told, strict=True):
            if not answered:  # it may hang: its counters stay, its gauges would be old
                living.append([family for family in worker.families if family.type != "gauge"])
        return self._totals.with_retired([await self.metrics.families(), *living])

    async def alive(self) -> tuple[bool, dict[str, Any]]:
        """Return whether every worker that runs answers."""
        listening = [worker for worker in self._workers.values() if worker.is_listening]
        told = await asyncio.gather(*(worker.probe("/healthz") for worker in listening))
        silent = [worker.number for worker, answer in zip(listening, told, strict=True) if answer is None]
        # One that just died is being started again, which no restart from outside could do faster.
        return not [number for number in silent if self._workers[number].is_listening], {"silent": silent}

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        """Return whether any worker takes new clients."""
        workers = list(self._workers.values())
        told = await asyncio.gather(*(worker.probe("/readyz") for worker in workers))
        by_worker = {
            str(worker.number): answer or {"not_ready": ["starting" if worker.is_starting else "not running"]}
            for worker, answer in zip(workers, told, strict=True)
        }
        # Others take the clients of one that is not: only when none can, a balancer should look elsewhere.
        ready = not self.shutdown.asked.is_set() and any(answer and answer["ready"] for answer in told)
        reasons = ["draining"] if self.shutdown.asked.is_set() else []
        if not ready and not reasons:
            reasons = sorted({reason for answer in by_worker.values() for reason in answer["not_ready"]})
            reasons = reasons or ["starting"]  # the first worker is not there yet
        return ready, {"not_ready": reasons, "workers": by_worker}

    def knows(self, channel: str) -> bool:
        """Tell whether a name is a channel's, or that of a template."""
        return self._catalog.knows(channel)

    async def end(self, subject: str | None, channel: str | None) -> Mapping[str, Any]:
        """End streams on every node: any worker can tell all. Raises Unavailable."""
        asked = {"subject": subject, "channel": channel}
        query = {name: value for name, value in asked.items() if value is not None}
        for worker in self._workers.values():
            answer = await worker.ask("/streams", "DELETE", **query)
            if answer is not None and "error" not in answer:
                return dict(answer)
        raise Unavailable("no worker could reach the log")

    def _sockets(self) -> list[Path]:
        """Return where the workers that listen can be asked."""
        return [worker.path for worker in self._workers.values() if worker.is_listening]

    async def report(self) -> dict[str, Any]:
        """Return what ``/status`` shows: the workers' own, added up, and the workers."""
        workers = list(self._workers.values())
        told = await asyncio.gather(*(worker.ask("/status") for worker in workers))
        ready, parts = await self.ready()
        return {
            "version": __version__,
            "now_ms": unix_ms(),
            "development": self.config.server.development,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "ready": ready,
            "not_ready": parts["not_ready"],
            "config": None if self.reloads is None else self.reloads.told(),
            **merged_status([report for report in told if report is not None], self._refusals.newest()),
            "workers": [
                {
                    "worker": worker.number,
                    "pid": worker.pid,
                    "restarts": self._restarts[worker.number],
                    "uptime_seconds": report["uptime_seconds"] if report else None,
                    "streams": report["streams"]["active"] if report else None,
                    "ready": bool(report and report["ready"]),
                    "phase": report["phase"] if report else None,
                }
                for worker, report in zip(workers, told, strict=True)
            ],
        }


def _told(status: int) -> str:
    if status >= 0:
        return f"exit {status}"
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
