"""Follows a stream over HTTP as a browser does, and better: it says why it is away, and when it will be back.

How it works. `run` opens the stream again and again until it is told to stop. A stream that ended, or that
gave no sign of life for ``idle`` seconds, is opened anew with the last event id after the delay that the
gateway told, plus a jittered backoff that grows while nothing can be had. Only what can never work ends it:
statuses that refuse, an answer that is no event stream, a certificate that is not trusted.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs

from gateway import __version__
from gateway.cli.doctor.network import describe_network_error
from gateway.cli.terminal.endpoint import Endpoint
from gateway.cli.terminal.lines import CLOSE, HEARTBEAT, OPEN, control_data
from gateway.core.backoff import Backoff
from gateway.core.sanitize import escape_unprintable
from gateway.core.sse import EVENT_STREAM_CONTENT_TYPE, is_valid_last_event_id
from gateway.core.sse_parser import MessageTooLong, SseMessage, SseParser
from gateway.net.tls_errors import humanize_tls_error

CONNECT_TIMEOUT_SECONDS = 10.0
"""How long a connection, and its handshake, may take."""

MAX_BACKOFF_SECONDS = 30.0
"""Seconds of backoff that are added at the most."""

MAX_ERROR_BODY_BYTES = 64 * 1024
"""Bytes of a refusal that are read."""

_RETRIABLE_STATUSES = frozenset({408, 425, 429})
"""Statuses below 500 that pass."""

_CONNECTION_ERRORS = (aiohttp.ClientError, OSError, TimeoutError)


class StreamRefused(Exception):
    """The stream can never be had as it is asked for; ``mend`` says what to do."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Disconnect:
    """A stream that ended: why, and in how many seconds it is opened again."""

    reason: str
    retry_seconds: float


