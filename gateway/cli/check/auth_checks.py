"""Tries the keys of tokens, and the endpoint of ``access: forward``."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import aiohttp
from yarl import URL

from gateway.auth.jwks import FETCH_TIMEOUT_SECONDS
from gateway.auth.keys import read_jwks, read_pem
from gateway.cli.check.messages import describe_upstream_error
from gateway.cli.finding import Finding, bad, ok, warn
from gateway.config.model.auth import ForwardConfig, JwtConfig
from gateway.config.model.config import Config
from gateway.core.errors import StartupError
from gateway.core.sanitize import redact_url
from gateway.net.http_fetch import FetchError, describe_client_error, fetch_json

_REFUSAL_STATUSES = (401, 403)


def pending_checks(config: Config) -> Iterator[tuple[str, Coroutine[Any, Any, Finding]]]:
    """Yield the settings to try, each with its check."""
    auth = config.auth
    if auth is None:
        return
    issuers = auth.jwt or ()
    for index, jwt in enumerate(issuers):
        what = f"auth.jwt[{index}]" if len(issuers) > 1 else "auth.jwt"
        if jwt.jwks_url is not None:
            what += ".jwks_url"
            yield what, _check_jwks(what, jwt, jwt.jwks_url)
        elif jwt.public_key_file is not None:
            what += ".public_key_file"
            yield what, _check_key_file(what, jwt, jwt.public_key_file)
    if auth.forward is not None:
        names = (name for name, channel in config.channels.items() if channel.access == "forward")
        channel, path = next(names, "sse-gateway-check"), f"{config.server.base_path}/events/"
        yield "auth.forward.url", _check_forward_auth(auth.forward, path, channel)


async def _check_jwks(what: str, jwt: JwtConfig, url: str) -> Finding:
    try:
        async with _client_session() as session:
            document = await fetch_json(session, url, timeout_seconds=FETCH_TIMEOUT_SECONDS)
        keys = read_jwks(document, jwt.algorithms)
    except (FetchError, ValueError) as error:
        reason = describe_upstream_error(error)
        if not reason.startswith(("answered", "gave", "is ", "holds")):
            reason = f"cannot be fetched: {reason}"
        return bad(what, f"{redact_url(url)} {reason}", "until its keys are fetched, no token opens a stream")
    algorithms = ", ".join(jwt.algorithms)
    if not keys:
        found = f"{redact_url(url)} holds no key for {algorithms}"
        return bad(what, found, "set algorithms to those of the issuer's keys")
    return ok(what, f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} for {algorithms}")


async def _check_key_file(what: str, jwt: JwtConfig, file: str) -> Finding:
    try:
        await asyncio.to_thread(read_pem, file, jwt.algorithms)
    except StartupError as error:
        return bad(what, error.message, "name a PEM file with the issuer's public key")
    return ok(what, f"{file} holds a key for {', '.join(jwt.algorithms)}")


async def _check_forward_auth(forward: ForwardConfig, path: str, channel: str) -> Finding:
    """Send the request that the gateway sends for a stream without credentials."""
    what, outage = "auth.forward.url", "that is an outage: see auth.forward.on_outage"
    url = URL(forward.url).extend_query([("channel", channel)])
    headers = {"X-Original-URI": f"{path}{channel}", "X-Original-Method": "GET"}
    try:
        async with (
            asyncio.timeout(forward.timeout),
            _client_session() as session,
            session.get(url, headers=headers, allow_redirects=False) as answer,
        ):
            status = answer.status
    except TimeoutError:
        return bad(what, f"gave no answer within {forward.timeout:g} s", outage)
    except aiohttp.ClientError as error:
        return bad(what, describe_upstream_error(FetchError(describe_client_error(error))), outage)
    if status in _REFUSAL_STATUSES:
        return ok(what, f"refuses a request without credentials: {status}")
    if 200 <= status < 300:
        return warn(
            what, f"allows a request without credentials: {status}", "check that it authenticates clients"
        )
    if 400 <= status < 500:
        return warn(what, f"refuses a request without credentials with {status}", "return 401 or 403 instead")
    return bad(what, f"returns {status}, which counts as an outage", "it must return 2xx, 401 or 403")


def _client_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), headers={"User-Agent": "sse-gateway"})
