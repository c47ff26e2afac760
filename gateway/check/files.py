"""The certificate of the public port, tried."""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any

from gateway.config.model import Config
from gateway.config.tls import Tls
from gateway.doctor.certificate import SOON
from gateway.doctor.finding import Finding, bad, ok, warn
from gateway.errors import StartupError
from gateway.http.tls import load

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
