"""Where credentials are found, and which of them counts."""

import time
from typing import Any

import jwt
import pytest

from gateway.auth.credentials import find_credential
from gateway.config.model.auth import AuthConfig
from tests.support.gateway import gateway_running

SECRET = "s" * 32
AUTH = {"jwt": {"algorithms": ["HS256"], "secret": SECRET}, "tickets": {}, "cookie": "sid", "query": "token"}
CONFIG: dict[str, Any] = {
    "auth": AUTH,
    "channels": {"private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"}},
}


def token(**claims: Any) -> str:
    return jwt.encode({"exp": time.time() + 60, "sub": "42", "channels": ["private"], **claims}, SECRET)


@pytest.mark.parametrize(
    ("headers", "query", "found"),
    [
        ({"Authorization": "Bearer a", "Cookie": "sid=b"}, {"token": "c", "ticket": "d"}, ("token", "a")),
        ({"Authorization": "bearer  a "}, {}, ("token", "a")),
        ({"Cookie": "sid=b"}, {"token": "c", "ticket": "d"}, ("ticket", "d")),
        ({"Cookie": "other=x; sid=b ;last"}, {"token": "c"}, ("token", "b")),
        ({"Cookie": 'sid="b"'}, {}, ("token", "b")),
        ({"Cookie": "sid="}, {"token": "c"}, ("token", "c")),
        ({"Cookie": "xsid=b; sid2=c"}, {}, None),
        ({"Authorization": "Basic dTpw"}, {}, None),
        ({}, {"access_token": "c"}, None),
        ({}, {}, None),
    ],
)
def test_one_place_wins(
    headers: dict[str, str], query: dict[str, str], found: tuple[str, str] | None
) -> None:
    """What code sent on purpose wins over what came along by itself."""
    auth = AuthConfig.model_validate(AUTH)
    credential = find_credential(headers, query, auth)
    assert (credential and credential[:2]) == found


def test_only_what_is_named_is_looked_at() -> None:
    """Without a word in the file, cookies and URLs hold no tokens."""
    auth = AuthConfig.model_validate({"jwt": AUTH["jwt"]})
    assert find_credential({"Cookie": "sid=b; token=c"}, {"token": "c", "ticket": "d"}, auth) is None


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/events/private", lambda: {"Cookie": f"a=b; sid={token()}"}, 200),
        ("/events/private?token=", lambda: {}, 200),
        ("/events/private", lambda: {"Cookie": f"sid={token(exp=1)}"}, 401),
        ("/events/private?token=", lambda: {"Authorization": "Bearer nonsense"}, 401),
        ("/events/orders", lambda: {"Cookie": f"sid={token(exp=1)}"}, 200),
        ("/events/orders", lambda: {"Authorization": "Bearer nonsense"}, 200),
    ],
)
async def test_streams_by_cookie_and_query(path: str, headers: Any, status: int) -> None:
    """A stale cookie of some other page must not close what is public."""
    async with gateway_running(CONFIG) as gateway:
        full = path + token() if path.endswith("=") else path
        stream = await gateway.open(full, headers())
        assert stream.status == status
