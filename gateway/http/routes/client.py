"""``/client.js``: serves the JavaScript client, a module that pages of any origin may import."""

import gzip
import re
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files

from aiohttp import hdrs, web

CLIENT_PATH = "/client.js"
VERSIONED_CLIENT_PATH = "/client.{version:[0-9a-f]{12}}.js"

CLIENT_SCRIPT = (
    (files("gateway.http.routes") / "client.js").read_bytes().partition(b"//# sourceMappingURL=")[0]
)
"""The module. In the source tree it is a link to ``client/client.js``; a wheel has the file itself.

It leaves out the name of the source map, which only the npm package has: developer tools would get a 404.
"""

SCRIPT_VERSION = sha256(CLIENT_SCRIPT).hexdigest()[:12]
"""The version in its versioned name: a hash of the module."""

GZIPPED_SCRIPT = gzip.compress(CLIENT_SCRIPT, 9, mtime=0)

CACHE_FOREVER = "public, max-age=31536000, immutable"

_ZERO_WEIGHT = re.compile(r"\s*q\s*=\s*0(\.0*)?\s*")

_HEADERS: Mapping[str, str] = {
    hdrs.CONTENT_TYPE: "text/javascript; charset=utf-8",
    # Weak: the same text, compressed or not (RFC 9110 §8.8.1).
    hdrs.ETAG: f'W/"{SCRIPT_VERSION}"',
    # Relative, because a proxy may serve the gateway below another path.
    hdrs.CONTENT_LOCATION: f"client.{SCRIPT_VERSION}.js",
    hdrs.VARY: hdrs.ACCEPT_ENCODING,
    # Modules of other origins are loaded by CORS; which pages may read streams is up to `cors.origins`.
    hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


async def serve_script(request: web.Request) -> web.Response:
    """Return the module, or 304 if the page has the newest one."""
    headers = {**_HEADERS, hdrs.CACHE_CONTROL: _cache_control(request.match_info.get("version"))}
    if any(tag.value in (SCRIPT_VERSION, "*") for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    if not _accepts_gzip(request):
        return web.Response(body=CLIENT_SCRIPT, headers=headers)
    return web.Response(body=GZIPPED_SCRIPT, headers={**headers, hdrs.CONTENT_ENCODING: "gzip"})


def _cache_control(version: str | None) -> str:
    """Return how long caches may keep the response to a name."""
    if version is None:
        return "no-cache"
    # During a rollout, nodes of two versions serve one host. A page from a node of the other version gets
    # this version's module, which no cache may keep under the other's name.
    return CACHE_FOREVER if version == SCRIPT_VERSION else "no-store"


def _accepts_gzip(request: web.Request) -> bool:
    """Return whether ``Accept-Encoding`` names gzip, and not with ``q=0`` (RFC 9110 §12.5.3)."""
    for each in ",".join(request.headers.getall(hdrs.ACCEPT_ENCODING, ())).lower().split(","):
        coding, _, weight = each.partition(";")
        if coding.strip() in ("gzip", "x-gzip"):
            return not _ZERO_WEIGHT.fullmatch(weight)
    return False
