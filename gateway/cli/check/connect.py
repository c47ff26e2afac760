"""Everything that a file names, tried at once: servers, endpoints, certificates, the log.

What is tried uses the gateway's own code wherever it can, so what is said here is what a start would say.
It leaves nothing behind but a marker on the gateway's own Redis channel, and a key that Redis forgets
within a second.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from structlog.testing import capture_logs

from gateway.cli.check import auth_checks, source_checks, tls_checks
from gateway.cli.check import broker_checks as log_checks
from gateway.cli.check.messages import describe_upstream_error
from gateway.cli.finding import Finding, bad
from gateway.config.model.config import Config

CHECK_TIMEOUT_SECONDS = 20.0
"""How long one of them may take, if its own timeouts in the file do not end it before."""

_Check = Coroutine[Any, Any, Finding]


async def run_connection_checks(config: Config) -> Sequence[Finding]:
    """Return what came of each, in the file's order."""
    # What the gateway's parts would write to the log is told here in their stead; aiokafka's goes nowhere.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    with capture_logs():
        return await asyncio.gather(*(_run_check(what, each) for what, each in _all_pending_checks(config)))


def _all_pending_checks(config: Config) -> Iterator[tuple[str, _Check]]:
    yield from tls_checks.pending_checks(config)
    yield from log_checks.pending_checks(config)
    yield from auth_checks.pending_checks(config)
    yield from source_checks.pending_checks(config)


async def _run_check(what: str, check: _Check) -> Finding:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            return await check
    except TimeoutError:
        return bad(what, f"no answer within {CHECK_TIMEOUT_SECONDS:g} s", "see whether a firewall is between")
    except Exception as error:  # one that fails in a way of its own must not hide the others
        return bad(what, describe_upstream_error(error), "correct it in the file, or where it leads to")
