"""Follows a stream over HTTP as a browser does, and reports each interruption and the delay after it.

How it works. `StreamFollower.run` opens the stream in a loop. After a stream that ended, or was silent for
``idle_seconds``, it reconnects with the last event id after the gateway's ``retry`` plus a jittered backoff
that grows until a stream opens. Only permanent failures end the loop: a status that refuses the request, a
response that is not an event stream, an untrusted certificate.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs

from gateway.cli.http_client import (
    CONNECT_TIMEOUT_SECONDS,
    CONNECTION_ERRORS,
    MAX_ERROR_BODY_BYTES,
    RequestFailed,
    client_session,
    describe_network_error,
    describe_request_error,
    parse_error,
    stream_headers,
)
from gateway.cli.terminal.endpoint import Endpoint
from gateway.cli.terminal.lines import CLOSE, HEARTBEAT, OPEN, control_data
from gateway.core.backoff import Backoff
from gateway.core.sanitize import escape_unprintable
from gateway.core.sse import EVENT_STREAM_CONTENT_TYPE, is_valid_last_event_id
from gateway.core.sse_parser import MessageTooLong, SseMessage, SseParser
from gateway.net.tls_errors import humanize_tls_error

MAX_BACKOFF_SECONDS = 30.0
"""Longest backoff, in seconds."""

_RETRIABLE_STATUSES = frozenset({408, 425, 429})
"""Statuses below 500 after which the follower reconnects."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The reason why a stream ended, and the delay before it is opened again."""

    reason: str
    retry_seconds: float


