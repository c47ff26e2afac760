"""Supervision: every task, timer and thread of the package is known, and long-lived ones survive errors."""

import ast
import asyncio
import inspect
import io
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.broker.sqlite.event_log import SqliteEventLog
from gateway.broker.sqlite.follower import SqliteFollower
from gateway.core.errors import Unavailable
from gateway.core.event import CONTROL_CHANNEL_PREFIX, EventId
from gateway.hub.audience import Audience
from gateway.observability import task_supervisor as module
from gateway.observability.logging import LogWriter
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import TASK_NAMES, TaskName, TaskSupervisor
from gateway.server.reload import ConfigFile
from gateway.server.workers.child import ControlLoop
from gateway.server.workers.messages import Command, frame
from gateway.server.workers.parent import Parent
from gateway.server.workers.worker_handle import WorkerHandle
from gateway.streams.heartbeat import HeartbeatSweep
from gateway.streams.revocation_bus import REPLACED_KIND
from tests.broker.contract import draft
from tests.support.config import loads
from tests.support.eventsource import Stream
from tests.support.gateway import BASE, Gateway, OpenDaemon, eventually, gateway_running, merged
from tests.support.redis import redis_server
from tests.support.tls import make_certificate

ROOT = Path(__file__).parents[2] / "gateway"

# The enumeration: where work begins that nobody awaits.

STARTERS = {
    "run_eagerly",
    "create_task",
    "ensure_future",
    "Thread",
    "Timer",
    "call_later",
    "call_at",
    "ThreadPoolExecutor",
}
SUPERVISED = {"start_task", "guard_callback", "create_thread", "__init__"}
"""``__init__`` is that of a `BucketSweep`, which guards its own timer."""

KNOWN: Mapping[str, str] = {
    # The supervisor itself.
    "observability/task_supervisor.py TaskSupervisor.start_task": "supervised: every job runs in it",
    "observability/task_supervisor.py TaskSupervisor.create_thread": "supervised: every thread runs in it",
    # Timers whose callback is guarded.
    "http/listener.py Listener._sweep": "sets the timer of connection_sweep first",
    "observability/loop_lag.py LoopLagMonitor.start": "sets the timer of loop_lag first",
    "streams/bucket_sweep.py BucketSweep._schedule": "sets the timer of a sweep before anything that may fail",
    "broker/delivery.py Delivery.report_gap": "one call, which sets itself again where it fails",
    # Parts of a supervised task, which ends with them and is started again.
    "broker/redis/follower.py RedisFollower._follow_until_error": "redis_follower ends with either of them",
    "sources/kafka.py KafkaSource.run": "a task group of source",
    "sources/redis/pubsub.py _PubSubReader.run": "a task group of source",
    "sources/redis/stream.py RedisStreamSource.run": "a task group of source",
    "sources/redis/stream_reader.py StreamReader.run": "a task group of source",
    "sources/supervisor.py Supervisor._run": "awaited by source",
    "sources/election.py Election._acquire": "awaited by election",
    "auth/jwks.py JwksClient._start_fetch": "awaited by key_refresh, and by the tokens that wait for keys",
    # Short-lived: whoever waits is told, and the next one starts another.
    "auth/authenticator.py Authenticator._start_key_refresh": "waits for the first keys of a start or a reload",
    "auth/forward.py ForwardAuth.resolve": "one question, awaited by its requests",
    "auth/tickets.py TicketStore.issue": "one seat, awaited or given back",
    "server/daemon.py Daemon._start_unless_stopped": "awaited at once",
    "http/listener.py Listener._accept_queued": "one connection, in the last moment before the port closes",
    "observability/eager.py run_eagerly": "its callers are listed here",
    "http/fast_path.py FastPathProtocol._open": "one request; what it raises is its answer",
    "http/tls/acceptor.py TlsAcceptor._pause_accepting": "accepts again after a pause; the socket's reader stays",
    "http/tls/acceptor.py TlsAcceptor._start_handshake": "one handshake; the next ones have tasks of their own",
    "hub/recent_ids.py RecentIds._wait_for_read": "reads while requests wait; a failure is their error, and the next request starts another read",
    "sources/webhook.py BodyChecker.run": "one check of a body, awaited by its request",
    "http/fast_path.py FastPathProtocol._refuse_long_token": "closes one connection",
    "hub/history_cache.py HistoryCache._start_task": "one read, awaited by the streams that want it",
    "hub/history_cache.py HistoryCache._evict": "drops what is old; the next read sets it again",
    "hub/replay.py Replay._replay_page": "one page of one stream, which ends if it fails",
    "streams/heartbeat.py HeartbeatSweep.close_if_expired": "ends one stream; heartbeats end it later where that fails",
    "server/reload.py Reloader._on_sighup": "one reload; what it raises is its outcome",
    "server/shutdown.py Shutdown.run": "the end, which has a deadline",
    "server/shutdown.py Shutdown.log_progress": "log lines during a drain",
    "sources/manager.py SourceManager._replace": "one change of a source by a reload",
    "server/workers/child.py ControlLoop._dispatch": "one order; what it raises is its answer",
    "server/workers/parent.py Parent._stop_workers": "waits for the end of the workers",
    "server/workers/worker_handle.py WorkerHandle.probe": "one probe, awaited by its caller",
    "broker/sqlite/connections.py SqliteConnections.__init__": "threads for reads, each awaited",
    # Commands for people, which end with their exception.
    "cli/check/source_checks.py _dry_run": "a command",
    "cli/terminal/follower.py StreamFollower._acknowledge": "a command",
    "cli/tail.py _follow": "a command",
}
"""Each place that starts a task, a timer or a thread without the supervisor, and why it may."""


