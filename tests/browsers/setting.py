"""The gateway, the hosts and the clock of these tests, and what docs/browsers.md says."""

import time
from pathlib import Path
from typing import Any

import jwt

from tests.support.browsers.listener import connect, listen
from tests.support.browsers.site import Site
from tests.support.browsers.tab import Engine, Tab
from tests.support.gateway import Gateway, merged

DOCS = Path(__file__).parents[2] / "docs" / "browsers.md"
SECRET = "s" * 32
APP, HOST = "app.example.localhost", "events.example.localhost"
"""A page's host and the gateway's, which are of one site."""

NATIVE, OURS = "native", "ours"
"""An EventSource as the browser has it, and the client."""

SOON: dict[str, Any] = {"minDelay": 200, "maxDelay": 400}
"""Delays of the client in milliseconds, for tests that are not about them."""


def config(site: Site, **over: Any) -> Any:
    """Return a configuration that lets the site's pages in, with every kind of credential."""
    base = {
        "cors": {"origins": [site.origin(), site.origin(APP)], "credentials": True},
        "timeouts": {"retry": "300ms"},
        "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET, "leeway": "1ms"}, "cookie": "token"},
        "channels": {"private": {"from": [{"source": "hooks", "topic": "private"}], "access": "token"}},
    }
    return merged(base, over)


def token(lives: float = 600) -> str:
    """Return a token for the channel ``private`` that is good for so many seconds."""
    return jwt.encode({"exp": time.time() + lives, "sub": "42", "channels": ["private"]}, SECRET)


async def start(kind: str, tab: Tab, base: str, channel: str, **options: Any) -> None:
    """Listen to a channel; ``credentials`` is as of `fetch`."""
    if kind == OURS:
        await connect(tab, base, channel, **{**SOON, **options})
    else:
        with_credentials = options.get("credentials") == "include"
        await listen(tab, f"{base}/events/{channel}", withCredentials=with_credentials)


def documented(engine: Engine, fact: str) -> str:
    """Return what docs/browsers.md says in the row of a fact."""
    rows = [line.strip("| \n").split(" | ") for line in DOCS.read_text().splitlines() if line.startswith("|")]
    (column,) = {row.index(engine.title) for row in rows if row[0] == "EventSource"}
    (cell,) = {row[column] for row in rows if row[0] == fact}
    return cell


def is_open(gateway: Gateway, count: int) -> bool:
    """Tell whether the gateway has just so many streams."""
    return len(gateway.daemon.streams.active) == count