class StreamFollower:
    """Calls ``on_message`` and ``on_disconnect``; an exception of theirs ends it."""

    def __init__(
        self,
        endpoint: Endpoint,
        query: list[tuple[str, str]],
        *,
        idle_seconds: float,
        on_message: Callable[[SseMessage], None],
        on_disconnect: Callable[[Disconnect], None],
    ) -> None:
        self._endpoint = endpoint
        self._query = query
        self._idle_seconds = idle_seconds
        self._on_message = on_message
        self._on_disconnect = on_disconnect
        self._backoff = Backoff(base_seconds=0.5, cap_seconds=MAX_BACKOFF_SECONDS)
        self._retry_seconds = 0.0
        self._last_id = ""
        self._connection_id = ""
        self._ack_task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Follow until the gateway forbids reconnecting. Raises RequestFailed. Cancelling is safe."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=self._idle_seconds
        )
        async with client_session("tail", self._endpoint.tls_context, timeout) as session:
            try:
                while reason := await self._follow_once(session):
                    delay = self._retry_seconds + self._backoff.next_delay()
                    self._on_disconnect(Disconnect(reason, delay))
                    await asyncio.sleep(delay)
            finally:
                if self._ack_task is not None:
                    self._ack_task.cancel()
                    await asyncio.gather(self._ack_task, return_exceptions=True)

    async def _follow_once(self, session: aiohttp.ClientSession) -> str:
        """Open the stream and read it to its end; return why it ended, or "" if it must not be reopened."""
        if not is_valid_last_event_id(self._last_id):
            raise RequestFailed(
                "the last id holds control characters and cannot be sent as Last-Event-ID",
                "check that --url is the gateway's",
            )
        url, headers = f"{self._endpoint.url}/events", stream_headers(self._endpoint.token, self._last_id)
        try:
            async with session.get(url, params=self._query, headers=headers, allow_redirects=False) as answer:
                if answer.status == 204:
                    return ""
                if answer.status != 200:
                    return await self._handle_refusal(answer)
                if answer.content_type != EVENT_STREAM_CONTENT_TYPE:
                    raise RequestFailed(
                        f"{url} is not an event stream, but {escape_unprintable(answer.content_type)}",
                        "check that --url is the gateway's, and that no proxy answers in its place",
                    )
                return await self._read_stream(session, answer)
        except aiohttp.ClientConnectorCertificateError as error:
            raise RequestFailed(
                humanize_tls_error(str(error.certificate_error)),
                "trust a private authority with --ca FILE, or use the host of the certificate in --url",
            ) from None
        except aiohttp.ClientConnectorSSLError as error:
            reason = describe_network_error(error.os_error)
            if "WRONG_VERSION_NUMBER" in reason:
                raise RequestFailed("the server speaks no TLS", "use an http:// URL") from None
            return reason
        except aiohttp.SocketTimeoutError:
            return f"no byte for {self._idle_seconds:g} s"
        except aiohttp.InvalidURL:
            raise RequestFailed(f"{self._endpoint.url} is not a valid URL") from None
        except CONNECTION_ERRORS as error:
            return describe_request_error(error)

    async def _read_stream(self, session: aiohttp.ClientSession, answer: aiohttp.ClientResponse) -> str:
        parser = SseParser(self._last_id)
        reason = "the connection ended"
        try:
            async for data in answer.content.iter_any():
                for message in parser.feed(data):
                    self._last_id = message.id
                    if message.type == OPEN:
                        self._backoff.reset()
                        self._connection_id = str(control_data(message).get("connection", ""))
                    elif message.type == HEARTBEAT:
                        self._acknowledge(session, control_data(message).get("nonce"))
                    elif message.type == CLOSE:
                        close = control_data(message)
                        why = escape_unprintable(str(close.get("reason", "no reason")))
                        may_reconnect = close.get("reconnect") is not False
                        reason = f"the gateway closed the stream: {why}" if may_reconnect else ""
                    self._on_message(message)
        except MessageTooLong as error:
            raise RequestFailed(str(error), "check that --url is the gateway's") from None
        finally:
            self._last_id = parser.last_id
            if parser.retry_ms is not None:
                self._retry_seconds = parser.retry_ms / 1000
        return reason

    def _acknowledge(self, session: aiohttp.ClientSession, nonce: object) -> None:
        """Acknowledge a heartbeat with a nonce; one at a time, as each acknowledges all before it."""
        if isinstance(nonce, str) and (self._ack_task is None or self._ack_task.done()):
            self._ack_task = asyncio.create_task(self._post_ack(session, nonce), name="acknowledge heartbeat")

    async def _post_ack(self, session: aiohttp.ClientSession, nonce: str) -> None:
        url = f"{self._endpoint.url}/streams/{quote(self._connection_id, safe='')}/ack"
        with suppress(*CONNECTION_ERRORS):  # the next heartbeat is acknowledged too
            async with (
                asyncio.timeout(CONNECT_TIMEOUT_SECONDS),
                session.post(url, data=nonce, allow_redirects=False),
            ):
                pass

    async def _handle_refusal(self, answer: aiohttp.ClientResponse) -> str:
        """Return why the request failed. Raises RequestFailed if it would fail again."""
        status = answer.status
        if 300 <= status < 400:
            location = escape_unprintable(answer.headers.get(hdrs.LOCATION, "no location"))
            raise RequestFailed(f"the server redirects: {status} to {location}", "use that address in --url")
        code, message = parse_error(await answer.content.read(MAX_ERROR_BODY_BYTES))
        text = f"{status} {code}: {message}" if code else f"{status} {answer.reason or ''}".strip()
        text = escape_unprintable(text)
        if status in _RETRIABLE_STATUSES or status >= 500:
            wait = answer.headers.get(hdrs.RETRY_AFTER, "")
            if wait.isascii() and wait.isdigit():
                self._retry_seconds = min(float(wait[:9]), 600.0)
            return text
        raise RequestFailed(text, _status_fix(status, code, has_token=self._endpoint.token is not None))


def _status_fix(status: int, code: str, *, has_token: bool) -> str:
    if not code:
        return "this is not a response of sse-gateway: check --url, and the proxy's path"
    if status == 401 and has_token:
        return "get another token: sse-gateway token signs one for tests, if the configuration has the secret"
    if status == 401:
        return "set $SSE_GATEWAY_TOKEN or --token-file; sse-gateway token signs one for tests"
    if status == 403:
        return "the token does not allow this channel: see its access, and sse-gateway token --channels"
    if status == 404:
        return "use a channel name of the configuration; an instance of user.{id} is user.42"
    return ""
