"""Abuse of every kind against a gateway process, while honest clients read: they must not notice."""

import asyncio
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.abuses import ABUSES, Attacker, prepare
from tests.checker import Run, running
from tests.support.deadline import SAFETY_SECONDS
from tests.support.gateway import BASE, eventually, merged
from tests.support.node import Node

pytestmark = [pytest.mark.extended, pytest.mark.timeout(1200)]  # a safety net like all deadlines

HONEST = "127.0.0.1"
STEADY, COMING = 40, 10
"""Honest clients that stay, and that come back all the time."""

DOSES, TOGETHER = 200, 60
"""Doses of a round, and how many of them at once; those of `ALL_AT_ONCE` all."""

MALFORMED = 350
"""Of a round: more than 1,000 in all."""

ALL_AT_ONCE = ("slowloris", "silence", "connects")
PER_ADDRESS = 80
"""Streams of one address; it is cut beyond this and a slack of 64, which 200 connections are."""

ROUNDS = 8
"""Most rounds after the first one, which fills what is filled once: caches, pools, the allocator's arenas."""

GROWN = 4 << 20
"""Bytes by which memory grows in each of these rounds if 20 KB of each dose are kept; one must cost less."""

EVENTS = 1000
"""Events that honest clients have received before they are judged."""

REFUSALS_PER_SECOND = 10
"""Lines of refusals, as docs/operations.md promises; and as many again may come at once."""

REQUEST_TIMEOUT = "3s"
"""``slowloris`` and ``silence`` wait for it in every round; honest posts must not run into it."""

STREAMS_PER_SECOND = 200
"""limits.connect_rate_per_address, and with it the lines ``stream_opened`` of one address."""

CAN_NEVER_WORK = {"400", "413", "414", "417", "422", "431"}
ANSWERS = {
    "slowloris": {"408", "cut"},
    "silence": {"cut"},
    "header_flood": {"200", "400", "414", "431", "cut"},
    "oversize": {"400", "413", "422", "503", "cut"},
    "bombs": {"400", "413", "415", "422", "503", "cut"},
    "malformed": {*CAN_NEVER_WORK, "505", "200", "401", "403", "404", "405", "408", "411", "415", "cut"},
    "connects": {"200", "cut"},
    "chatter": {"200", "400", "cut"},
    "forged_ids": {"200"},
    "forged_answers": {"400", "403", "413", "429"},
    "smuggling": {"200", *CAN_NEVER_WORK},
}
"""What each may be answered. 503 is for the third large body of one address at once.

An attacker who still sends when he is answered may find his connection cut instead: TCP allows it.
"""

MAY_BE_UNANSWERED = {"silence", "slowloris"}
"""Who says nothing, or never stops, may see no answer at all; of all others some must."""


def config() -> dict[str, Any]:
    dump = {"from": [{"source": "hooks", "topic": "dump"}], "access": "public", "ack": {}}
    channels = {"dump": dump}
    limits = {
        "webhook_body": "1MiB",
        "connections_per_address": PER_ADDRESS,
        "connect_rate_per_address": f"{STREAMS_PER_SECOND}/s",
    }
    over = {
        "server": {"trusted_proxies": ["192.0.2.9"]},  # so the addresses of this machine are clients
        "timeouts": {"request": REQUEST_TIMEOUT},
        "limits": limits,
        "channels": channels,
    }
    return dict(merged(BASE, over))


class Watched:
    """What a gateway's process has, from outside."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._proc = Path(f"/proc/{node.pid}")
        self.began = time.monotonic()
        self._lines = len(node.lines())

    @property
    def memory(self) -> int:
        """Resident bytes that are its own."""
        fields = (line.split() for line in (self._proc / "smaps_rollup").read_text().splitlines())
        return sum(int(field[1]) << 10 for field in fields if field[0].startswith("Private_"))

    @property
    def files(self) -> int:
        """Descriptors."""
        return len([*(self._proc / "fd").iterdir()])

    def caused(self) -> Counter[str]:
        """Return how many lines of each kind were written since, without those about honest streams."""
        lines = self._node.lines()
        honest = {line.get("connection") for line in lines if line.get("client") == HONEST}
        strange = [
            line
            for line in lines[self._lines :]
            if line.get("client") != HONEST and line.get("connection") not in honest - {None}
        ]
        bad = [line for line in strange if line["level"] == "error" or "exception" in line]
        assert not bad, bad[0]
        return Counter(line["event"] for line in strange)


def attacker_of(node: Node) -> Attacker:
    """Return an attacker who has a channel to himself, and is patient enough to see each answer."""
    hook = "/hooks/hooks?topic=dump"
    return Attacker(node.port, channel="dump", hook=hook, patience=SAFETY_SECONDS, large=3)


async def attack(name: str, attacker: Attacker, round: int) -> None:
    """Give a round of doses."""
    doses = MALFORMED if name == "malformed" else DOSES
    room = asyncio.Semaphore(DOSES if name in ALL_AT_ONCE else TOGETHER)

    async def give(number: int) -> None:
        async with room:
            await ABUSES[name](attacker, number)

    await asyncio.gather(*(give(round * doses + number) for number in range(doses)))


async def settled(run: Run) -> None:
    """Let most clients stay for good, and wait until each has the stream that it stays on."""
    for client in run.clients[COMING:]:
        client.patience = math.inf
    await eventually(lambda: all(client.is_staying for client in run.clients[COMING:]))


@pytest.mark.parametrize("name", ABUSES)
async def test_honest_clients_do_not_notice(name: str, tmp_path: Path) -> None:
    """No event lost or doubled, no stream cut, nothing kept in memory, no flood in the log, no traceback."""
    await asyncio.to_thread(prepare)
    node = Node(tmp_path, config())
    async with running([node], clients=STEADY + COMING, pace=0.02) as run:
        await settled(run)
        watched, attacker = Watched(node), attacker_of(node)
        steady = [client.resumes for client in run.clients[COMING:]]
        files = watched.files
        grown: list[int] = []
        for round in range(ROUNDS + 1):
            memory = watched.memory
            await attack(name, attacker, round)
            await eventually(lambda: watched.files <= files + COMING)
            grown.append(watched.memory - memory)
            if min(grown[1:], default=GROWN) < GROWN:
                break
        assert [client.resumes for client in run.clients[COMING:]] == steady, "a stream was cut"
        verdict = await run.finish(events=EVENTS, resumes=COMING + 1)
        caused, seconds = watched.caused(), time.monotonic() - watched.began
    assert verdict.is_clean and not verdict.told, verdict
    assert set(attacker.answers) <= ANSWERS[name], attacker.answers
    assert name in MAY_BE_UNANSWERED or set(attacker.answers) - {"cut"}, attacker.answers
    assert min(grown[1:]) < GROWN, f"{[each >> 10 for each in grown]} KiB"
    opened, closed = caused.pop("stream_opened", 0), caused.pop("stream_closed", 0)
    assert closed <= opened <= STREAMS_PER_SECOND * (seconds + 1)
    assert caused.total() <= REFUSALS_PER_SECOND * (seconds + 1), caused
    assert "Traceback" not in node.log.read_text()
