"""Our client in Node: what it tells, as it comes."""

import asyncio
import json
import signal
from asyncio.subprocess import PIPE
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.deadline import safety_net
from tests.support.gateway import eventually
from tests.support.needs import need

SCRIPT = Path(__file__).parent / "follow.mjs"


class Following:
    """What clients in one process told so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.said: list[dict[str, Any]] = []
        self.delays_of: dict[int, list[int]] = defaultdict(list)
        """By client, the milliseconds that it said it would wait."""
        self.times: Counter[str] = Counter()
        """How often each state came, a clock was ``moved``, and a ``watchdog`` began to wait for a byte."""
        self._process = process

    def sleep(self) -> None:
        """Let nothing run any more, as on a machine that is shut."""
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def later(self, milliseconds: int) -> None:
        """Move the clock of clients that have one of their own; returns when all timers that are due have run."""
        assert self._process.stdin is not None
        moved = self.times["moved"]
        self._process.stdin.write(f"{milliseconds}\n".encode())
        await eventually(lambda: self.times["moved"] > moved)

    async def hears(self) -> None:
        """Wait for a byte that a client with a clock of its own has not heard yet."""
        heard = self.times["watchdog"]
        await eventually(lambda: self.times["watchdog"] > heard)

    @property
    def events(self) -> list[Any]:
        """Payloads, and of a gap its reason, in order."""
        events = [each["event"] for each in self.said if "event" in each]
        return [event["reason"] if event["type"] == "stream.gap" else event["payload"] for event in events]

    @property
    def changes(self) -> list[dict[str, Any]]:
        """States with reason and delay."""
        return [each["change"] for each in self.said if "change" in each]

    @property
    def states(self) -> list[str]:
        return [change["state"] for change in self.changes]

    @property
    def reasons(self) -> list[str]:
        """Why it waited or was closed, each time."""
        return [change["reason"] for change in self.changes if "reason" in change]

    @property
    def delays(self) -> list[int]:
        """Milliseconds that it waited, each time."""
        return [change["delay"] for change in self.changes if "delay" in change]

    @property
    def asked(self) -> list[str | None]:
        """With what its page was asked for a token: None, or the one that was refused."""
        return [each["asked"] for each in self.said if "asked" in each]

    @property
    def faults(self) -> list[str]:
        return [each["fault"] for each in self.said if "fault" in each]

    async def until(self, state: str, times: int = 1) -> None:
        """Wait until a state came so often."""
        await eventually(lambda: self.times[state] >= times)

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Take what the process prints, to its end."""
        async for line in stream:
            told = json.loads(line)
            self.said.append(told)
            change = told.get("change", {})
            self.times.update(each for each in (change.get("state"), *told) if each)
            if "delay" in change:
                self.delays_of[told["client"]].append(change["delay"])


@asynccontextmanager
async def following(url: str, options: dict[str, Any], **more: Any) -> AsyncIterator[Following]:
    """Run clients in a Node process that ends with the block; ``more`` is what ``follow.mjs`` takes."""
    about = json.dumps({"url": url, "options": {"minDelay": 50, "maxDelay": 200, **options}, **more})
    process = await asyncio.create_subprocess_exec(
        *(need("node", "nodejs"), SCRIPT, about), stdin=PIPE, stdout=PIPE, limit=2**24
    )
    assert process.stdout is not None
    told = Following(process)
    reading = asyncio.create_task(told.read(process.stdout))
    try:
        yield told
    finally:
        if process.returncode is None:
            process.kill()
        async with safety_net():
            await process.wait()
            await reading
