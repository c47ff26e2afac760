"""The console's page as it is served: to whom, and what it may do."""

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest

from tests.admin.test_guard import LOCKED, ask
from tests.support.gateway import Gateway, gateway_running


@pytest.mark.parametrize("over", [{}, LOCKED], ids=["open", "locked"])
async def test_whoever_asks_gets_the_page_and_no_figure(over: dict[str, Any]) -> None:
    """A browser cannot send a token for a page; it must be the same bytes for all, which tell nothing."""
    async with gateway_running(over) as gateway:
        status, headers, body = await ask(gateway, "/")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "orders" not in body
        assert headers["cache-control"] == "no-store"
        assert (await ask(gateway, "/", "POST"))[0] == (401 if over else 405)
        for path in ("/status/stream", "/try/events", "//", "/console.js") if over else ():
            assert (await ask(gateway, path))[0] == 401, path


async def test_the_policy_allows_the_pages_own_script_and_style_alone(gateway: Gateway) -> None:
    """What a stranger's name could smuggle into the page must not run, and the page must not reach out."""
    _, headers, body = await ask(gateway, "/")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", body, re.DOTALL)
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'", "connect-src": "'self'", "img-src": "data:",
        "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert headers["x-frame-options"] == "DENY"
    assert not re.findall(r'(?:src|href)="(?!data:|#|status|metrics|readyz|healthz)', body)
    assert " style=" not in body


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}],
)
async def test_the_guard_stands_before_the_page_too(gateway: Gateway, headers: dict[str, str]) -> None:
    """DNS rebinding would make the page another site's own."""
    for path in ("/", "/status/stream"):
        assert (await ask(gateway, path, **headers))[0] == 403
