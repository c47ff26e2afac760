"""The console in a browser: reports that never change, what must hold of any state of the page, and pictures."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

from gateway.admin.console_page import ConsolePage as ConsolePage
from gateway.core.sse import encode_frame
from tests.support.deadline import safety_net
from tests.support.issuer import serving

PICTURES = Path(__file__).parents[1] / "integration" / "console"
README = Path(__file__).parents[2] / "docs" / "images" / "console.webp"
README_SHOWS = "busy-1280-light"
REWRITE = "SSE_GATEWAY_REWRITE_PICTURES"
"""Set it to 1 to make the baselines anew; look at each before it is committed."""

NOW = 1_763_870_400_000
SHRINK = 6
"""A baseline has this many times fewer pixels in each direction."""

LARGEST_DIFFERENCE = {360: 0.12, 1280: 0.04}
"""By the page's width, the share of a picture's cells that may look different.

Measured in light and dark: five other fonts change at most 0.102 and 0.018 of them, a panel or its place, a
ground or a size at least 0.143 and 0.062.
"""

NEVER_SILENT = """
(() => {
  const { setTimeout } = window;
  window.setTimeout = (call, delay, ...given) => (delay >= 15_000 ? 0 : setTimeout(call, delay, ...given));
})();
"""
"""For a page whose figures stand still: it must not take its server for one that went silent."""

_DRAWN = """
async () => {
  await document.fonts.ready;
  await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
}
"""

_OVERFLOWS = """() => document.documentElement.scrollWidth - window.innerWidth"""

_FAULTS = """
() => {
  const shown = [];
  const faults = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "NOSCRIPT", "TEXTAREA", "OPTION"].includes(parent.tagName)) continue;
    if (parent.closest(".hidden, .skip, thead") || parent.closest("noscript, .log") || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      if (box.left < -1 || box.right > innerWidth + 1) faults.push(`outside: ${node.data}`);
      for (let up = parent; up && up !== document.body; up = up.parentElement) {
        const edge = up.getBoundingClientRect();
        const clips = getComputedStyle(up).overflow !== "visible";
        if (clips && (box.right > edge.right + 1 || box.bottom > edge.bottom + 1)) faults.push(`clipped: ${node.data}`);
      }
      shown.push([node, box]);
    }
  }
  for (const [index, [one, a]] of shown.entries()) {
    for (const [two, b] of shown.slice(index + 1)) {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (one !== two && across > 2 && down > 5) faults.push(`overlap: ${one.data} / ${two.data}`);
    }
  }
  return faults;
}
"""

_SHRUNK = """
async ([picture, shrink, type]) => {
  const image = await createImageBitmap(await (await fetch(picture)).blob());
  const canvas = new OffscreenCanvas(Math.round(image.width / shrink), Math.round(image.height / shrink));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const bytes = new Uint8Array(await (await canvas.convertToBlob({ type, quality: 0.85 })).arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}
"""

# Both pictures are drawn into one grid, whatever their height: other fonts make a page somewhat longer. A cell is as
# good as the nearest one of the other picture, because they also move what stands below them.
_DIFFERENCE = """
async ([one, two]) => {
  const [columns, rows, near, limit] = [16, 24, 1, 4];
  const grids = [];
  for (const picture of [one, two]) {
    const image = await createImageBitmap(await (await fetch(picture)).blob());
    const canvas = new OffscreenCanvas(columns, rows);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, columns, rows);
    grids.push(context.getImageData(0, 0, columns, rows).data);
  }
  const far = (a, i, b, j) => Math.max(...[0, 1, 2].map((c) => Math.abs(a[4 * i + c] - b[4 * j + c])));
  const unlike = (a, b) => {
    let count = 0;
    for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
      let least = 255;
      for (let v = Math.max(0, y - near); v <= Math.min(rows - 1, y + near); v++)
        for (let u = Math.max(0, x - near); u <= Math.min(columns - 1, x + near); u++)
          least = Math.min(least, far(a, y * columns + x, b, v * columns + u));
      if (least > limit) count++;
    }
    return count / (rows * columns);
  };
  return Math.max(unlike(grids[0], grids[1]), unlike(grids[1], grids[0]));
}
"""


def source(name: str, **over: Any) -> dict[str, Any]:
    """Return a source of a report."""
    told = {
        "name": name, "type": "redis-pubsub", "status": "up", "since_ms": NOW - 7_200_000, "last_event_ms": NOW - 2_000,
        "last_error": None, "lag": None, "stale": False, "received": 120_345, "rejected": {}, "restarts": 0,
    }  # fmt: skip
    return told | over


def channel(name: str, listeners: int = 0, into: int = 0, *feeds: str, **over: Any) -> dict[str, Any]:
    """Return a channel of a report; ``into`` events a second come in."""
    told = {"name": name, "listeners": listeners, "published": into, "delivered": into * listeners // 40}
    return {**told, "from": list(feeds) or [f"hooks: {name}"], "stale": False, **over}


def refusal(code: str, reason: str, **over: Any) -> dict[str, Any]:
    """Return a refusal of a report."""
    told = {
        "kind": "stream",
        "code": code,
        "reason": reason,
        "source": None,
        "origin": None,
        "client": "203.0.113.9",
    }
    return {**told, "count": 1, "last_at_ms": NOW - 4_000, **over}


def report(**over: Any) -> dict[str, Any]:
    """Return what ``/status`` tells of a quiet gateway, with ``over`` in place of its own."""
    names = ("opened", "refused", "received", "rejected", "published", "delivered", "bytes_sent", "gaps")
    told = {
        "version": "0.1.0", "now_ms": NOW, "development": False, "uptime_seconds": 7_260.0, "ready": True, "not_ready": [],
        "broker": {"type": "sqlite", "up": True, "head": "1763870400000-0"},
        "streams": {"active": 0, "lagging": 0, "limit": 15_000, "lag_seconds": 0},
        "totals": dict.fromkeys((*names, "lag_seconds", "lag_count"), 0),
        "sources": [source("hooks", type="webhook", last_event_ms=None, received=0)],
        "channels": [channel("orders")],
        "recent_errors": [],
    }  # fmt: skip
    return told | over


def over_time(last: dict[str, Any], seconds: int = 120) -> list[dict[str, Any]]:
    """Return a report for each second up to the given one, in which what counts has grown."""
    told = []
    for second in range(seconds + 1):
        wave = (second * 7 % 11 - 5) * 0.02 + (second / seconds) ** 2
        share = second / seconds
        streams = last["streams"] | {"active": round(last["streams"]["active"] * (0.4 + 0.6 * share))}
        totals = {name: round(value * (second + wave)) for name, value in last["totals"].items()}
        totals["lag_seconds"] = last["totals"]["lag_seconds"] * (second + wave)
        totals["gaps"] = last["totals"]["gaps"]
        channels = [
            each | {name: round(each[name] * second) for name in ("published", "delivered")}
            for each in last["channels"]
        ]
        now = NOW - 1000 * (seconds - second)
        told.append(last | {"now_ms": now, "streams": streams, "totals": totals, "channels": channels})
    told[-1]["streams"] = last["streams"]
    return told


class Frozen:
    """A server of the console whose figures stand still."""

    def __init__(self, reports: Sequence[dict[str, Any]], *, is_lost: bool, is_locked: bool) -> None:
        self._reports = reports
        self._is_lost = is_lost
        self._is_locked = is_locked
        self._asked = 0
        self.over = asyncio.Event()

    async def handle(self, request: Any) -> web.StreamResponse:
        if request.path == "/":
            return await ConsolePage()._get(request)
        if request.path != "/status/stream":
            return web.Response(status=404)
        if self._is_locked:
            return web.json_response({"error": "missing_token", "message": "this needs a token"}, status=401)
        self._asked += 1
        if self._is_lost and self._asked > 1:
            return web.json_response(
                {"error": "draining", "message": "the gateway is shutting down"}, status=503
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for told in self._reports:
            await response.write(encode_frame(msgspec.json.encode(told), event="status"))
        if not self._is_lost:
            await self.over.wait()
        return response


@asynccontextmanager
async def frozen(
    reports: Sequence[dict[str, Any]], *, is_lost: bool = False, is_locked: bool = False
) -> AsyncIterator[str]:
    """Serve the console with these reports, of which the last one stays; yields the URL."""
    server = Frozen(reports, is_lost=is_lost, is_locked=is_locked)
    async with serving(server.handle) as url:
        try:
            yield url
        finally:
            server.over.set()


async def faults(page: Page) -> list[str]:
    """Return what is wrong with the page as it stands: text that is cut, covered or outside, and what axe finds."""
    await page.evaluate(_DRAWN)
    found = list(await page.evaluate(_FAULTS))
    beyond = await page.evaluate(_OVERFLOWS)
    if beyond > 0:
        found.append(f"the page is {beyond} pixels too wide")
    results = await Axe().run(page)
    for violation in results.response["violations"]:
        where = ", ".join(str(node["target"]) for node in violation["nodes"][:3])
        found.append(f"{violation['id']}: {violation['help']}: {where}")
    return found


async def picture(page: Page) -> bytes:
    """Return the whole page as it looks once it has settled: when two pictures in a row are the same."""
    before = b""
    async with safety_net():
        while True:
            await page.evaluate(_DRAWN)
            now = await page.screenshot(full_page=True, animations="disabled", caret="hide")
            if now == before:
                return now
            before = now


async def difference(canvas: Page, name: str, now: bytes) -> float:
    """Return which share of a picture looks unlike its baseline. ``canvas`` is an empty page to draw on."""
    file = PICTURES / f"{name}.png"
    small = base64.b64decode(await canvas.evaluate(_SHRUNK, [_url(now), SHRINK, "image/png"]))
    if os.environ.get(REWRITE) == "1":
        PICTURES.mkdir(exist_ok=True)
        file.write_bytes(small)
        if name == README_SHOWS:
            README.write_bytes(base64.b64decode(await canvas.evaluate(_SHRUNK, [_url(now), 1, "image/webp"])))
    assert file.exists(), f"no baseline {file}; {REWRITE}=1 makes it"
    return float(await canvas.evaluate(_DIFFERENCE, [_url(small), _url(file.read_bytes())]))


def _url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
