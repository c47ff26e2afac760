"""The console's page: one response with its style and script inline, which loads nothing else."""

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files

from aiohttp import hdrs, web

from gateway.admin.guard import CONSOLE_PATH


def _read_file(name: str) -> str:
    return (files("gateway.admin") / "console" / name).read_text("utf-8")


def _csp_hash(text: str) -> str:
    """Return the source expression of an inline style or script (CSP 3, §2.3.1)."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_SCRIPTS = ("stream", "format", "chart", "table", "view", "try", "main")
"""The script's files; each uses only those before it."""

_STYLE = _read_file("console.css")
_SCRIPT = "\n".join(['"use strict";', *(_read_file(f"{name}.js") for name in _SCRIPTS)])

# The policy allows exactly these bytes between the tags.
_HTML = _read_file("index.html").replace("/*style*/", _STYLE).replace("/*script*/", _SCRIPT).encode()

CONSOLE_HEADERS: Mapping[str, str] = {
    hdrs.CONTENT_TYPE: "text/html; charset=utf-8",
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            f"style-src {_csp_hash(_STYLE)}",
            f"script-src {_csp_hash(_SCRIPT)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    ),
}


class ConsolePage:
    """The handler. The page holds no data, and is served without a token, which it asks its user for."""

    def add_routes(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_get(CONSOLE_PATH, self._get)

    async def _get(self, request: web.Request) -> web.Response:
        return web.Response(body=_HTML, headers=CONSOLE_HEADERS)
