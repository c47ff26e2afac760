"""An issuer of tokens, and an endpoint that decides, as real HTTP servers on ports of their own."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

Handler = Callable[[Any], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve every path of a port with one handler; yields the URL."""
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Issuer:
    """Signs tokens and publishes its keys; ``fetches`` counts who asked for them."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.fetches = 0
        self.status = 200
        self.extra: list[Any] = []
        self.url = ""

    def add_key(self, kid: str, kind: str = "RS256") -> None:
        """Make a key and publish it."""
        self.keys[kid] = {
            "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }[kind]()

    def document(self) -> dict[str, Any]:
        """Return the JWK set."""
        return {"keys": [*self.extra, *(_jwk(kid, key) for kid, key in self.keys.items())]}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.fetches += 1
        return web.json_response(self.document(), status=self.status)

    def token(self, kid: str | None, key: Any = None, **claims: Any) -> str:
        """Return a signed token with ``exp`` in a minute."""
        key = key or self.keys[kid or next(iter(self.keys))]
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode({"exp": time.time() + 60, "sub": "42", **claims}, key, _algorithm(key), headers)


@asynccontextmanager
async def issuing(*kids: str) -> AsyncIterator[Issuer]:
    """Run an issuer with some keys."""
    issuer = Issuer()
    for kid in kids:
        issuer.add_key(kid)
    async with serving(issuer.handle) as issuer.url:
        yield issuer


def _algorithm(key: Any) -> str:
    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256"
    return "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "EdDSA"


def _jwk(kid: str, key: Any) -> dict[str, Any]:
    public = key.public_key()
    kinds: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    return {**json.loads(kinds[_algorithm(key)].to_jwk(public)), "kid": kid, "use": "sig"}
