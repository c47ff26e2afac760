"""`sse-gateway token`: what it signs opens what was asked for, at a real gateway."""

import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.cli.terminal.command import called
from tests.support.gateway import BASE, gateway_running, merged

SECRET = "canary-" + "s" * 32
OVER: dict[str, Any] = {
    "auth": {
        "jwt": {
            "algorithms": ["HS256"],
            "secret": SECRET,
            "audience": "sse",
            "issuer": "https://id.example.com",
        }
    },
    "channels": {
        "private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"},
        "room.{id}": {"from": [{"source": "hooks", "topic": "room:{id}"}], "access": "token"},
        "user.{id}": {
            "from": [{"source": "hooks", "topic": "u:{id}"}],
            "access": {"claims": {"sub": "{id}"}},
        },
        "team.{t}": {
            "from": [{"source": "hooks", "topic": "t:{t}"}],
            "access": {"claims": {"team": "{t}", "role": "boss"}},
        },
        "asked": {"from": [{"source": "hooks", "topic": "a"}], "access": "forward"},
    },
}
FORWARD = {"auth": {"forward": {"url": "http://127.0.0.1:1/"}}}


def written(folder: Path, over: dict[str, Any] = OVER) -> str:
    """Write a configuration and return its file."""
    file = folder / "gateway.yaml"
    file.write_text(json.dumps(merged(merged(BASE, over), FORWARD)))
    return str(file)


async def test_it_opens_what_was_asked_for(tmp_path: Path) -> None:
    """Claims are derived from the rules: nobody has to know them."""
    names = "private,room.1,user.42,team.red"
    status, out, err = await called(
        "token", "--config", written(tmp_path), "--channels", names, "--claim", 'x=["y"]'
    )
    assert status == 0, err
    token = out.strip()
    assert out == f"{token}\n"
    claims = jwt.decode(token, SECRET, ["HS256"], audience="sse", issuer="https://id.example.com")
    assert claims | {"iat": 0, "exp": 0} == {
        "iss": "https://id.example.com", "aud": "sse", "channels": ["private", "room.1"], "sub": "42", "team": "red",
        "role": "boss", "x": ["y"], "iat": 0, "exp": 0,
    }  # fmt: skip
    assert claims["exp"] - claims["iat"] == 3600
    for line in (
        "allows private",
        "allows user.42 (claims sub = {id})",
        "allows orders (public)",
        "by instance: room.{id}",
    ):
        assert line in err
    assert "canary" not in err
    async with gateway_running(merged(OVER, FORWARD)) as gateway:
        stream = await gateway.subscribe(f"/events?channel={names}", {"Authorization": f"Bearer {token}"})
        assert stream.status == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--channels", "user.42", "--subject", "43"),
            "user.42 requires the claim sub to be '42', but it is '43'",
        ),
        (("--channels", "privat"), "did you mean 'private'?"),
        (("--channels", "asked"), "auth.forward.url decides"),
        (("--expires", "60d"), "max_lifetime"),
        (("--issuer", "x"), "not in auth.jwt, which has: https://id.example.com"),
        (("--key", "README.md"), "leave out --key"),
        (("--claim", "aud=other"), "another audience"),
    ],
)
async def test_no_token_that_would_be_refused(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """A token that would be rejected is not signed, and the reason is reported."""
    status, out, err = await called("token", "--config", written(tmp_path), *arguments)
    assert (status, out, "canary" in err) == (1, "", False)
    assert words in err


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_private_keys(tmp_path: Path, algorithm: str) -> None:
    """With --key the signature is the issuer's; another key is rejected."""
    make: dict[str, Any] = {
        "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }
    keys = [make[algorithm](), make[algorithm]()]
    for name, key in zip(("right.pem", "wrong.pem"), keys, strict=True):
        private = (
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (tmp_path / name).write_bytes(key.private_bytes(*private))
    public = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(keys[0].public_key().public_bytes(*public))
    own = {"auth": {"jwt": {"algorithms": [algorithm], "public_key_file": str(tmp_path / "public.pem")}}}
    file = written(tmp_path, {**own, "channels": OVER["channels"]})
    common = ("token", "--config", file, "--channels", "private")
    status, out, err = await called(*common, "--key", str(tmp_path / "right.pem"), "--kid", "k1")
    assert status == 0, err
    assert jwt.get_unverified_header(out.strip()) == {"alg": algorithm, "kid": "k1", "typ": "JWT"}
    status, out, err = await called(*common, "--key", str(tmp_path / "wrong.pem"))
    assert (status, out, "signature is not its issuer's" in err) == (1, "", True)
    status, out, err = await called(*common)
    assert (status, out, "--key" in err) == (1, "", True)


async def test_published_keys_are_the_issuers(tmp_path: Path) -> None:
    """The error names the issuer, who has the private key."""
    url = "https://id.example.com/keys"
    own = {"auth": {"jwt": {"algorithms": ["RS256"], "jwks_url": url}}}
    status, out, err = await called(
        "token", "--config", written(tmp_path, {**own, "channels": OVER["channels"]})
    )
    assert (status, out) == (1, "")
    assert f"public keys from {url}" in err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--claim", "x"), "name=value"),
        (("--claim", "exp=1"), "--expires"),
        (("--expires", "5"), "not a duration"),
    ],
)
async def test_wrong_usage_exits_2(arguments: tuple[str, ...], word: str) -> None:
    """Scripts tell it from a configuration that has no token to give."""
    status, out, err = await called("token", *arguments)
    assert (status, out) == (2, "")
    assert word in err.splitlines()[-1]
