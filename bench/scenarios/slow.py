"""Clients that never read: what the others feel, and what the server's memory does."""

import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from bench.load import Load, load
from bench.paced import Paced
from bench.payload import payload
from bench.scenarios.base import Figure, Options, Row, Scenario, Target
from bench.servers import MissingError, Server, Setup, label, run

READING = 1800
OTHERS = 200
"""Streams that read in one half of a round and do not in the other."""

RATE = 25
BYTES = 2000
"""Of a payload: at this rate a client that does not read has its buffers full within seconds."""

PHASE = 5.0
"""Seconds of half a round."""

ROUNDS = 5
RENEW = 40.0
"""Seconds after which the clients that do not read give up and come back, and again do not."""

SAMPLE = 2.0
"""Seconds between two looks at the memory."""

CONTENDERS = (("gateway", 1), ("nchan", 1))


@dataclass(slots=True)
class _Contender:
    server: Server
    clients: Load
    others_read: list[float] = field(default_factory=list)
    """p99 in ms, of each round."""
    others_do_not: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds, and MB."""


def measure(options: Options) -> Iterator[Row]:
    """Take turns with and without, then watch the memory of all servers side by side."""
    with ExitStack() as stack:
        contenders: list[_Contender] = []
        for name, workers in CONTENDERS:
            try:
                server = stack.enter_context(run(name, Setup(), workers=workers))
            except MissingError as missing:
                yield Row(label(name), workers, note=str(missing))
                continue
            reading = options.pick(READING, 100)
            clients = stack.enter_context(load(server.port, [server.target("orders")], reading))
            clients.open_all()
            contenders.append(_Contender(server, clients))
        for _ in range(options.pick(ROUNDS, 1)):
            for each in contenders:
                each.others_read.append(_phase(each, options, others_read=True))
                each.others_do_not.append(_phase(each, options, others_read=False))
        _watch(contenders, options)
        yield from map(_row, contenders)


def _phase(each: _Contender, options: Options, *, others_read: bool) -> float:
    server, seconds = each.server, options.pick(int(PHASE), 2)
    with _others(server, options, read=others_read) as others:
        others.open_all()
        each.clients.reset()
        with Paced(
            lambda group: server.publish("orders", group),
            lambda: payload(BYTES),
            rate=RATE,
            group=1,
            events=int(seconds * RATE),
        ) as paced:
            paced.wait(seconds * 2)
        each.clients.expect(paced.published, seconds=20)
        if not each.clients.arrived().complete:
            raise RuntimeError(f"{server} did not deliver everything")
        return each.clients.stats().latency.percentile(0.99) * 1e3


def _others(server: Server, options: Options, *, read: bool) -> AbstractContextManager[Load]:
    count = options.pick(OTHERS, 20)
    room = 0 if read else 4096  # whoever does not read also has little room: so the server feels it soon
    return load(server.port, [server.target("orders")], count, read=read, receive_buffer=room, source=20)


def _watch(contenders: list[_Contender], options: Options) -> None:
    seconds = 4.0 if options.quick else options.minutes * 60
    started = time.monotonic()
    with ExitStack() as stack:
        for each in contenders:
            stack.enter_context(_publishing(each.server, seconds))
        while time.monotonic() - started < seconds:
            with ExitStack() as silent:
                for each in contenders:
                    silent.enter_context(_others(each.server, options, read=False)).open_all()
                until = min(time.monotonic() + RENEW, started + seconds)
                while time.monotonic() < until:
                    for each in contenders:
                        each.memory.append((time.monotonic() - started, each.server.pss() / 2**20))
                    time.sleep(SAMPLE / (4 if options.quick else 1))


def _publishing(server: Server, seconds: float) -> Paced:
    rate = RATE / 2  # all servers at once
    return Paced(
        lambda group: server.publish("orders", group),
        lambda: payload(BYTES),
        rate=rate,
        group=1,
        events=int(seconds * rate),
    )


def _row(each: _Contender) -> Row:
    pairs = zip(each.others_read, each.others_do_not, strict=True)
    moved = (statistics.median(without / with_all for with_all, without in pairs) - 1) * 100
    # The first half fills buffers and history.
    half, quarter = len(each.memory) // 2, len(each.memory) // 4
    middle = statistics.median(value for _, value in each.memory[half : half + quarter])
    end = statistics.median(value for _, value in each.memory[half + quarter :])
    grown = (end / middle - 1) * 100
    lost = each.clients.stats().lost
    figures: dict[str, Figure] = {
        "p99 ms, all read": statistics.median(each.others_read),
        "p99 ms, 10 % do not": statistics.median(each.others_do_not),
        "moved by %": moved,
        "PSS MB at first": each.memory[0][1],
        "PSS MB at the end": end,
        "grown by % in the last half": grown,
        "thrown out": "not told" if (thrown := each.server.thrown_out()) is None else thrown,
        "readers lost": lost,
    }
    targets: tuple[Target, ...] = ()
    if each.server.name == "sse-gateway":
        targets = (
            Target(f"p99 moved by {moved:.1f} % < 10 %", moved < 10),
            Target(f"memory grown by {grown:.1f} % < 3 %", grown < 3),
            Target(f"readers lost {lost} = 0", not lost),
        )
    return Row(each.server.name, each.server.workers, figures, targets, series=each.memory)


SCENARIO = Scenario(
    "slow",
    "One client in ten never reads",
    f"{READING:,} streams read and are measured; {OTHERS} more read in one half of a round and never do "
    f"in the other. {RATE} events a second of {BYTES:,} bytes, halves of {PHASE:.0f} s, medians of "
    f"{ROUNDS} rounds in turns (moved: of their ratios). Then the memory of all servers is watched for "
    "minutes, side by side, with "
    f"half the rate; those that do not read give up and come back every {RENEW:.0f} s. Thrown out is how "
    "many streams the server says that it ended for not reading.",
    measure,
    limit=400,
)
