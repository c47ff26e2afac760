"""Keys that an issuer publishes: found by name, fetched again when they change, and never in a storm."""

import asyncio
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.auth import jwks
from gateway.auth.keys import read_jwks
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.issuer import Issuer, issuing

ALGORITHMS = ["RS256", "ES256", "EdDSA"]

HOUR = 3600.0
"""Seconds that no test takes."""


def config(*issuers: Issuer, **over: Any) -> dict[str, Any]:
    return {
        "auth": {
            "jwt": [
                {
                    "algorithms": ALGORITHMS,
                    "jwks_url": f"{issuer.url}/keys",
                    **({"issuer": issuer.url} if len(issuers) > 1 else {}),
                    **over,
                }
                for issuer in issuers
            ]
        },
        "channels": {
            "user.{id}": {
                "from": [{"source": "hooks", "topic": "u.{id}"}],
                "access": {"claims": {"sub": "{id}"}},
            }
        },
    }


async def status(gateway: Gateway, token: str) -> int:
    stream = await gateway.open("/events/user.42", {"Authorization": f"Bearer {token}"})
    return stream.status


async def ends(gateway: Gateway, token: str) -> str:
    stream = await gateway.open("/events/user.42", {"Authorization": f"Bearer {token}"})
    return str((await stream.next()).json["reason"]) if stream.status == 200 else str(stream.status)


async def test_keys_of_every_kind() -> None:
    """One set may hold keys of several kinds; each token is checked with the one that it names."""
    async with issuing() as issuer:
        for kid, kind in (("a", "RS256"), ("b", "ES256"), ("c", "EdDSA")):
            issuer.add_key(kid, kind)
        async with gateway_running(config(issuer)) as gateway:
            assert [await status(gateway, issuer.token(kid)) for kid in "abc"] == [200, 200, 200]
            assert await status(gateway, issuer.token("a", issuer.keys["b"])) == 401
            assert (
                await status(gateway, issuer.token(None, issuer.keys["b"])) == 200
            )  # the only one of its kind
            assert issuer.fetches == 2  # for the algorithm that the key of that name cannot do


async def test_a_new_key_is_fetched_when_a_token_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer that rotates its keys locks nobody out."""
    async with issuing("old") as issuer, gateway_running(config(issuer)) as gateway:
        issuer.add_key("new")
        assert await status(gateway, issuer.token("new")) == 200
        assert issuer.fetches == 2


async def test_unknown_keys_make_no_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers can name any number of keys; the issuer hears of it once in a while."""
    monkeypatch.setattr(jwks, "UNKNOWN_KEY_INTERVAL_SECONDS", HOUR)
    async with issuing("a") as issuer, gateway_running(config(issuer)) as gateway:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        forged = [issuer.token(f"unknown {number}", key) for number in range(30)]
        errors = await asyncio.gather(*(ends(gateway, token) for token in forged))
        assert set(errors) <= {"401", "auth_unavailable"}, (
            "a key that is new must not end an EventSource for good"
        )
        assert issuer.fetches == 2
        assert await status(gateway, issuer.token("a")) == 200


async def test_a_withdrawn_key_is_forgotten_with_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaked key is dead once its issuer says so, for tokens that were verified before too."""
    monkeypatch.setattr(jwks, "REFRESH_INTERVAL_SECONDS", 0.05)
    async with issuing("leaked", "good") as issuer, gateway_running(config(issuer)) as gateway:
        token = issuer.token("leaked")
        assert await status(gateway, token) == 200
        key = issuer.keys.pop("leaked")
        seen = issuer.fetches
        await eventually(lambda: issuer.fetches > seen + 1)
        assert await ends(gateway, token) == "401"
        # The issuer is asked about a new token, unless that was done just now: then its client is told to come back.
        assert await ends(gateway, issuer.token("leaked", key, jti="2")) in ("401", "auth_unavailable")


@pytest.mark.parametrize("trouble", ["down", "500", "no json", "no keys", "redirect"])
async def test_an_issuer_in_trouble_keeps_its_keys(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are taken with the keys that were fetched, for as long as it takes."""
    monkeypatch.setattr(jwks, "REFRESH_INTERVAL_SECONDS", 0.05)
    async with issuing("a") as issuer, gateway_running(config(issuer)) as gateway:
        token, seen = issuer.token("a"), issuer.fetches
        broken: dict[str, Any] = {"down": 503, "500": 500, "redirect": 302}
        issuer.status = broken.get(trouble, 200)
        if trouble == "no json":
            monkeypatch.setattr(issuer, "document", lambda: "<html>")
        if trouble == "no keys":
            monkeypatch.setattr(issuer, "document", lambda: {"keys": []})
        await eventually(lambda: issuer.fetches > seen)
        await eventually(lambda: gateway.metric('jwks_fetches_total{result="failed"}'))
        assert await status(gateway, token) == 200


