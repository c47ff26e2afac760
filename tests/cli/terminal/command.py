"""The command, called in this process, or as a process whose output a test reads line by line.

A process of its own takes most of a second to start: it is for what only a process has, such as signals, a
terminal, a pipe and the end of the interpreter.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from structlog.testing import capture_logs

from gateway.cli.main import main
from tests.support.deadline import safety_net

ROOT = Path(__file__).parents[3]
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
        """Return the next event, and skip other lines."""
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


async def called(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """Call ``sse-gateway`` in a thread of this process; return exit status, output and errors.

    Output goes to files, so that it has a descriptor, as the command needs it. One call at a time: they share
    ``sys.stdout`` and the environment.
    """
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
    ):
        with (
            capture_logs(),  # of a gateway in this process, whose log would be in the output
            redirect_stdout(out),
            redirect_stderr(err),
            mock.patch.dict(os.environ, {**CLEAN, **environ}, clear=True),
        ):
            async with safety_net():
                status = await asyncio.to_thread(_status, arguments)
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


def _status(arguments: tuple[str, ...]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:  # argparse, at wrong usage
        return int(error.code or 0)
