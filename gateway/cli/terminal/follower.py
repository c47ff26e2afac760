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
from gateway.cli.doctor.network import reason
from gateway.cli.terminal.endpoint import Door
from gateway.cli.terminal.lines import CLOSE, HEARTBEAT, OPEN, told
from gateway.core.backoff import Backoff
from gateway.core.sse import CONTENT_TYPE, can_be_sent
from gateway.core.sse_parser import Message, Parser, TooLong
from gateway.core.text import safe
from gateway.net.tls_errors import in_plain_words

CONNECT_SECONDS = 10.0
"""How long a connection, and its handshake, may take."""

LONGEST_WAIT = 30.0
"""Seconds of backoff that are added at the most."""

MAX_BODY = 64 * 1024
"""Bytes of a refusal that are read."""

_COME_BACK = frozenset({408, 425, 429})
"""Statuses below 500 that pass."""

_LOST = (aiohttp.ClientError, OSError, TimeoutError)


class Refused(Exception):
    """The stream can never be had as it is asked for; ``mend`` says what to do."""

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Away:
    """A stream that ended: why, and in how many seconds it is opened again."""

    why: str
    seconds: float


class Follower:
    """``on_message`` gets every message, ``on_away`` every interruption; what they raise ends it."""

    def __init__(
        self,
        door: Door,
        query: list[tuple[str, str]],
        *,
        idle: float,
        on_message: Callable[[Message], None],
        on_away: Callable[[Away], None],
    ) -> None:
        self._door = door
        self._query = query
        self._idle = idle
        self._on_message = on_message
        self._on_away = on_away
        self._backoff = Backoff(base=0.5, cap=LONGEST_WAIT)
        self._retry = 0.0
        self._last_id = ""
        self._is_over = False
        self._connection = ""
        self._answering: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Follow until the gateway says not to come back. Raises Refused. Cancelling is safe."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=self._idle)
        tls = self._door.context
        connector = aiohttp.TCPConnector(ssl=True if tls is None else tls, force_close=True)
        # Without trust_env: a token goes to the URL that was given, and nowhere else.
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        ) as session:
            try:
                await self._follow(session)
            finally:
                await self._answer_no_more()

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        while True:
            why = await self._once(session)
            if self._is_over:
                return
            away = Away(why, self._retry + self._backoff.next())
            self._on_away(away)
            await asyncio.sleep(away.seconds)

    async def _once(self, session: aiohttp.ClientSession) -> str:
        """Open the stream and read it to its end; return why it ended."""
        try:
            async with session.get(
                f"{self._door.url}/events", params=self._query, headers=self._headers(), allow_redirects=False
            ) as answer:
                if answer.status == 204:
                    self._is_over = True
                    return "the gateway says that there is nothing to come back for (204)"
                if answer.status != 200:
                    return await self._refusal(answer)
                if answer.content_type != CONTENT_TYPE:
                    raise Refused(
                        f"{self._door.url}/events is no event stream, but {safe(answer.content_type)}",
                        "is --url the gateway's, or a proxy's that answers by itself?",
                    )
                return await self._read(session, answer)
        except aiohttp.ClientConnectorCertificateError as error:
            why = in_plain_words(str(error.certificate_error))
            raise Refused(
                why, "--ca FILE trusts an authority of your own; --url names another host"
            ) from None
        except aiohttp.ClientConnectorSSLError as error:
            why = reason(error.os_error)
            if "WRONG_VERSION_NUMBER" in why:
                raise Refused(
                    "what listens there speaks no TLS", "does the URL begin with http://?"
                ) from None
            return why
        except aiohttp.SocketTimeoutError:
            return f"no byte for {self._idle:g} s"
        except aiohttp.InvalidURL:
            raise Refused(f"{self._door.url} is not a URL that can be asked") from None
        except _LOST as error:
            cause = getattr(error, "os_error", error)
            return safe(in_plain_words(reason(cause)))

    async def _read(self, session: aiohttp.ClientSession, answer: aiohttp.ClientResponse) -> str:
        parser = Parser(self._last_id)
        why = "the connection ended"
        try:
            async for data in answer.content.iter_any():
                for message in parser.feed(data):
                    self._last_id = message.id
                    if message.type == OPEN:
                        self._backoff.reset()
                        self._connection = str(told(message).get("connection", ""))
                    elif message.type == HEARTBEAT:
                        self._answer(session, told(message).get("nonce"))
                    if message.type == CLOSE:
                        close = told(message)
                        why = f"the gateway closed the stream: {safe(str(close.get('reason', 'no reason')))}"
                        self._is_over = close.get("reconnect") is False
                    self._on_message(message)
        except TooLong as error:
            raise Refused(str(error), "is --url the gateway's?") from None
        finally:
            self._last_id = parser.last_id
            if parser.retry_ms is not None:
                self._retry = parser.retry_ms / 1000
        return why

    def _answer(self, session: aiohttp.ClientSession, nonce: object) -> None:
        """Answer a heartbeat that asks for it; one answer at a time, as each stands for all before it."""
        if isinstance(nonce, str) and (self._answering is None or self._answering.done()):
            self._answering = asyncio.create_task(self._post(session, nonce), name="answer heartbeat")

    async def _post(self, session: aiohttp.ClientSession, nonce: str) -> None:
        url = f"{self._door.url}/streams/{quote(self._connection, safe='')}/ack"
        with suppress(*_LOST):  # the next one is answered too
            async with asyncio.timeout(CONNECT_SECONDS), session.post(url, data=nonce, allow_redirects=False):
                pass

    async def _answer_no_more(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)

    def _headers(self) -> Mapping[str, str]:
        headers: dict[str, str] = {
            hdrs.USER_AGENT: f"sse-gateway-tail/{__version__}",
            hdrs.ACCEPT: CONTENT_TYPE,
            hdrs.ACCEPT_ENCODING: "identity",
            hdrs.CACHE_CONTROL: "no-cache",
        }
        if self._door.token is not None:
            headers[hdrs.AUTHORIZATION] = f"Bearer {self._door.token}"
        if not can_be_sent(self._last_id):
            raise Refused(
                "the last id holds control characters, which cannot be sent back as Last-Event-ID",
                "is --url the gateway's?",
            )
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        return headers

    async def _refusal(self, answer: aiohttp.ClientResponse) -> str:
        """Return why there is no stream just now. Raises Refused where there never will be one."""
        status = answer.status
        if 300 <= status < 400:
            where = safe(answer.headers.get(hdrs.LOCATION, "nowhere"))
            raise Refused(f"the answer leads elsewhere: {status} to {where}", "say --url with that address")
        code, message = error_words(await answer.content.read(MAX_BODY))
        said = f"{status} {code}: {message}" if code else f"{status} {safe(answer.reason or '')}".strip()
        if status in _COME_BACK or status >= 500:
            wait = answer.headers.get(hdrs.RETRY_AFTER, "")
            if wait.isascii() and wait.isdigit():
                self._retry = min(float(wait[:9]), 600.0)
            return said
        raise Refused(said, _mend(status, code, has_token=self._door.token is not None))


def error_words(body: bytes) -> tuple[str, str]:
    """Return code and message of a gateway's error, safe to show; empty where it is another's."""
    try:
        told: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(told, dict):
        return "", ""
    code = told.get("error", told.get("error_code"))  # the second is REST Proxy's word
    return ("", "") if code is None else (safe(str(code)), safe(str(told.get("message", ""))))


def _mend(status: int, code: str, *, has_token: bool) -> str:
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