async def test_without_keys_clients_are_told_to_come_back() -> None:
    """An issuer that is not there yet must not end an EventSource for good: that is 200 and a reason."""
    async with issuing("a") as issuer:
        issuer.status = 500
        async with gateway_running(config(issuer)) as gateway:
            token = issuer.token("a")
            stream = await gateway.open("/events/user.42", {"Authorization": f"Bearer {token}"})
            closing = await stream.next()
            assert (closing.type, closing.json["reason"]) == ("stream.close", "auth_unavailable")
            issuer.status = 200

            async def is_open() -> bool:
                opened = await gateway.open("/events/user.42", {"Authorization": f"Bearer {token}"})
                return (await opened.next()).type == "stream.open"

            await eventually(is_open)


async def test_several_issuers_are_told_apart() -> None:
    """Each token is checked with its own issuer's keys: one issuer cannot speak for the other."""
    async with issuing("k") as one, issuing("k") as two, gateway_running(config(one, two)) as gateway:
        for issuer, other in ((one, two), (two, one)):
            assert await status(gateway, issuer.token("k", iss=issuer.url)) == 200
            assert await status(gateway, issuer.token("k", iss=other.url)) == 401
        assert await status(gateway, one.token("k")) == 401
        assert await status(gateway, one.token("k", iss="https://third.example")) == 401


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_issuers_may_share_a_key_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps it fresh for itself, and over reloads: a key that leaked must be dead for all of them."""
    monkeypatch.setattr(jwks, "REFRESH_INTERVAL_SECONDS", 0.05)
    async with issuing("leaked", "good") as issuer:
        over = config(issuer)
        (one,) = over["auth"]["jwt"]
        over["auth"]["jwt"] = [{**one, "issuer": name} for name in ("a", "b")]
        async with gateway_running(over) as gateway:
            for retry in ("1s", "2s", "3s"):
                assert await gateway.reconfigure({"timeouts": {"retry": retry}}) == 0
            tokens = [issuer.token("leaked", iss=name) for name in "ab"]
            assert [await status(gateway, token) for token in tokens] == [200, 200]
            del issuer.keys["leaked"]

            async def are_dead() -> bool:
                streams = [await gateway.open("/events/user.42", bearer(token)) for token in tokens]
                opened = [
                    each.status == 200 and (await each.next()).type == "stream.open" for each in streams
                ]
                for stream in streams:  # a user may have only so many
                    stream.close()
                return not any(opened)

            await eventually(are_dead)


def test_only_keys_for_signatures_are_taken() -> None:
    """Secrets, private keys, keys for encryption, short ones and nonsense in a set are not used."""
    issuer = Issuer()
    issuer.add_key("good")
    good = issuer.document()["keys"][0]
    short = Issuer()
    short.keys["short"] = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    bad: list[Any] = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        {**good, "kid": "enc", "use": "enc"},
        {**good, "kid": "ops", "key_ops": ["encrypt"]},
        {**good, "kid": "alg", "alg": "RS512"},
        {**good, "kid": "private", "d": "AQAB"},
        {"kty": "RSA", "kid": "cut", "n": good["n"]},
        {"kty": "EC", "crv": "secp256k1", "kid": "curve", "x": "AA", "y": "AA"},
        short.document()["keys"][0],
        {"kid": "empty"},
        7,
        None,
    ]
    found = read_jwks(json.loads(json.dumps({"keys": [*bad, good]})), ALGORITHMS)
    assert [key.id for key in found] == ["good"]


@pytest.mark.parametrize("document", [None, [], {"keys": 5}, "keys"])
def test_what_is_no_key_set_is_said_so(document: Any) -> None:
    """A login page in its place is trouble, not an empty set."""
    with pytest.raises(ValueError, match="not a JWK set"):
        read_jwks(document, ALGORITHMS)
