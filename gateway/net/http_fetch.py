"""One GET for a JSON document: with a deadline and a limit, verified certificates, and no redirects."""

import asyncio
import json
from typing import Any

import aiohttp

from gateway.net.tls_errors import describe_certificate_error

MAX_BODY_BYTES = 256 * 1024
"""Bytes of an answer that are read."""


class FetchError(Exception):
    """It could not be had; the message says why and holds nothing of the answer."""


async def fetch_json(session: aiohttp.ClientSession, url: str, *, timeout_seconds: float) -> Any:
    """Return the JSON document at a URL. Raises FetchError. Cancelling is safe."""
    try:
        async with asyncio.timeout(timeout_seconds), session.get(url, allow_redirects=False) as answer:
            if answer.status != 200:
                raise FetchError(f"answered {answer.status}")
            return json.loads(await read_bounded_body(answer))
    except TimeoutError:
        raise FetchError(f"gave no answer within {timeout_seconds:g} s") from None
    except aiohttp.ClientError as error:
        raise FetchError(describe_client_error(error)) from None
    except (ValueError, RecursionError):
        raise FetchError("is no JSON document") from None


async def read_bounded_body(answer: aiohttp.ClientResponse) -> bytes:
    """Return a body. Raises FetchError where it is longer than `MAX_BODY_BYTES`."""
    body = bytearray()
    async for part in answer.content.iter_any():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise FetchError(f"is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def describe_client_error(error: aiohttp.ClientError) -> str:
    """Return an error in one line: what is wrong with its certificate, its name or the connection.

    The library's own words may hold the whole URL, with what its query keeps secret.
    """
    if isinstance(error, aiohttp.InvalidURL):
        return "is not a URL that can be requested"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"answered with no HTTP that is understood: {error.message.partition(chr(10))[0]}"
    text = str(error)
    return describe_certificate_error(text) or text or type(error).__name__