def calls(node: ast.AST, name: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Yield each call below a node, with the function that it is in."""
    for child in ast.iter_child_nodes(node):
        inner = name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}" if name else child.name
        if isinstance(child, ast.Call):
            yield name, child
        yield from calls(child, inner)


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def places() -> Iterator[tuple[str, str, str]]:
    """Yield the file, the function and the task's name (empty: not supervised) of each place."""
    for file in sorted(ROOT.rglob("*.py")):
        where = file.relative_to(ROOT).as_posix()
        for name, call in calls(ast.parse(file.read_text())):
            first = call.args[0] if call.args else None
            text = first.value if isinstance(first, ast.Constant) else None
            if called(call) in SUPERVISED and isinstance(text, str) and text in TASK_NAMES:
                yield where, name, text
            elif called(call) in STARTERS:
                yield where, name, ""


def test_every_place_that_starts_something_is_known() -> None:
    """One that is not supervised dies of its first exception, and nobody hears of it."""
    alone = {f"{where} {name}" for where, name, task in places() if not task}
    assert alone == set(KNOWN), (
        "supervise it (gateway.observability.task_supervisor), or say here why it need not be"
    )


def test_every_task_is_started_somewhere_and_has_an_injection() -> None:
    """A label that nothing can have is a lie, and a task without an injection is one that was never tried."""
    reported = {
        call.args[0].value
        for file in sorted(ROOT.rglob("*.py"))
        for _, call in calls(ast.parse(file.read_text()))
        if called(call) == "record_failure" and call.args and isinstance(call.args[0], ast.Constant)
    }
    assert {task for _, _, task in places() if task} | reported == set(TASK_NAMES)
    assert set(INJECTIONS) | set(OTHERS) == set(TASK_NAMES)
    assert not set(INJECTIONS) & set(OTHERS)


# One exception in each of them, in a running gateway.


class Once:
    """Stands in for a function, and raises in place of the first call that is ``meant``."""

    def __init__(self, function: Callable[..., Any], meant: Callable[..., bool] = lambda *_: True) -> None:
        self._function = function
        self._meant = meant
        self.has_raised = False
        self.later = 0
        """Calls that were let through after that."""

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        if not self.has_raised and self._meant(*arguments):
            self.has_raised = True
            raise RuntimeError("injected")
        self.later += self.has_raised
        return self._function(*arguments, **more)

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        return lambda *arguments, **more: self(instance, *arguments, **more)  # it stands in for a method


Stir = Callable[[Gateway], Awaitable[object]]


async def nothing(gateway: Gateway) -> None:
    """It comes by itself."""


@dataclass(frozen=True)
class Injection:
    """Where the exception is raised, of what gateway, and what brings the task there."""

    target: Callable[[OpenDaemon], object]
    name: str
    over: Mapping[str, Any] = field(default_factory=dict)
    log: str = "memory"
    stir: Stir = nothing
    meant: Callable[..., bool] = lambda *_: True
    goes_on: bool = True
    """Whether the same function is called again afterwards."""
    quick: Mapping[str, float] = field(default_factory=dict)
    """Constants of modules that make it come soon."""


ACK: dict[str, Any] = {
    "channels": {"orders": {"ack": {"interval": "1s", "timeout": "30s", "retry_limit": 9}}}
}


async def view_the_console(gateway: Gateway) -> None:
    gateway.streams.append(await Stream.open(gateway.daemon.admin_listener.port, "/status/stream"))


async def watch_a_file(gateway: Gateway) -> None:
    reloads = gateway.daemon.reloader
    assert reloads is not None
    reloads.start(gateway.daemon.apply_config)


async def leave_a_seat(gateway: Gateway) -> None:
    counted = gateway.daemon.limits.users
    counted.acquire("user", "m")
    await counted.reserve("user", "m")
    counted.release("user", "m")


async def run_again(gateway: Gateway) -> None:
    supervisor = gateway.daemon.source_manager.supervisors["hooks"]
    await supervisor.stop()
    supervisor.start()


async def announce(gateway: Gateway) -> None:
    assert await gateway.daemon.limits.announce("client:x", "stream 1") is None
    assert await gateway.daemon.limits.announce("client:x", "stream 2") is not None


async def miss_notices(gateway: Gateway) -> None:
    gateway.daemon.control_channel.read_missed(EventId(0, 0), gateway.daemon.hub.head)


async def answer_elsewhere(gateway: Gateway) -> None:
    gateway.daemon.ack_forwarder.forward("a" * 24, 1)
    await eventually(lambda: not gateway.daemon.ack_forwarder._pending)


async def ask_for_heartbeats(gateway: Gateway) -> None:
    await gateway.subscribe("/events/orders?heartbeat=1s")


async def feed_the_watchdog(gateway: Gateway) -> None:
    gateway.daemon.systemd.start_watchdog(lambda: True)


def is_replacing(*arguments: Any) -> bool:
    return REPLACED_KIND in arguments


INJECTIONS: dict[TaskName, Injection] = {
    "ack_key": Injection(
        lambda daemon: daemon.nonces, "_poll_shared_key", ACK, "sqlite",
        quick={"streams.acks.nonces.MIN_POLL_SECONDS": 0.02, "streams.acks.nonces.POLL_SECONDS": 0.05},
    ),
    "ack_forwarder": Injection(lambda daemon: daemon.ack_forwarder, "_mark_forwarded", ACK, "sqlite", answer_elsewhere),
    "ack_sweep": Injection(lambda daemon: daemon.ack_tracker, "is_log_reachable", ACK),
    "canary": Injection(lambda daemon: daemon.canary, "_probe", quick={"hub.canary.INTERVAL_SECONDS": 0.05}),
    "certificate_watcher": Injection(
        lambda daemon: daemon.certificate_watcher, "reload_if_changed", {"server": {"tls": "made"}},
        quick={"http.tls.certificates.POLL_SECONDS": 0.05},
    ),
    "client_announcements": Injection(
        lambda daemon: daemon.control_channel, "send", {"limits": {"connections_per_user": 5}}, "sqlite",
        announce, is_replacing,
    ),
    "config_watch": Injection(
        lambda daemon: daemon.reloader._file, "read_fingerprint",  # type: ignore[union-attr]
        stir=watch_a_file, quick={"server.reload.POLL_SECONDS": 0.05},
    ),
    "connection_sweep": Injection(lambda daemon: daemon.public_listener, "_pop_expired", quick={"http.listener._SWEEP_SECONDS": 0.05}),
    "status_stream": Injection(
        lambda daemon: daemon.admin_port.status_stream, "_report", stir=view_the_console, quick={"admin.status_stream.REPORT_INTERVAL_SECONDS": 0.05}
    ),
    "event_delivery": Injection(lambda daemon: daemon.broker._delivery, "_on_events"),
    "staleness": Injection(
        lambda daemon: daemon.staleness_monitor, "update_all", quick={"observability.staleness.CHECK_INTERVAL_SECONDS": 0.05}
    ),
    "heartbeats": Injection(lambda daemon: daemon.streams.heartbeats, "_on_tick", {"timeouts": {"heartbeat": "1s"}}),
    "hub": Injection(lambda daemon: daemon.hub, "_enqueue"),
    "key_refresh": Injection(
        lambda daemon: daemon.authenticator._backends.key_sets[0], "_start_fetch",
        {"auth": {"jwt": {"algorithms": ["RS256"], "jwks_url": "http://127.0.0.1:9/keys"}}},
        quick={"auth.jwks.REFRESH_INTERVAL_SECONDS": 0.05},
    ),
    "loop_lag": Injection(lambda daemon: daemon.loop_lag, "_run_after_writes"),
    "control_channel": Injection(
        lambda daemon: daemon.broker, "read", stir=miss_notices, goes_on=False,
        meant=lambda after, *_: all(name.startswith(CONTROL_CHANNEL_PREFIX) for name in after),
    ),
    "pump": Injection(lambda daemon: Audience, "write_slice"),
    "user_quotas": Injection(
        lambda daemon: daemon.limits.users, "_release_batches", {"limits": {"connections_per_user": 5}}, "sqlite",
        leave_a_seat,
    ),
    "short_heartbeats": Injection(
        lambda daemon: daemon.streams.short_heartbeats, "_visit",
        {"timeouts": {"heartbeat": "60s", "heartbeat_minimum": "1s"}}, stir=ask_for_heartbeats,
    ),
    "source": Injection(
        lambda daemon: daemon.source_manager.supervisors["hooks"]._source, "run", stir=run_again
    ),
    "sqlite_follower": Injection(lambda daemon: daemon.broker._follower, "_deliver_new_events", log="sqlite"),  # type: ignore[attr-defined]
    "sqlite_sweep": Injection(
        lambda daemon: SqliteEventLog, "sweep", log="sqlite", quick={"broker.sqlite.writer.SWEEP_SECONDS": 0.05}
    ),
    "sqlite_writer": Injection(lambda daemon: daemon.broker._writer.appends, "take_batch", log="sqlite"),  # type: ignore[attr-defined]
    "watchdog": Injection(
        lambda daemon: daemon.systemd, "_send", stir=feed_the_watchdog,
        meant=lambda *words: "WATCHDOG=1" in words,
    ),
    "election": Injection(
        lambda daemon: daemon.source_manager.supervisors["app"].context.election, "_acquire", log="redis",
        quick={"sources.election.RENEW_SECONDS": 0.05},
    ),
    "redis_follower": Injection(lambda daemon: daemon.broker._follower, "_handle_live_message", log="redis"),  # type: ignore[attr-defined]
    "redis_writer": Injection(lambda daemon: daemon.broker._appends, "take_batch", log="redis"),  # type: ignore[attr-defined]
}  # fmt: skip

OTHERS: dict[TaskName, str] = {
    "log_writer": "test_a_log_writer_that_fails_writes_on",
    "worker_control_loop": "test_orders_are_followed_after_one_that_fails",
    "worker_supervisor": "test_a_parent_keeps_its_workers_after_a_fault",
    "worker_liveness": "test_a_parent_keeps_its_workers_after_a_fault",
    "worker_probes": "test_a_parent_keeps_its_workers_after_a_fault",
}
"""Those that are not of one node, and the test that injects the exception."""


def test_the_other_tests_are_there() -> None:
    """Whoever renames one must not lose it."""
    assert set(OTHERS.values()) <= set(globals())


@asynccontextmanager
async def running(
    injection: Injection, tmp_path: Path
) -> AsyncIterator[tuple[Gateway, ssl.SSLContext | None]]:
    """Run the gateway of an injection, and yield it with what its clients need for TLS."""
    over, tls = dict(injection.over), None
    if "server" in over:
        certificate, key = make_certificate(tmp_path)
        over["server"] = {"tls": {"certificate": str(certificate), "key": str(key)}}
        tls = ssl.create_default_context(cafile=str(certificate))
        tls.check_hostname = False
    if injection.log == "redis":
        with redis_server() as server:
            app = {"from": [{"source": "app", "topic": "app"}], "access": "public"}
            over |= {
                "broker": {"url": server.url},
                "sources": {"app": {"type": "redis-pubsub", "url": server.url}},
            }
            over["channels"] = {"app": app}
            async with gateway_running(over) as gateway:
                yield gateway, tls
        return
    if injection.log == "sqlite":
        over["broker"] = {"url": f"sqlite:///{tmp_path}/log.db"}
    reloaded = None
    if injection.stir is watch_a_file:
        path = tmp_path / "gateway.yaml"
        path.write_text(json.dumps(merged(BASE, over)))
        reloaded = ConfigFile(path)
        reloaded.load()
    async with gateway_running(over, file=reloaded) as gateway:
        yield gateway, tls


async def publish(gateway: Gateway, number: int) -> None:
    """Append an event as a sender would: again while it is refused, under the same key."""
    while True:
        with suppress(Unavailable):
            await gateway.daemon.broker.append([draft("orders", str(number).encode(), key=f"key {number}")])
            return
        await asyncio.sleep(0.01)


async def numbers(stream: Stream, until: int) -> tuple[list[int], bool]:
    """Read up to an event; return the numbers of all events, and whether a gap was among them."""
    found, is_gap = [], False
    while until not in found:
        message = await stream.next()
        is_gap = is_gap or message.type == "stream.gap"
        assert message.type != "stream.close", message.json
        if message.type == "message":
            found.append(message.json["payload"])
    return found, is_gap


def tasks() -> Iterator[Any]:
    for name, injection in INJECTIONS.items():
        marks = [pytest.mark.extended] if injection.log == "redis" else []
        yield pytest.param(name, marks=marks, id=name)


@pytest.mark.parametrize("task", tasks())
async def test_an_exception_in_each_task_is_counted_and_survived(
    task: TaskName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event lost, doubled or missing without a gap; the task goes on, and the node is ready."""
    injection = INJECTIONS[task]
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    for name, value in injection.quick.items():
        monkeypatch.setattr(f"gateway.{name}", value)
    async with running(injection, tmp_path) as (gateway, tls):
        stream = await gateway.subscribe("/events/orders", ssl=tls)
        await publish(gateway, 1)
        target = injection.target(gateway.daemon)
        once = Once(getattr(target, injection.name), injection.meant)
        failures = gateway.daemon.metrics.background_failures.labels(task)._value
        with monkeypatch.context() as patch:
            patch.setattr(target, injection.name, once)
            stirring = asyncio.ensure_future(injection.stir(gateway))
            for number in range(2, 6):
                await publish(gateway, number)
            await eventually(lambda: once.has_raised and failures.get() == 1)
            await stirring
            if injection.goes_on:
                await publish(gateway, 6)
                await eventually(lambda: once.later)
        await publish(gateway, 7)
        found, is_gap = await numbers(stream, 7)
        expected = [number for number in range(1, 8) if number != 6 or injection.goes_on]
        assert found == expected or (is_gap and found == sorted(set(found)))

        async def is_ready() -> bool:
            return (await gateway.admin("/readyz"))[0] == 200

        await eventually(is_ready)
        assert await gateway.metric(f'background_failures_total{{task="{task}"}}') == 1


async def test_a_task_that_fails_again_and_again_makes_the_node_unready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that looks ready and delivers nothing keeps its clients; /readyz says which part it is."""
    monkeypatch.setattr(module, "HEALTHY_AFTER_SECONDS", 0.3)

    async def broken(self: SqliteFollower) -> None:
        raise RuntimeError("injected")

    async with gateway_running({"broker": {"url": f"sqlite:///{tmp_path}/log.db"}}) as gateway:

        async def reasons() -> list[str]:
            return list((await gateway.admin("/readyz"))[1]["not_ready"])

        async def is_failing() -> bool:
            return "background task sqlite_follower: RuntimeError: injected" in await reasons()

        async def is_ready() -> bool:
            return not await reasons()

        with monkeypatch.context() as patch:
            patch.setattr(SqliteFollower, "_deliver_new_events", broken)
            await eventually(is_failing)
        await eventually(is_ready)


async def test_a_stream_that_cannot_be_looked_after_is_ended_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbours would get no heartbeats, and their proxies would cut them."""
    async with gateway_running({"timeouts": {"heartbeat": "1s"}}) as gateway:
        streams = [await gateway.subscribe("/events/orders") for _ in range(40)]
        broken = next(iter(gateway.daemon.streams.active))
        visit = HeartbeatSweep._visit

        def visits(self: HeartbeatSweep, stream: Any, now: float) -> None:
            if stream is broken:
                raise RuntimeError("injected")
            visit(self, stream, now)

        monkeypatch.setattr(HeartbeatSweep, "_visit", visits)
        await eventually(lambda: len(gateway.daemon.streams.active) == 39)
        assert await gateway.metric('disconnects_total{reason="internal_error"}') == 1
        for stream in streams[1:]:
            while not stream.parser.comments:
                assert await stream.read()


def test_a_log_writer_that_fails_writes_on() -> None:
    """Without lines nobody learns why anything else fails."""

    class Odd(io.StringIO):
        write = Once(io.StringIO.write)

    counted: list[str] = []
    dropped: list[None] = []
    file = Odd()
    writer = LogWriter(file, lambda: dropped.append(None), TaskSupervisor(counted.append))
    writer.write("lost")
    while not counted:
        pass
    writer.write("written")
    writer.close()
    assert "written" in file.getvalue()
    assert (counted, len(dropped)) == (["log_writer"], 1)


async def test_orders_are_followed_after_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that hears its parent no more would outlive it, and answer no reload."""
    reading, writing = os.pipe()
    async with gateway_running() as gateway:
        with os.fdopen(reading, "rb") as pipe:
            monkeypatch.setattr("sys.stdin", pipe)
            obedience = ControlLoop(gateway.daemon)
            monkeypatch.setattr(obedience, "_dispatch", Once(obedience._dispatch))
            task = gateway.daemon.background.start_task("worker_control_loop", obedience.run)
            os.write(writing, frame(Command("drain")))
            await eventually(
                lambda: (
                    gateway.daemon.metrics.background_failures.labels("worker_control_loop")._value.get() == 1
                )
            )
            assert not gateway.daemon.shutdown.requested.is_set()
            os.write(writing, frame(Command("drain")))
            await eventually(gateway.daemon.shutdown.requested.is_set)
            os.close(writing)
            await asyncio.wait([task])


async def test_a_parent_keeps_its_workers_after_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies, or hangs, must still be started again."""
    for name in ("LIVENESS_CHECK_SECONDS", "PROBE_REFRESH_SECONDS"):
        monkeypatch.setattr(f"gateway.server.workers.parent.{name}", 0.05)
    over = {"broker": {"url": f"sqlite:///{tmp_path}/log.db"}, "timeouts": {"pre_drain": "0s"}}
    metrics = Metrics()
    listening = asyncio.Event()
    parent = Parent(
        loads(json.dumps(merged(BASE, over)), environ={}),
        2,
        metrics,
        on_listening=lambda public, admin: listening.set(),
    )
    asks = Once(
        WorkerHandle.request_json,
        lambda *_: any(frame.function == "_check_liveness" for frame in inspect.stack(0)),
    )
    probes, retires = Once(WorkerHandle.probe), Once(parent._metric_totals.retire)
    run = asyncio.create_task(parent.run())
    try:
        waiting = asyncio.create_task(listening.wait())
        await asyncio.wait([run, waiting], return_when=asyncio.FIRST_COMPLETED)
        monkeypatch.setattr(WorkerHandle, "request_json", asks)
        monkeypatch.setattr(WorkerHandle, "probe", probes)
        monkeypatch.setattr(parent._metric_totals, "retire", retires)
        await eventually(lambda: asks.later and probes.later)
        parent._workers[0].kill()
        await eventually(lambda: retires.later and parent._workers[0].is_listening)

        async def is_ready() -> bool:
            return (await parent.readiness())[0]

        await eventually(is_ready)
        for name in ("worker_liveness", "worker_probes", "worker_supervisor"):
            assert metrics.background_failures.labels(name)._value.get() == 1, name
    finally:
        parent.shutdown.request(skip_pre_drain=True)
        await run


async def test_a_cancelled_task_ends_whatever_it_raises_then() -> None:
    """A supervisor that starts it again would hold up the shutdown for good."""
    counted: list[TaskName] = []
    entered = asyncio.Event()

    async def job() -> None:
        try:
            entered.set()
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("its log is closed")

    task = TaskSupervisor(counted.append).start_task("canary", job)
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert counted == ["canary"]


async def test_a_cancellation_of_somebody_else_is_a_failure() -> None:
    """Libraries cancel themselves; a task that ends by that is as dead as any other."""
    counted: list[TaskName] = []
    runs = 0

    async def job() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise asyncio.CancelledError

    await TaskSupervisor(counted.append).start_task("canary", job)
    assert (runs, counted) == (2, ["canary"])
