"""Tries the certificate of the public port."""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any

from gateway.cli.doctor.tls import RENEWAL_WINDOW
from gateway.cli.finding import Finding, bad, ok, warn
from gateway.config.model.config import Config
from gateway.config.model.tls import TlsConfig
from gateway.core.errors import StartupError
from gateway.http.tls.context import load_certificate

_DAY_SECONDS = 86400.0


def pending_checks(config: Config) -> Iterator[tuple[str, Coroutine[Any, Any, Finding]]]:
    """Yield what there is to try."""
    if config.server.tls is not None:
        yield "server.tls", _check_certificate(config.server.tls)


async def _check_certificate(tls: TlsConfig) -> Finding:
    try:
        loaded = await asyncio.to_thread(load_certificate, tls)
    except StartupError as error:
        return bad(
            "server.tls", error.message, "name PEM files: the certificate with its chain, and its own key"
        )
    now, until = time.time(), datetime.fromtimestamp(loaded.valid_until, UTC)
    if now < loaded.valid_from:
        begins = datetime.fromtimestamp(loaded.valid_from, UTC)
        return bad(
            "server.tls",
            f"{tls.certificate} is not valid before {begins:%Y-%m-%d %H:%M} UTC",
            "set the clock of this machine, or wait",
        )
    if now >= loaded.valid_until:
        return bad("server.tls", f"{tls.certificate} expired on {until:%Y-%m-%d %H:%M} UTC", "renew it")
    left = loaded.valid_until - now
    if left < min(RENEWAL_WINDOW.total_seconds(), (loaded.valid_until - loaded.valid_from) / 4):
        return warn(
            "server.tls",
            f"{tls.certificate} and its key fit, until {until:%Y-%m-%d}: {left / _DAY_SECONDS:.0f} days left",
            "renew it, and see why that was not done automatically",
        )
    return ok(
        "server.tls",
        f"{tls.certificate} and its key fit, until {until:%Y-%m-%d} ({left / _DAY_SECONDS:.0f} days)",
    )
