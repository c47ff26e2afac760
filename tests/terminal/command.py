"""The command as a process whose output a test reads line by line."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.deadline import safety_net

ROOT = Path(__file__).parents[2]
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("REDIS_URL", "SSE_GATEWAY_CONFIG", "SSE_GATEWAY_TOKEN", "NO_COLOR")
}


class Command:
    """A process under way."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child

    async def line(self) -> str:
        """Return the next line of standard output."""
        assert self.child.stdout is not None
        async with safety_net():
            return (await self.child.stdout.readline()).decode()

    async def told(self) -> Any:
        """Return the next line, which is JSON."""
        return json.loads(await self.line())

    async def event(self) -> Any:
        """Return the next event, past what else is told."""
        while (told := await self.told())["kind"] != "event":
            pass
        return told

    async def said(self, words: str) -> str:
        """Return the line of standard error that holds these words."""
        assert self.child.stderr is not None
        async with safety_net():
            while words not in (line := (await self.child.stderr.readline()).decode()):
                assert line, f"it ended and never said {words!r}"
        return line

    async def end(self) -> tuple[int, str, str]:
        """Return exit status, and what was not read yet of output and errors."""
        async with safety_net():
            out, err = await self.child.communicate()
        assert self.child.returncode is not None
        return self.child.returncode, (out or b"").decode(), err.decode()


@asynccontextmanager
async def started(
    *arguments: str, stdout: int = asyncio.subprocess.PIPE, **environ: Any
) -> AsyncIterator[Command]:
    """Run ``sse-gateway`` with these arguments for the length of a block."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        stdin=asyncio.subprocess.DEVNULL, stdout=stdout, stderr=asyncio.subprocess.PIPE,
        cwd=ROOT, env={**CLEAN, **environ},
    )  # fmt: skip
    try:
        yield Command(child)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def ran(*arguments: str, **environ: Any) -> tuple[int, str, str]:
    """Run ``sse-gateway`` to its end; return exit status, output and errors."""
    async with started(*arguments, stdout=asyncio.subprocess.PIPE, **environ) as command:
        return await command.end()
