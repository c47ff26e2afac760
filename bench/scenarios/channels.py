"""Many channels: events round-robin over a hundred, and what ten thousand that nobody posts to cost."""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from bench.load import Load, load
from bench.paced import Paced
from bench.payload import payload
from bench.scenarios.base import Options, Row, Scenario, Target, all_delivered
from bench.servers import MissingError, Server, Setup, label, run

CHANNELS = 100
STREAMS = 100
"""On each channel."""

RATE = 200
"""Events a second, all channels together."""

SECONDS = 10

CONTENDERS = (
    ("gateway", 1),
    ("gateway", 2),
    ("nchan", 1),
    ("nchan", 2),
    ("sse_starlette", 1),
    ("aiohttp_sse", 1),
    ("pushpin", 1),
)

UNRELATED = 10_000
FEW = 10
ROUNDS = 11
POSTS = 200
"""Of a server's turn in a round, each with `BATCH` events."""
BATCH = 10
LISTENERS = 10


def measure(options: Options) -> Iterator[Row]:
    """Post to all channels in turn, on one server after the other."""
    setup = Setup(channels=tuple(f"c{number}" for number in range(CHANNELS)))
    for name, workers in CONTENDERS:
        try:
            with run(name, setup, workers=workers) as server:
                yield _round_robin(server, name == "gateway", options)
        except MissingError as missing:
            yield Row(label(name), workers, note=str(missing))


def _round_robin(server: Server, is_ours: bool, options: Options) -> Row:
    channels = server.setup.channels
    streams = CHANNELS * options.pick(STREAMS, 3)
    events = RATE * options.pick(SECONDS, 1)
    assert events % CHANNELS == 0
    turns = itertools.cycle(channels)
    with load(server.port, [server.target(channel) for channel in channels], streams) as clients:
        opened = clients.open(ahead=server.ahead)
        clients.reset()
        cpu, client = server.cpu(), clients.cpu()

        def publish(group: Sequence[bytes]) -> None:
            server.publish(next(turns), group)

        with Paced(publish, payload, rate=RATE, group=1, events=events) as paced:
            paced.wait(SECONDS * 2)
        wanted = paced.published * clients.live // CHANNELS
        clients.expect_in_all(wanted, seconds=20)
        answer, latency = clients.arrived(), clients.stats().latency
        missing = wanted - answer.events
        return Row(
            server.name,
            server.workers,
            {
                "published/s": paced.rate,
                "delivered %": 100 * answer.events / max(1, wanted),
                "CPU us per delivery": (server.cpu() - cpu) / max(1, answer.events) * 1e6,
                "p50 ms": latency.percentile(0.5) * 1e3,
                "p99 ms": latency.percentile(0.99) * 1e3,
                "longest ms": latency.longest * 1e3,
                "client's CPU us": (clients.cpu() - client) / max(1, answer.events) * 1e6,
            },
            (all_delivered(sum(opened.failed.values()), missing),) if is_ours else (),
            f"failed: {opened.failed}" if opened.failed else paced.error,
        )


def measure_unrelated(options: Options) -> Iterator[Row]:
    """Post to one channel of two gateways in turns: one has few other channels, one has many."""
    with ExitStack() as stack:
        sides = [_side(stack, FEW), _side(stack, options.pick(UNRELATED, 300))]
        costs: list[list[float]] = [[], []]
        for number in range(options.pick(ROUNDS, 2) + 1):
            for (server, clients), cost in zip(sides, costs, strict=True):
                cpu_us = _turn(server, clients, options.pick(POSTS, 20))
                if number:  # what is made once is made
                    cost.append(cpu_us)
        few, many = (statistics.median(cost) for cost in costs)
        more = statistics.median(b / a - 1 for a, b in zip(*costs, strict=True)) * 100
        for (server, _), cpu_us, targets in zip(
            sides, (few, many), ((), (Target(f"more by {more:.1f} % <= 5 %", more <= 5),)), strict=True
        ):
            unrelated = len(server.setup.channels) - 1
            yield Row(
                server.name, 1, {"unrelated channels": unrelated, "CPU us per event": cpu_us}, tuple(targets)
            )


def _side(stack: ExitStack, unrelated: int) -> tuple[Server, Load]:
    names = tuple(f"c{number}" for number in range(unrelated))
    setup = Setup(channels=("orders", *names), heartbeat=600)
    server = stack.enter_context(run("gateway", setup))
    others = stack.enter_context(load(server.port, [server.target(name) for name in names], unrelated))
    clients = stack.enter_context(load(server.port, [server.target("orders")], LISTENERS, source=20))
    for each in (others, clients):
        each.open_all()
    return server, clients


def _turn(server: Server, clients: Load, posts: int) -> float:
    clients.reset()
    cpu = server.cpu()
    for number in range(posts):
        server.publish("orders", [payload() for _ in range(BATCH)])
        clients.expect((number + 1) * BATCH)
        if not clients.arrived().complete:
            raise RuntimeError("not everything arrived")
    return (server.cpu() - cpu) / (posts * BATCH) * 1e6


SCENARIO = Scenario(
    "channels",
    f"{CHANNELS} channels with {STREAMS} streams each",
    f"{RATE} events a second of 100 bytes for {SECONDS} s, each a post of its own to the next channel. "
    "The CPU of "
    "taking a post in is part of the figure, and is shared by only 100 deliveries.",
    measure,
)

UNRELATED_SCENARIO = Scenario(
    "unrelated",
    f"{UNRELATED:,} unrelated channels",
    f"Declared in the file, each with one idle listener, against {FEW}. Events go to one more channel "
    f"with {LISTENERS} "
    f"listeners, {BATCH} in a post, each post once the one before has arrived; medians of {ROUNDS} "
    "alternating rounds, and "
    "of the rounds' ratios.",
    measure_unrelated,
    limit=240,
)
