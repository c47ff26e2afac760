"""Command lines of the docs, run by a shell."""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, STDOUT

from tests.support.deadline import safety_net

TRIED = "--max-time 1 "
"""How the docs end curl on a stream. Here `output` ends it, and a slow machine may take longer."""


async def output(line: str, marker: str, **environ: str) -> str:
    """Run a line until it has printed ``marker``, kill what still runs, and return what it printed.

    Raises AssertionError if it ends without.
    """
    child = await asyncio.create_subprocess_shell(
        line.replace(TRIED, ""),
        stdout=PIPE,
        stderr=STDOUT,
        env={**os.environ, **environ},
        start_new_session=True,
    )
    assert child.stdout is not None
    said = b""
    try:
        async with safety_net():
            while marker.encode() not in said:
                part = await child.stdout.read(65536)
                assert part, said.decode()
                said += part
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
    return said.decode()
