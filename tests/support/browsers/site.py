"""A site with an empty page and the client: what the tabs of the tests have open."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from tests.support.issuer import serving

CLIENT = Path(__file__).parents[3] / "client" / "client.js"

# What the page's own scripts say, and what they throw: WebKitGTK tells no driver of its console.
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>page</title>
<script>
  window.noise = [];
  for (const level of ["debug", "log", "info", "warn", "error"]) {
    const say = console[level];
    console[level] = (...words) => { noise.push(`${level}: ${words.join(" ")}`); say.apply(console, words); };
  }
  addEventListener("error", (event) => noise.push(`thrown: ${event.message}`));
  addEventListener("unhandledrejection", (event) => noise.push(`rejected: ${event.reason}`));
</script>
</html>
"""


@dataclass(frozen=True)
class Site:
    """Answers for every host on one port, so one site is as many origins as there are names for loopback."""

    port: int

    def origin(self, host: str = "127.0.0.1") -> str:
        """Return the origin of a host; the browsers themselves resolve ``*.localhost``."""
        return f"http://{host}:{self.port}"


@asynccontextmanager
async def site_running() -> AsyncIterator[Site]:
    """Serve ``/client.js`` as it is in the repository, and the page on every other path."""
    async with serving(_answer) as url:
        yield Site(int(url.rpartition(":")[2]))


async def _answer(request: web.BaseRequest) -> web.Response:
    if request.path == "/client.js":
        return web.Response(body=CLIENT.read_bytes(), content_type="text/javascript", charset="utf-8")
    return web.Response(text=PAGE, content_type="text/html")