class StreamFollower:
    """``on_message`` gets every message, ``on_away`` every interruption; what they raise ends it."""

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
        self._is_finished = False
        self._connection_id = ""
        self._ack_task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Follow until the gateway says not to come back. Raises Refused. Cancelling is safe."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=self._idle_seconds
        )
        tls = self._endpoint.tls_context
        connector = aiohttp.TCPConnector(ssl=True if tls is None else tls, force_close=True)
        # Without trust_env: a token goes to the URL that was given, and nowhere else.
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        ) as session:
            try:
                await self._follow(session)
            finally:
                await self._cancel_ack()

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        while True:
            why = await self._follow_once(session)
            if self._is_finished:
                return
            away = Disconnect(why, self._retry_seconds + self._backoff.next_delay())
            self._on_disconnect(away)
            await asyncio.sleep(away.retry_seconds)

    async def _follow_once(self, session: aiohttp.ClientSession) -> str:
        """Open the stream and read it to its end; return why it ended."""
        try:
            async with session.get(
                f"{self._endpoint.url}/events",
                params=self._query,
                headers=self._headers(),
                allow_redirects=False,
            ) as answer:
                if answer.status == 204:
                    self._is_finished = True
                    return "the gateway says that there is nothing to come back for (204)"
                if answer.status != 200:
                    return await self._handle_refusal(answer)
                if answer.content_type != EVENT_STREAM_CONTENT_TYPE:
                    raise StreamRefused(
                        f"{self._endpoint.url}/events is no event stream, but {escape_unprintable(answer.content_type)}",
                        "is --url the gateway's, or a proxy's that answers by itself?",
                    )
                return await self._read_stream(session, answer)
        except aiohttp.ClientConnectorCertificateError as error:
            why = humanize_tls_error(str(error.certificate_error))
            raise StreamRefused(
                why, "--ca FILE trusts an authority of your own; --url names another host"
            ) from None
        except aiohttp.ClientConnectorSSLError as error:
            why = describe_network_error(error.os_error)
            if "WRONG_VERSION_NUMBER" in why:
                raise StreamRefused(
                    "what listens there speaks no TLS", "does the URL begin with http://?"
                ) from None
            return why
        except aiohttp.SocketTimeoutError:
            return f"no byte for {self._idle_seconds:g} s"
        except aiohttp.InvalidURL:
            raise StreamRefused(f"{self._endpoint.url} is not a URL that can be asked") from None
        except _CONNECTION_ERRORS as error:
            cause = getattr(error, "os_error", error)
            return escape_unprintable(humanize_tls_error(describe_network_error(cause)))

    async def _read_stream(self, session: aiohttp.ClientSession, answer: aiohttp.ClientResponse) -> str:
        parser = SseParser(self._last_id)
        why = "the connection ended"
        try:
            async for data in answer.content.iter_any():
                for message in parser.feed(data):
                    self._last_id = message.id
                    if message.type == OPEN:
                        self._backoff.reset()
                        self._connection_id = str(control_data(message).get("connection", ""))
                    elif message.type == HEARTBEAT:
                        self._acknowledge(session, control_data(message).get("nonce"))
                    if message.type == CLOSE:
                        close = control_data(message)
                        why = f"the gateway closed the stream: {escape_unprintable(str(close.get('reason', 'no reason')))}"
                        self._is_finished = close.get("reconnect") is False
                    self._on_message(message)
        except MessageTooLong as error:
            raise StreamRefused(str(error), "is --url the gateway's?") from None
        finally:
            self._last_id = parser.last_id
            if parser.retry_ms is not None:
                self._retry_seconds = parser.retry_ms / 1000
        return why

    def _acknowledge(self, session: aiohttp.ClientSession, nonce: object) -> None:
        """Answer a heartbeat that asks for it; one answer at a time, as each stands for all before it."""
        if isinstance(nonce, str) and (self._ack_task is None or self._ack_task.done()):
            self._ack_task = asyncio.create_task(self._post_ack(session, nonce), name="answer heartbeat")

    async def _post_ack(self, session: aiohttp.ClientSession, nonce: str) -> None:
        url = f"{self._endpoint.url}/streams/{quote(self._connection_id, safe='')}/ack"
        with suppress(*_CONNECTION_ERRORS):  # the next one is answered too
            async with (
                asyncio.timeout(CONNECT_TIMEOUT_SECONDS),
                session.post(url, data=nonce, allow_redirects=False),
            ):
                pass

    async def _cancel_ack(self) -> None:
        if self._ack_task is not None:
            self._ack_task.cancel()
            await asyncio.gather(self._ack_task, return_exceptions=True)

    def _headers(self) -> Mapping[str, str]:
        headers: dict[str, str] = {
            hdrs.USER_AGENT: f"sse-gateway-tail/{__version__}",
            hdrs.ACCEPT: EVENT_STREAM_CONTENT_TYPE,
            hdrs.ACCEPT_ENCODING: "identity",
            hdrs.CACHE_CONTROL: "no-cache",
        }
        if self._endpoint.token is not None:
            headers[hdrs.AUTHORIZATION] = f"Bearer {self._endpoint.token}"
        if not is_valid_last_event_id(self._last_id):
            raise StreamRefused(
                "the last id holds control characters, which cannot be sent back as Last-Event-ID",
                "is --url the gateway's?",
            )
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        return headers

    async def _handle_refusal(self, answer: aiohttp.ClientResponse) -> str:
        """Return why there is no stream just now. Raises Refused where there never will be one."""
        status = answer.status
        if 300 <= status < 400:
            where = escape_unprintable(answer.headers.get(hdrs.LOCATION, "nowhere"))
            raise StreamRefused(
                f"the answer leads elsewhere: {status} to {where}", "say --url with that address"
            )
        code, message = parse_error(await answer.content.read(MAX_ERROR_BODY_BYTES))
        said = (
            f"{status} {code}: {message}"
            if code
            else f"{status} {escape_unprintable(answer.reason or '')}".strip()
        )
        if status in _RETRIABLE_STATUSES or status >= 500:
            wait = answer.headers.get(hdrs.RETRY_AFTER, "")
            if wait.isascii() and wait.isdigit():
                self._retry_seconds = min(float(wait[:9]), 600.0)
            return said
        raise StreamRefused(said, _status_fix(status, code, has_token=self._endpoint.token is not None))


def parse_error(body: bytes) -> tuple[str, str]:
    """Return code and message of a gateway's error, safe to show; empty where it is another's."""
    try:
        told: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(told, dict):
        return "", ""
    code = told.get("error", told.get("error_code"))  # the second is REST Proxy's word
    return (
        ("", "")
        if code is None
        else (escape_unprintable(str(code)), escape_unprintable(str(told.get("message", ""))))
    )


def _status_fix(status: int, code: str, *, has_token: bool) -> str:
    if not code:
        return "no sse-gateway answers like this: is --url right, and does a proxy change the path?"
    if status == 401 and has_token:
        return "get another token: sse-gateway token makes one for tests, where the file has the secret"
    if status == 401:
        return "set $SSE_GATEWAY_TOKEN, or say --token-file; sse-gateway token makes one for tests"
    if status == 403:
        return "the token does not open it: see the channel's access, and sse-gateway token --channels"
    if status == 404:
        return "is the name spelled as in the file? An instance of user.{id} is user.42"
    return ""
