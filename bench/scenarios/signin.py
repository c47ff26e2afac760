"""What a token adds to a handshake: verified for the first time, and remembered."""

import statistics
import time
from collections.abc import Iterator, Sequence

from bench.load import load
from bench.scenarios.base import Options, Row, Scenario, all_delivered
from bench.servers import run
from bench.servers.base import Setup
from bench.servers.gateway import token

STREAMS = 5000
ROUNDS = 3
SECONDS = 60.0

CASES: tuple[tuple[str, str, bool], ...] = (
    ("public channel, no token", "", False),
    ("HS256, each token seen for the first time", "HS256", False),
    ("HS256, tokens remembered", "HS256", True),
    ("RS256, each token seen for the first time", "RS256", False),
    ("RS256, tokens remembered", "RS256", True),
)


def measure(options: Options) -> Iterator[Row]:
    """Open streams with tokens of each kind, every user with one of their own, in alternating rounds."""
    streams = options.pick(STREAMS, 100)
    tokens = {kind: _tokens(kind, streams) for kind in ("HS256", "RS256")}
    cpu: dict[str, list[float]] = {name: [] for name, _, _ in CASES}
    failed = dict.fromkeys(cpu, 0)
    for _ in range(options.pick(ROUNDS, 1)):
        for name, kind, is_known in CASES:
            cost, lost = _opened(kind, tokens.get(kind, ()), streams, twice=is_known)
            cpu[name].append(cost)
            failed[name] += lost
    public = statistics.median(cpu[CASES[0][0]])
    for name, _, _ in CASES:
        cost = statistics.median(cpu[name])
        figures = {"CPU us per handshake": cost, "us more than public": cost - public}
        yield Row(name, 1, figures, (all_delivered(failed[name], 0),))


def _tokens(kind: str, count: int) -> Sequence[str]:
    return [token(["orders"], kind, subject=str(number)) for number in range(count)]


def _opened(kind: str, tokens: Sequence[str], streams: int, *, twice: bool) -> tuple[float, int]:
    """Return the CPU microseconds of the gateway per handshake, and how many failed."""
    targets = [f"/events/orders\tAuthorization: Bearer {each}" for each in tokens] or ["/events/orders"]
    with run("gateway", Setup(token=kind)) as server:
        if twice:
            with load(server.port, targets, streams, source=20) as first:
                first.open()
        else:  # what is made once is made
            with load(server.port, [server.target("orders")], 100, source=20) as first:
                first.open()
        time.sleep(0.5)
        with load(server.port, targets, streams) as clients:
            cpu = server.cpu()
            opened = clients.open(seconds=SECONDS)
            return (server.cpu() - cpu) / streams * 1e6, streams - opened.live


SCENARIO = Scenario(
    "signin",
    f"{STREAMS:,} users sign in",
    f"Each opens a stream with a token of its own, 500 handshakes under way at once; medians of {ROUNDS} "
    "rounds, in turns, each on a fresh server. RS256 is with a key of 2,048 bits. All limits are on: "
    "connections are counted by address and by user.",
    measure,
)
