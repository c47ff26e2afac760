"""Tokens: who may read which channel."""

import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.core.errors import StartupError
from gateway.server.daemon import Daemon
from tests.config.test_load import GOOD
from tests.support.config import loads
from tests.support.gateway import gateway_running

SECRET = "s" * 32
CONFIG: dict[str, Any] = {
    "auth": {
        "jwt": {"algorithms": ["HS256"], "secret": SECRET, "audience": "sse", "issuer": "https://id.example"}
    },
    "channels": {
        "listed": {"from": [{"source": "hooks", "topic": "l"}], "access": "token"},
        "user.{id}": {
            "from": [{"source": "hooks", "topic": "u:{id}"}],
            "access": {"claims": {"sub": "{id}"}},
        },
        "role": {"from": [{"source": "hooks", "topic": "r"}], "access": {"claims": {"roles": "admin"}}},
    },
}


def token(
    key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, str] | None = None, **claims: Any
) -> str:
    base = {"aud": "sse", "iss": "https://id.example", "exp": time.time() + 60, "sub": "42"}
    merged = {name: value for name, value in {**base, **claims}.items() if value is not None}
    return jwt.encode(merged, key, algorithm, headers=headers)


OPENED: list[tuple[str, dict[str, Any], int]] = [
    ("/events/user.42", {}, 200),
    ("/events/user.43", {}, 403),
    ("/events/user.42", {"sub": None}, 403),
    ("/events/user.1", {"sub": "1"}, 200),
    ("/events/role", {"roles": ["staff", "admin"]}, 200),
    ("/events/role", {"roles": "admin"}, 200),
    ("/events/role", {"roles": ["administrator"]}, 403),
    ("/events/role", {"roles": {"admin": True}}, 403),
    ("/events/listed", {"channels": ["listed"]}, 200),
    ("/events/listed", {"channels": ["li*"]}, 200),
    ("/events/listed", {"channels": "listed"}, 200),
    ("/events/listed", {"channels": ["l?sted", "[l]isted"]}, 403),
    ("/events/listed", {"channels": 5}, 403),
    ("/events/listed", {}, 403),
    ("/events?channel=orders,user.42", {}, 200),
    ("/events?channel=orders,user.43", {}, 403),
]


async def test_what_a_token_opens() -> None:
    """Each rule lets in exactly whom it names; one forbidden channel refuses the whole stream."""
    async with gateway_running({**CONFIG, "limits": {"connections_per_user": None}}) as gateway:
        for path, claims, status in OPENED:
            stream = await gateway.open(path, {"Authorization": f"Bearer {token(**claims)}"})
            assert stream.status == status, (path, claims)
            if status == 403:
                assert json.loads(await stream.rest())["error"] == "channel_forbidden"
            else:
                assert (await stream.next()).type == "stream.open", (path, claims)
            stream.close()


UNPROVEN: list[tuple[Callable[[], str], str]] = [
    (lambda: "", "missing_token"),
    (lambda: "Basic dTpw", "missing_token"),
    (lambda: "Bearer nonsense", "invalid_token"),
    (lambda: "Bearer ", "missing_token"),
    (lambda: f"Bearer {token(exp=time.time() - 60)}", "invalid_token"),
    (lambda: f"Bearer {token(exp=None)}", "invalid_token"),
    (lambda: f"Bearer {token(aud='other')}", "invalid_token"),
    (lambda: f"Bearer {token(iss='https://evil.example')}", "invalid_token"),
    (lambda: f"Bearer {token(key='x' * 32)}", "invalid_token"),
    (lambda: f"Bearer {token(algorithm='HS512', key='s' * 64)}", "invalid_token"),
    (lambda: f"Bearer {token(algorithm='none', key='')}", "invalid_token"),
    (lambda: f"Bearer {token()[:-4]}AAAA", "invalid_token"),
    (lambda: "Bearer " + "x" * 8000, "invalid_token"),
    (lambda: "Bearer \udcff.\udcff.\udcff", "invalid_token"),
]


async def test_what_proves_nothing_is_a_401() -> None:
    """RFC 6750: a challenge, a reason, and no word of the key or the token."""
    async with gateway_running(CONFIG) as gateway:
        for given, code in UNPROVEN:
            text = given()
            stream = await gateway.open("/events/user.42", {"Authorization": text} if text else {})
            body = await stream.rest()
            assert (stream.status, json.loads(body)["error"]) == (401, code), text
            assert stream.headers["www-authenticate"].startswith("Bearer"), text
            assert SECRET.encode() not in body


async def test_a_public_channel_needs_no_token(tmp_path: Path) -> None:
    """Anonymous readers of public channels are the common case."""
    async with gateway_running(CONFIG) as gateway:
        assert (await gateway.open("/events/orders")).status == 200


async def test_public_keys_from_a_file(tmp_path: Path) -> None:
    """RS256, and the classic confusion of its public key with an HMAC secret."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "pub.pem").write_bytes(pem)
    auth = {"algorithms": ["RS256"], "public_key_file": str(tmp_path / "pub.pem"), "secret": None}
    async with gateway_running({**CONFIG, "auth": {"jwt": {**CONFIG["auth"]["jwt"], **auth}}}) as gateway:
        good = token(key, "RS256")
        assert (await gateway.open("/events/user.42", {"Authorization": f"Bearer {good}"})).status == 200
        claims = {"sub": "42", "exp": time.time() + 60, "aud": "sse", "iss": "https://id.example"}
        header, payload = (
            jwt.utils.base64url_encode(json.dumps(part).encode()).decode()
            for part in ({"alg": "HS256", "typ": "JWT"}, claims)
        )
        mac = hmac.digest(pem, f"{header}.{payload}".encode(), "sha256")
        forged = f"{header}.{payload}.{jwt.utils.base64url_encode(mac).decode()}"
        assert (await gateway.open("/events/user.42", {"Authorization": f"Bearer {forged}"})).status == 401


@pytest.mark.parametrize("content", [None, b"nonsense"])
async def test_a_key_that_cannot_be_used_ends_the_start(tmp_path: Path, content: bytes | None) -> None:
    """One line that names the key of the YAML and the file."""
    file = tmp_path / "pub.pem"
    if content is not None:
        file.write_bytes(content)
    text = GOOD + f"auth: {{jwt: {{algorithms: [ES256], public_key_file: {file}}}}}"
    with pytest.raises(StartupError, match=r"auth.jwt.public_key_file: .*pub.pem"):
        Daemon(loads(text, environ={}))


async def test_a_claim_rule_may_hold_any_text(tmp_path: Path) -> None:
    """Identity providers put '|' and '/' into sub; a rule is text with fields, not a channel name."""
    user = {
        "user.{id}": {
            "from": [{"source": "hooks", "topic": "u:{id}"}],
            "access": {"claims": {"sub": "auth0|{id}/x y"}},
        }
    }
    async with gateway_running({**CONFIG, "channels": user}) as gateway:
        for sub, status in (("auth0|42/x y", 200), ("auth0|43/x y", 403)):
            headers = {"Authorization": f"Bearer {token(sub=sub)}"}
            assert (await gateway.open("/events/user.42", headers)).status == status


def test_a_key_of_another_kind_ends_the_start(tmp_path: Path) -> None:
    """Not a 500 for every subscription later."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    file = tmp_path / "pub.pem"
    file.write_bytes(
        key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    text = GOOD + f"auth: {{jwt: {{algorithms: [ES256], public_key_file: {file}}}}}"
    with pytest.raises(StartupError, match="holds no key for ES256"):
        Daemon(loads(text, environ={}))
