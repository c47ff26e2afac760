"""The certificate of the public port, tried."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from structlog.testing import capture_logs

from gateway.cli.check import auth_checks as deciders
from gateway.cli.check import connect as files
from gateway.cli.check import log_checks as logs
from gateway.cli.check import source_checks as upstreams
from gateway.cli.check.messages import plain
from gateway.cli.doctor.certificate import SOON
from gateway.cli.doctor.finding import Finding, bad, ok, warn
from gateway.config.model.config import Config
from gateway.config.model.tls import Tls
from gateway.core.errors import StartupError
from gateway.http.tls.context import load

_DAY = 86400.0


def tries(config: Config) -> Iterator[tuple[str, Coroutine[Any, Any, Finding]]]:
    """Yield what there is to try."""
    if config.server.tls is not None:
        yield "server.tls", _certificate(config.server.tls)


async def _certificate(tls: Tls) -> Finding:
    try:
        loaded = await asyncio.to_thread(load, tls)
    except StartupError as error:
        return bad(
            "server.tls", error.message, "name PEM files: the certificate with its chain, and its own key"
        )
    now, until = time.time(), datetime.fromtimestamp(loaded.ends, UTC)
    if now < loaded.begins:
        begins = datetime.fromtimestamp(loaded.begins, UTC)
        return bad(
            "server.tls",
            f"{tls.certificate} is not valid before {begins:%Y-%m-%d %H:%M} UTC",
            "set the clock of this machine, or wait",
        )
    if now >= loaded.ends:
        return bad("server.tls", f"{tls.certificate} expired on {until:%Y-%m-%d %H:%M} UTC", "renew it")
    left = loaded.ends - now
    if left < min(SOON.total_seconds(), (loaded.ends - loaded.begins) / 4):
        return warn(
            "server.tls",
            f"{tls.certificate} and its key fit, until {until:%Y-%m-%d}: {left / _DAY:.0f} days left",
            "renew it, and see why that was not done automatically",
        )
    return ok(
        "server.tls", f"{tls.certificate} and its key fit, until {until:%Y-%m-%d} ({left / _DAY:.0f} days)"
    )


# Everything that a file names, tried at once: servers, endpoints, certificates, the log.
#
# What is tried uses the gateway's own code wherever it can, so what is said here is what a start would say.
# It leaves nothing behind but a marker on the gateway's own Redis channel, and a key that Redis forgets
# within a second.

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
