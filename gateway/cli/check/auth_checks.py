"""Who decides about readers, tried: keys of tokens, and the endpoint of ``access: forward``."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import aiohttp
from yarl import URL

from gateway.auth.jwks import FETCH_SECONDS
from gateway.auth.keys import read_jwks, read_pem
from gateway.cli.check.messages import plain
from gateway.cli.doctor.finding import Finding, bad, ok, warn
from gateway.config.model.auth import Forward, Jwt
from gateway.config.model.config import Config
from gateway.core.errors import StartupError
from gateway.core.text import shown
from gateway.net.fetch import FetchError, fetch_json, told

_REFUSED = (401, 403)


def tries(config: Config) -> Iterator[tuple[str, Coroutine[Any, Any, Finding]]]:
    """Yield what there is to try."""
    auth = config.auth
    if auth is None:
        return
    issuers = auth.jwt or ()
    for index, jwt in enumerate(issuers):
        what = f"auth.jwt[{index}]" if len(issuers) > 1 else "auth.jwt"
        if jwt.jwks_url is not None:
            yield f"{what}.jwks_url", _keys(f"{what}.jwks_url", jwt, jwt.jwks_url)
        elif jwt.public_key_file is not None:
            yield f"{what}.public_key_file", _file(f"{what}.public_key_file", jwt, jwt.public_key_file)
    if auth.forward is not None:
        names = [name for name, channel in config.channels.items() if channel.access == "forward"]
        yield (
            "auth.forward.url",
            _endpoint(
                auth.forward, f"{config.server.base_path}/events/", names[0] if names else "sse-gateway-check"
            ),
        )


async def _keys(what: str, jwt: Jwt, url: str) -> Finding:
    try:
        async with _session() as session:
            document = await fetch_json(session, url, seconds=FETCH_SECONDS)
        keys = read_jwks(document, jwt.algorithms)
    except (FetchError, ValueError) as error:
        return bad(
            what, f"{shown(url)} {_verb(plain(error))}", "until its keys are had, no token opens a stream"
        )
    algorithms = ", ".join(jwt.algorithms)
    if not keys:
        return bad(
            what,
            f"{shown(url)} holds no key for {algorithms}",
            "set algorithms to those of the issuer's keys",
        )
    return ok(what, f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} for {algorithms}")


async def _file(what: str, jwt: Jwt, file: str) -> Finding:
    try:
        await asyncio.to_thread(read_pem, file, jwt.algorithms)
    except StartupError as error:
        return bad(what, error.message, "name a PEM file with the issuer's public key")
    return ok(what, f"{file} holds a key for {', '.join(jwt.algorithms)}")


async def _endpoint(forward: Forward, path: str, channel: str) -> Finding:
    """Ask without credentials, as a stranger's stream would make the gateway ask."""
    what, url = "auth.forward.url", URL(forward.url).extend_query([("channel", channel)])
    headers = {"X-Original-URI": f"{path}{channel}", "X-Original-Method": "GET"}
    try:
        async with (
            asyncio.timeout(forward.timeout),
            _session() as session,
            session.get(url, headers=headers, allow_redirects=False) as answer,
        ):
            status = answer.status
    except TimeoutError:
        return bad(
            what,
            f"gave no answer within {forward.timeout:g} s",
            "that is an outage: see auth.forward.on_outage",
        )
    except aiohttp.ClientError as error:
        return bad(what, plain(FetchError(told(error))), "that is an outage: see auth.forward.on_outage")
    if status in _REFUSED:
        return ok(what, f"refuses a stranger: {status}")
    if 200 <= status < 300:
        return warn(what, f"lets a stranger in: {status} without credentials", "see that it asks who it is")
    if 400 <= status < 500:
        return warn(what, f"answers a stranger {status}, which refuses", "401 or 403 say what is meant")
    return bad(what, f"answers {status}, which counts as an outage", "it must answer 2xx, 401 or 403 itself")


def _verb(error: str) -> str:
    """Return an error as the end of a sentence about its URL."""
    return error if error.startswith(("answered", "gave", "is ", "holds")) else f"cannot be had: {error}"


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), headers={"User-Agent": "sse-gateway"})
