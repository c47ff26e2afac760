"""Tries everything that a configuration names at once: certificate, log, authentication and sources.

The checks use the gateway's own code wherever they can, so that they report what a start would. They leave
nothing behind but a marker on the gateway's own Redis channel, and a key that expires within a second.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from structlog.testing import capture_logs

from gateway.cli.check import auth_checks, broker_checks, source_checks
from gateway.cli.check.messages import describe_upstream_error
from gateway.cli.doctor.tls import RENEWAL_WINDOW
from gateway.cli.finding import Finding, bad, ok, warn
from gateway.config.model.config import Config
from gateway.config.model.tls import TlsConfig
from gateway.core.errors import StartupError
from gateway.http.tls.context import load_certificate

CHECK_TIMEOUT_SECONDS = 20.0
"""Longest time of a check, unless the configuration's own timeouts end it earlier."""

_DAY_SECONDS = 86400.0


async def run_connection_checks(config: Config) -> Sequence[Finding]:
    """Return the finding of each check, in the configuration's order."""
    # The findings replace the log lines of the gateway's own code. aiokafka's are dropped.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    with capture_logs():
        return await asyncio.gather(*(_run_check(what, each) for what, each in _pending_checks(config)))


def _pending_checks(config: Config) -> Iterator[tuple[str, Coroutine[Any, Any, Finding]]]:
    if config.server.tls is not None:
        yield "server.tls", _check_certificate(config.server.tls)
    yield broker_checks.SETTING, broker_checks.check_broker(config.broker)
    yield from auth_checks.pending_checks(config)
    yield from source_checks.pending_checks(config)


async def _run_check(what: str, check: Coroutine[Any, Any, Finding]) -> Finding:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            return await check
    except TimeoutError:
        return bad(what, f"no answer within {CHECK_TIMEOUT_SECONDS:g} s", "check for a firewall in between")
    except Exception as error:  # an unexpected failure must not hide the other findings
        return bad(what, describe_upstream_error(error), "correct the setting, or the server that it names")


async def _check_certificate(tls: TlsConfig) -> Finding:
    what = "server.tls"
    try:
        loaded = await asyncio.to_thread(load_certificate, tls)
    except StartupError as error:
        return bad(what, error.message, "name PEM files: the certificate with its chain, and its own key")
    now, until = time.time(), datetime.fromtimestamp(loaded.valid_until, UTC)
    if now < loaded.valid_from:
        start = datetime.fromtimestamp(loaded.valid_from, UTC)
        found = f"{tls.certificate} is not valid before {start:%Y-%m-%d %H:%M} UTC"
        return bad(what, found, "set the clock of this machine, or wait")
    if now >= loaded.valid_until:
        return bad(what, f"{tls.certificate} expired on {until:%Y-%m-%d %H:%M} UTC", "renew it")
    left = loaded.valid_until - now
    found = (
        f"{tls.certificate} and its key match, valid until {until:%Y-%m-%d} ({left / _DAY_SECONDS:.0f} days)"
    )
    if left < min(RENEWAL_WINDOW.total_seconds(), (loaded.valid_until - loaded.valid_from) / 4):
        return warn(what, found, "renew it, and find why that was not done automatically")
    return ok(what, found)
