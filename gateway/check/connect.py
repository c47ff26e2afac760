"""Everything that a file names, tried at once: servers, endpoints, certificates, the log.

What is tried uses the gateway's own code wherever it can, so what is said here is what a start would say.
It leaves nothing behind but a marker on the gateway's own Redis channel, and a key that Redis forgets within
a second.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from structlog.testing import capture_logs

from gateway.check import deciders, files, logs, upstreams
from gateway.check.words import plain
from gateway.config.model import Config
from gateway.doctor.finding import Finding, bad

DEADLINE_SECONDS = 20.0
"""How long one of them may take, if its own timeouts in the file do not end it before."""

_Try = Coroutine[Any, Any, Finding]


async def connect(config: Config) -> Sequence[Finding]:
    """Return what came of each, in the file's order."""
    # What the gateway's parts would write to the log is told here in their stead; aiokafka's goes nowhere.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    with capture_logs():
        return await asyncio.gather(*(_bounded(what, each) for what, each in _tries(config)))


def _tries(config: Config) -> Iterator[tuple[str, _Try]]:
    yield from files.tries(config)
    yield from logs.tries(config)
    yield from deciders.tries(config)
    yield from upstreams.tries(config)


async def _bounded(what: str, each: _Try) -> Finding:
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await each
    except TimeoutError:
        return bad(what, f"no answer within {DEADLINE_SECONDS:g} s", "see whether a firewall is between")
    except Exception as error:  # one that fails in a way of its own must not hide the others
        return bad(what, plain(error), "correct it in the file, or where it leads to")
