"""Forward auth: the user's own endpoint decides, as with nginx's ``auth_request``.

It is asked once for all channels of a stream that want it, with the headers that the file names and what
the client asked for. Answers are remembered for as long as the file says, by everything that was passed on,
so a herd that reconnects asks once per client at the most; questions under way are bounded, and each has a
deadline.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import aiohttp
import msgspec
import structlog
from yarl import URL

from gateway.auth.fetch import FetchError, read, told
from gateway.auth.grant import Grant
from gateway.auth.rules import lists
from gateway.config.auth import Forward
from gateway.errors import Forbidden, GatewayError, Unauthorized, Unavailable
from gateway.metrics import Metrics
from gateway.seldom import Seldom

log = structlog.get_logger("gateway.auth")

REMEMBERED = 20_000
"""Answers that are remembered."""

REFUSED_SECONDS = 2.0
"""How long a refusal holds at the most: somebody may be logging in just now."""

WAITING = 1000
"""Questions that may wait for their turn before more are an outage."""


class Question(NamedTuple):
    """What the endpoint is told."""

    channels: tuple[str, ...]
    headers: Mapping[str, str]
    query: Mapping[str, str]
    uri: str
    """Path and query as the client sent them."""
    address: str | None
    """Of the client."""


class _Said(msgspec.Struct, frozen=True):
    """The JSON of a 2xx; all of it may be left out."""

    subject: str | None = None
    channels: list[str] | None = None
    expires: float | None = None
    expires_in: float | None = None


class _Answer(NamedTuple):
    until: float
    grant: Grant | None
    status: int


class ForwardAuth:
    """Asks the endpoint. ``session`` gives the HTTP client.

    ``ignored`` names query values that decide nothing and differ with each reconnect.
    """

    def __init__(
        self,
        config: Forward,
        session: Callable[[], aiohttp.ClientSession],
        metrics: Metrics,
        ignored: Iterable[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._ignored = tuple(ignored)
        self._session = session
        self._metrics = metrics
        self._now = now
        self._turn = asyncio.Semaphore(config.connections)
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Answer]] = {}
        self._seldom = Seldom()

    def at_once(self, question: Question) -> Grant | None:
        """Return a remembered answer, or None where `look` must ask. Raises Unauthorized or Forbidden."""
        answer = self._answers.get(self._key(question))
        return _settled(answer) if answer is not None and answer.until > self._now() else None

    async def look(self, question: Question) -> Grant:
        """Ask. Raises Unauthorized or Forbidden, or Unavailable for an outage. Cancelling is safe."""
        key = self._key(question)
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= WAITING:
                return self._outage(question, f"{WAITING} questions wait for an answer already")
            task = self._asking[key] = asyncio.create_task(self._ask(question), name="forward auth")
            task.add_done_callback(lambda done: self._asked(key, done))
        try:
            answer = await asyncio.shield(task)
        except FetchError as error:
            return self._outage(question, str(error))
        return _settled(answer)

    def _asked(self, key: bytes, task: "asyncio.Task[_Answer]") -> None:
        del self._asking[key]
        # Here, as whoever asked may have left by now.
        if task.cancelled() or task.exception() is not None or self._config.cache is None:
            return
        self._answers[key] = task.result()
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)

    def forget(self, subject: str) -> None:
        """Ask again about a subject."""
        gone = [key for key, each in self._answers.items() if each.grant and each.grant.subject == subject]
        for key in gone:
            del self._answers[key]

    async def _ask(self, question: Question) -> _Answer:
        """Return the endpoint's answer. Raises FetchError where that is neither yes nor no."""
        try:
            async with (
                asyncio.timeout(self._config.timeout),
                self._turn,
                self._session().get(
                    URL(self._config.url).extend_query([("channel", name) for name in question.channels]),
                    headers=self._headers(question),
                    allow_redirects=False,
                ) as answer,
            ):
                body = await read(answer) if 200 <= answer.status < 300 else b""
                return self._read(question, answer.status, body)
        except TimeoutError:
            raise FetchError(f"gave no answer within {self._config.timeout:g} s") from None
        except aiohttp.ClientError as error:
            raise FetchError(told(error)) from None

    def _read(self, question: Question, status: int, body: bytes) -> _Answer:
        now, cache = self._now(), self._config.cache or 0.0
        if status in (401, 403):
            self._metrics.forward_requests.labels("refused").inc()
            return _Answer(now + min(cache, REFUSED_SECONDS), None, status)
        if not 200 <= status < 300:
            raise FetchError(f"answered {status}")
        said = _said(body)
        opened = question.channels
        if said.channels is not None:
            opened = tuple(name for name in opened if lists(said.channels, name))
        expires = said.expires if said.expires_in is None else now + said.expires_in
        self._metrics.forward_requests.labels("opened").inc()
        until = now + cache if expires is None else min(now + cache, expires)
        return _Answer(until, Grant(said.subject, opened=frozenset(opened), expires=expires), status)

    def _headers(self, question: Question) -> dict[str, str]:
        headers = {
            name: value
            for name in self._config.headers
            if (value := question.headers.get(name)) is not None and value.isprintable() and value.isascii()
        }
        headers["X-Original-URI"] = str(URL(question.uri).without_query_params(*self._ignored))
        headers["X-Original-Method"] = "GET"
        if question.address is not None:
            headers["X-Forwarded-For"] = question.address
        return headers

    def _key(self, question: Question) -> bytes:
        headers = self._headers(question)
        told = (question.channels, sorted(headers.items()))
        return hashlib.sha256(msgspec.json.encode(told)).digest()

    def _outage(self, question: Question, why: str) -> Grant:
        self._metrics.forward_requests.labels("outage").inc()
        if self._seldom.tell(why) is not None:
            log.error("forward_auth_down", url=self._config.url, error=why, answer=self._config.on_outage)
        if self._config.on_outage == "open":
            return Grant(opened=frozenset(question.channels))
        if self._config.on_outage == "refuse":
            raise Forbidden("whoever decides about this channel cannot be asked", code="auth_unavailable")
        raise Unavailable("whoever decides about this channel cannot be asked", code="auth_unavailable")


def _settled(answer: _Answer) -> Grant:
    if answer.grant is not None:
        return answer.grant
    error: GatewayError
    if answer.status == 401:
        error = Unauthorized("the endpoint that decides here wants to know who asks", code="auth_refused")
    else:
        error = Forbidden("the endpoint that decides here refused", code="auth_refused")
    raise error


def _said(body: bytes) -> _Said:
    if not body.strip():
        return _Said()
    try:
        return msgspec.json.decode(body, type=_Said)
    except msgspec.MsgspecError:
        # A page that says 200 to everybody is no decision.
        raise FetchError("answered 2xx with a body that is not JSON of subject, channels, expires") from None
