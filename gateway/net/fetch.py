"""One GET for a JSON document: with a deadline and a limit, verified certificates, and no redirects."""

import asyncio
import json
from typing import Any

import aiohttp

from gateway.net.tls_errors import refused_certificate

MAX_DOCUMENT = 256 * 1024
"""Bytes of an answer that are read."""


class FetchError(Exception):
    """It could not be had; the message says why and holds nothing of the answer."""


async def fetch_json(session: aiohttp.ClientSession, url: str, *, seconds: float) -> Any:
    """Return the JSON document at a URL. Raises FetchError. Cancelling is safe."""
    try:
        async with asyncio.timeout(seconds), session.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise FetchError(f"answered {answer.status}")
            return json.loads(await read(answer))
    except TimeoutError:
        raise FetchError(f"gave no answer within {seconds:g} s") from None
    except aiohttp.ClientError as error:
        raise FetchError(told(error)) from None
    except (ValueError, RecursionError):
        raise FetchError("is no JSON document") from None


async def read(answer: aiohttp.ClientResponse) -> bytes:
    """Return a body. Raises FetchError where it is longer than `MAX_DOCUMENT`."""
    body = bytearray()
    async for part in answer.content.iter_any():
        body += part
        if len(body) > MAX_DOCUMENT:
            raise FetchError(f"is larger than {MAX_DOCUMENT} bytes")
    return bytes(body)


def told(error: aiohttp.ClientError) -> str:
    """Return an error in one line: what is wrong with its certificate, its name or the connection.

    The library's own words may hold the whole URL, with what its query keeps secret.
    """
    if isinstance(error, aiohttp.InvalidURL):
        return "is not a URL that can be requested"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"answered with no HTTP that is understood: {error.message.partition(chr(10))[0]}"
    text = str(error)
    return refused_certificate(text) or text or type(error).__name__
