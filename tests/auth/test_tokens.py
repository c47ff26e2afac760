"""Tokens that somebody made to be let in: each is refused, and none is believed for a moment."""

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.api_jwt import PyJWT

from gateway.auth import jwt as tokens
from gateway.auth.grant import Grant
from gateway.auth.jwt import Issuer, TokenVerifier
from gateway.auth.rules import authorize
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.auth import JwtConfig
from gateway.config.model.config import ChannelConfig
from gateway.core.errors import Forbidden, Unauthorized
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.issuer import serving

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SECRET = "correct horse battery staple, and more"


def claims(**over: Any) -> dict[str, Any]:
    base = {"exp": time.time() + 60, "sub": "42", "aud": "sse", "channels": ["private"]}
    return {name: value for name, value in {**base, **over}.items() if value is not None}


def part(data: Any) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(key: Any = KEY, headers: dict[str, Any] | None = None, **over: Any) -> str:
    return jwt.encode(claims(**over), key, "RS256", headers)


def by_hand(header: Any, body: Any, key: bytes = PEM) -> str:
    """Return an HMAC token of anything, also of what no library would sign."""
    text = f"{part(header)}.{part(body)}"
    return f"{text}.{part(hmac.digest(key, text.encode(), 'sha256'))}"


def rs(header: Any, body: bytes) -> str:
    """Return a token that is rightly signed, whatever it says."""
    text = f"{part(header)}.{part(body)}"
    algorithm = jwt.get_algorithm_by_name("RS256")
    return f"{text}.{part(algorithm.sign(text.encode(), KEY))}"


RS = {"alg": "RS256", "typ": "JWT"}
ABUSE: dict[str, Any] = {
    "none": lambda: jwt.encode(claims(), "", "none"),
    "none with a signature": lambda: by_hand({"alg": "none"}, claims()),
    "None in other case": lambda: f"{part({'alg': 'nOnE'})}.{part(claims())}.",
    "the public key as an HMAC secret": lambda: by_hand({"alg": "HS256"}, claims()),
    "an empty HMAC key": lambda: by_hand({"alg": "HS256"}, claims(), b""),
    "a key of one byte": lambda: by_hand({"alg": "HS256"}, claims(), b"k"),
    "another key": lambda: signed(OTHER),
    "kid as a path": lambda: signed(OTHER, {"kid": "../../../../dev/null"}),
    "kid as SQL": lambda: signed(OTHER, {"kid": "' UNION SELECT 'key' --"}),
    "kid as a command": lambda: signed(OTHER, {"kid": "|cat /etc/passwd"}),
    "kid as a number": lambda: rs({**RS, "kid": 7}, json.dumps(claims()).encode()),
    "crit": lambda: signed(headers={"crit": ["exp"], "exp": 1}),
    "crit without a meaning": lambda: signed(headers={"crit": []}),
    "b64 false": lambda: rs({**RS, "b64": False, "crit": ["b64"]}, json.dumps(claims()).encode()),
    "no exp": lambda: signed(exp=None),
    "an exp in a year": lambda: signed(exp=time.time() + 365 * 86400),
    "an exp at the end of time": lambda: signed(exp=2**62),
    "an infinite exp": lambda: rs(RS, b'{"exp": 1e999, "aud": "sse", "channels": ["private"]}'),
    "an exp that is no number": lambda: rs(RS, b'{"exp": "soon", "aud": "sse", "channels": ["private"]}'),
    "an exp that is a list": lambda: rs(RS, b'{"exp": [9999999999], "aud": "sse"}'),
    "an exp with 5,000 digits": lambda: rs(RS, b'{"exp": ' + b"9" * 5000 + b', "aud": "sse"}'),
    "expired by more than the leeway": lambda: signed(exp=time.time() - 31),
    "not valid yet": lambda: signed(nbf=time.time() + 60),
    "issued in the future": lambda: signed(iat=time.time() + 60),
    "another audience": lambda: signed(aud="other"),
    "an audience that is a number": lambda: rs(RS, b'{"exp": 9999999999, "aud": 5}'),
    "no audience": lambda: signed(aud=None),
    "two parts": lambda: ".".join(signed().split(".")[:2]),
    "four parts": lambda: signed() + ".x",
    "a JWE": lambda: ".".join(part(b"x" * 10) for _ in range(5)),
    "claims that are a list": lambda: rs(RS, b"[1]"),
    "claims that nest": lambda: rs(RS, b'{"a":' + b"[" * 1500 + b"]" * 1500 + b"}"),
    "a header that is a list": lambda: by_hand([], claims()),
    "a header without alg": lambda: by_hand({"typ": "JWT"}, claims()),
    "an alg that is a list": lambda: by_hand({"alg": ["RS256"]}, claims()),
    "a cut signature": lambda: signed()[:-6],
    "another body": lambda: ".".join([(a := signed().split("."))[0], part(claims(sub="1")), a[2]]),
    "bytes that are no text": lambda: "\udcff.\udcff.\udcff",
    "8 KB": lambda: "x" * 8100,
    "100 KB": lambda: signed(filler="x" * 75_000),
}


