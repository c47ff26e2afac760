"""Fetches a JSON document with one GET: with a deadline and a size limit, and without redirects."""

import asyncio
import json
from typing import Any

import aiohttp

from gateway.net.tls_errors import describe_certificate_error

MAX_BODY_BYTES = 256 * 1024
"""Largest response body, in bytes."""


class FetchError(Exception):
    """The document could not be fetched; the message has the reason, and nothing of the response."""


async def fetch_json(session: aiohttp.ClientSession, url: str, *, timeout_seconds: float) -> Any:
    """Return the JSON document at a URL. Raises FetchError. Cancelling is safe."""
    try:
        async with asyncio.timeout(timeout_seconds), session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise FetchError(f"answered {response.status}")
            return json.loads(await read_bounded_body(response))
    except TimeoutError:
        raise FetchError(f"gave no answer within {timeout_seconds:g} s") from None
    except aiohttp.ClientError as error:
        raise FetchError(describe_client_error(error)) from None
    except (ValueError, RecursionError):
        raise FetchError("is not a JSON document") from None


async def read_bounded_body(response: aiohttp.ClientResponse) -> bytes:
    """Return a body. Raises FetchError if it is larger than `MAX_BODY_BYTES`. Cancelling is safe."""
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise FetchError(f"is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def describe_client_error(error: aiohttp.ClientError) -> str:
    """Return an error of the certificate, the name or the connection in one line.

    aiohttp's own messages may quote the whole URL, whose query may have secrets.
    """
    if isinstance(error, aiohttp.InvalidURL):
        return "is not a URL that can be requested"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"sent an invalid HTTP response: {error.message.partition(chr(10))[0]}"
    text = str(error)
    return describe_certificate_error(text) or text or type(error).__name__