@asynccontextmanager
async def guarded(folder: Path, **jwt_over: Any) -> AsyncIterator[Gateway]:
    (folder / "pub.pem").write_bytes(PEM)
    auth = {"algorithms": ["RS256"], "public_key_file": str(folder / "pub.pem"), "audience": "sse"}
    config = {
        "auth": {"jwt": {**auth, **jwt_over}},
        "channels": {"private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"}},
    }
    async with gateway_running({**config, "logging": {"level": "debug"}}) as gateway:
        yield gateway


async def test_abuse_is_a_401(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """RFC 8725's list, and what follows from it: a 401 with a reason, no trace, and no key in any output."""
    written = ""
    async with guarded(tmp_path) as gateway:
        for name, make in ABUSE.items():
            stream = await gateway.open("/events/private", {"Authorization": f"Bearer {make()}"})
            body = (await stream.rest()).decode()
            assert (stream.status, json.loads(body)["error"]) == (401, "invalid_token"), (name, body)
            challenge = stream.headers["www-authenticate"]
            assert challenge.startswith('Bearer error="invalid_token", error_description="'), name
            good = await gateway.open("/events/private", {"Authorization": f"Bearer {signed()}"})
            assert good.status == 200, name
            good.close()
            await eventually(lambda: not gateway.daemon.streams.active)
            written += body
    written += "".join(capfd.readouterr())
    assert "Traceback" not in written
    for secret in (PEM.decode().splitlines()[2], "cat /etc/passwd", "UNION"):
        assert secret not in written


@pytest.mark.parametrize("header", ["jku", "x5u", "jwk", "x5c"])
async def test_a_token_names_no_key(header: str, tmp_path: Path) -> None:
    """Whoever may name the key is let in by his own: nothing in a token is fetched, opened or believed."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"keys": [_public_jwk(OTHER)]})

    async with serving(answer) as url, guarded(tmp_path) as gateway:
        given = {"jwk": _public_jwk(OTHER), "x5c": ["AAAA"]}.get(header, f"{url}/keys")
        forged = signed(OTHER, {header: given, "kid": f"{url}/kid"})
        stream = await gateway.open("/events/private", {"Authorization": f"Bearer {forged}"})
        assert stream.status == 401
        assert asked == []


def _public_jwk(key: rsa.RSAPrivateKey) -> dict[str, Any]:
    return {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": "own", "use": "sig"}


async def test_clocks_may_differ_a_little(tmp_path: Path) -> None:
    """Thirty seconds by default, and what the file says."""
    async with guarded(tmp_path) as gateway:
        late = {"Authorization": f"Bearer {signed(exp=time.time() - 5)}"}
        assert (await gateway.open("/events/private", late)).status == 200
    async with guarded(tmp_path, leeway="1s") as gateway:
        assert (await gateway.open("/events/private", late)).status == 401


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def checker(clock: Clock) -> TokenVerifier:
    config = JwtConfig.model_validate({"algorithms": ["HS256"], "secret": SECRET})
    return TokenVerifier([Issuer(config, SECRET)], {"channels"}, clock)


async def test_a_verified_token_is_remembered_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reconnect costs a hash; what has expired is refused all the same."""
    clock = Clock()
    known = checker(clock)
    token = jwt.encode({"exp": clock.now + 3600, "sub": "1", "secret": "claim"}, SECRET)
    grant = await known.resolve(token)
    assert grant is not None
    assert (grant.subject, grant.claims) == ("1", {})  # what no rule can ask for is not kept
    monkeypatch.setattr(jwt, "decode", None)  # whoever calls it fails
    assert (await known.resolve(token)) is grant
    clock.now += 3600 + 30
    with pytest.raises(Unauthorized, match="expired"):
        await known.resolve(token)


async def test_a_token_that_failed_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that insists costs a hash, not a signature."""
    clock = Clock()
    known = checker(clock)
    token = jwt.encode({"exp": clock.now + 60}, "x" * 32)
    with pytest.raises(Unauthorized, match="signature"):
        await known.resolve(token)
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_decode_header", None)
        with pytest.raises(Unauthorized, match="signature"):
            await known.resolve(token)
    clock.now += tokens.FAILURE_CACHE_SECONDS
    with pytest.raises(Unauthorized, match="signature"):
        await known.resolve(token)


async def test_memories_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers can make any number of tokens, and users many."""
    monkeypatch.setattr(tokens, "MAX_CACHED_TOKENS", 3)
    monkeypatch.setattr(tokens, "MAX_CACHED_FAILURES", 3)
    known = checker(Clock())
    for number in range(10):
        await known.resolve(jwt.encode({"exp": time.time() + 60, "jti": str(number)}, SECRET))
        with pytest.raises(Unauthorized):
            await known.resolve(f"nonsense {number}")
    assert len(known._verified) == len(known._failures) == 3


async def test_an_issuer_is_compared_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyJWT 2.10.0 took any part of the issuer's name for the issuer (CVE-2024-53861)."""
    name = "https://id.example.com/realm"
    async with guarded(tmp_path, issuer=name) as gateway:
        for check in (PyJWT._validate_iss, lambda *_, **__: None):
            monkeypatch.setattr(PyJWT, "_validate_iss", check)
            for issuer, status in ((name, 200), (name[:-1], 401), ("https", 401), ("", 401), (None, 401)):
                headers = {"Authorization": f"Bearer {signed(iss=issuer)}"}
                stream = await gateway.open("/events/private", headers)
                assert stream.status == status, issuer
                stream.close()


SAID: list[tuple[dict[str, Any], str]] = [
    ({"sub": 42}, "the token's sub claim is the number 42, and must be text"),
    ({"sub": ["a"]}, "the token's sub claim is [a], and must be text"),
    ({"sub": {}}, "the token's sub claim is an object, and must be text"),
    ({"sub": None}, "the token's sub claim is missing, and must be text"),
    ({"sub": True}, "the token's sub claim is true or false, and must be text"),
    ({"jti": 7}, "the token's jti claim is the number 7, and must be text"),
    ({"aud": None}, "the token's aud claim is missing"),
    ({"aud": []}, "the token's aud claim is missing"),
    ({"aud": 5}, "the token's aud claim is the number 5, and must be text"),
    ({"aud": "other"}, "the token is meant for another audience: its aud claim is 'other'"),
    ({"aud": ["a", "b"]}, "the token is meant for another audience: its aud claim is [a, b]"),
    ({"aud": "x" * 100}, "the token is meant for another audience: its aud claim is text"),
    ({"aud": 'a"\r\nb'}, "the token is meant for another audience: its aud claim is text"),
    ({"iss": None}, "the token's iss claim is missing"),
    ({"iss": 5}, "the token's iss claim is the number 5, and must be text"),
    (
        {"iss": "https://evil.example"},
        "the token is from another issuer: its iss claim is 'https://evil.example'",
    ),
    ({"exp": None}, "the token's exp claim is missing: it must say when the token ends, in unix seconds"),
    ({"exp": "soon"}, "the token's exp claim is 'soon', and must be unix seconds"),
    ({"exp": [1]}, "the token's exp claim is a list, and must be unix seconds"),
    ({"exp": 1000}, "the token has expired: its exp claim is over"),
    ({"exp": 2**40}, "the token's exp claim is too far in the future (auth.jwt.max_lifetime)"),
    ({"nbf": 2**40}, "the token is not valid yet: its nbf claim is ahead of this clock"),
    ({"nbf": int("9" * 400)}, "the token is not valid yet: its nbf claim is ahead of this clock"),
    ({"nbf": "x"}, "the token's nbf claim is 'x', and must be unix seconds"),
    ({"iat": 2**40}, "the token is not valid yet: its iat claim is ahead of this clock"),
    ({"iat": []}, "the token's iat claim is a list, and must be unix seconds"),
]


@pytest.mark.parametrize(("over", "said"), SAID, ids=lambda each: json.dumps(each)[:40])
async def test_a_refusal_names_the_claim_and_what_it_was(over: dict[str, Any], said: str) -> None:
    """`sub: 42` was "not a signed JWT", and a missing `aud` named three claims."""
    config = JwtConfig.model_validate(
        {"algorithms": ["RS256"], "public_key_file": "k", "audience": "sse", "issuer": "https://id.example"}
    )
    body = {"exp": time.time() + 60, "sub": "42", "aud": "sse", "iss": "https://id.example", **over}
    if over in ({"aud": None}, {"iss": None}, {"exp": None}):
        body = {name: value for name, value in body.items() if value is not None}
    with pytest.raises(Unauthorized) as caught:
        await TokenVerifier([Issuer(config, KEY.public_key())], ()).resolve(rs(RS, json.dumps(body).encode()))
    assert caught.value.message == said
    assert caught.value.challenge is not None
    assert caught.value.challenge.isprintable()


async def test_a_bad_signature_tells_nothing_of_the_claims() -> None:
    """Who cannot sign learns nothing from trying claims."""
    config = JwtConfig.model_validate({"algorithms": ["RS256"], "public_key_file": "k", "audience": "sse"})
    for over in ({"sub": 42}, {"aud": "other"}, {"exp": 1000}):
        text = f"{part(RS)}.{part({**claims(), **over})}"
        forged = f"{text}.{part(jwt.get_algorithm_by_name('RS256').sign(text.encode(), OTHER))}"
        with pytest.raises(Unauthorized) as caught:
            await TokenVerifier([Issuer(config, KEY.public_key())], ()).resolve(forged)
        assert caught.value.message == "the token's signature is not its issuer's"


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (None, "the token's sub claim is missing, and must allow 'user.42'"),
        (["x"], "the token's sub claim does not allow 'user.42'"),
        ([], "the token's sub claim is an empty list, and must allow 'user.42'"),
        ("c4n4ry", "the token's sub claim does not allow 'user.42'"),
        ({"a": "c4n4ry"}, "the token's sub claim is an object, and must allow 'user.42'"),
        (True, "the token's sub claim is true or false, and must allow 'user.42'"),
    ],
)
def test_a_rule_says_what_the_claim_was_and_not_its_value(claim: Any, said: str) -> None:
    """What a claim of one's own holds ends up in the logs of others."""
    channels = {"user.{id}": ChannelConfig.model_validate({
        "from": [{"source": "s", "topic": "u:{id}"}], "access": {"claims": {"sub": "{id}"}},
    })}  # fmt: skip
    match = ChannelCatalog(channels).resolve("user.42")
    assert match is not None
    with pytest.raises(Forbidden) as caught:
        authorize([match], Grant(claims={} if claim is None else {"sub": claim}))
    assert caught.value.message == said
