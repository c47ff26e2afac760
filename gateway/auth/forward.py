"""Forward auth: the user's own endpoint decides, as with nginx's ``auth_request``.

It is asked once for all channels of a stream that want it, with the headers that the file names and what
the client asked for. Answers are remembered for as long as the file says, by everything that was passed on,
so a herd that reconnects asks once per client at the most; questions under way are bounded, and each has a
deadline.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import msgspec
import structlog
from yarl import URL

from gateway.auth.credentials import without
from gateway.auth.grant import Grant
from gateway.auth.revocation import Revocations
from gateway.auth.rules import lists
from gateway.config.model.auth import Forward
from gateway.core.bounded import Bounded
from gateway.core.errors import BadRequest, Forbidden, GatewayError, Unauthorized, Unavailable
from gateway.core.text import shown
from gateway.net.fetch import FetchError, read, told
from gateway.observability.log_throttle import Seldom
from gateway.observability.metrics import Metrics

# Turns at something that only so many may do at once; no single address takes more than half of them.


class Turns:
    """``most`` at once; others wait for ``seconds``, up to ``waiting`` of them."""

    def __init__(self, most: int, seconds: float, waiting: int) -> None:
        self._all = asyncio.Semaphore(most)
        self._half = max(1, most // 2)
        self._seconds = seconds
        self._waiting = waiting
        self._now = 0
        self._of_one: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def turn(self, whose: str | None) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block ends. Raises Unavailable. Cancelling is safe."""
        if self._now >= self._waiting:
            raise _busy()
        own = self._enter(whose)
        self._now += 1
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    await own.acquire()
                    try:
                        await self._all.acquire()
                    except BaseException:
                        own.release()
                        raise
            except TimeoutError:
                raise _busy() from None
            try:
                yield
            finally:
                self._all.release()
                own.release()
        finally:
            self._now -= 1
            self._leave(whose)

    def _enter(self, whose: str | None) -> asyncio.Semaphore:
        if whose is None:
            return asyncio.Semaphore()
        own, users = self._of_one.get(whose, (asyncio.Semaphore(self._half), 0))
        if users >= self._waiting // 2:
            raise _busy()
        self._of_one[whose] = own, users + 1
        return own

    def _leave(self, whose: str | None) -> None:
        if whose is None:
            return
        own, users = self._of_one.pop(whose)
        if users > 1:
            self._of_one[whose] = own, users - 1


def _busy() -> Unavailable:
    return Unavailable("too many questions wait for an answer just now", code="auth_unavailable")


log = structlog.get_logger("gateway.auth")

REMEMBERED = 20_000
"""Answers that are remembered."""

REMEMBERED_BYTES = 32 * 1024 * 1024
"""Bytes of what they open: a question may name many channels."""

REFUSED_SECONDS = 2.0
"""How long a refusal holds at the most: somebody may be logging in just now."""

MAX_URI = 4096
"""Longest path and query that are passed on, in characters: servers refuse headers of twice that."""

PASSING = (408, 425, 429)
"""Statuses of 4xx that say nothing about who asks."""

WAITING = 1000
"""Questions that may wait for their turn, or have it, before more are told to come back."""


class Question(NamedTuple):
    """What the endpoint is told."""

    channels: tuple[str, ...]
    headers: Mapping[str, str]
    query: Mapping[str, str]
    uri: str
    """Path and query as the client sent them."""
    address: str | None
    """Of the client."""
    whose: str | None
    """Under which it is counted; None: not at all."""
    method: str = "GET"


class _Said(msgspec.Struct, frozen=True):
    """The JSON of a 2xx; all of it may be left out."""

    subject: str | None = None
    channels: list[str] | None = None
    expires: float | None = None
    expires_in: float | None = None


class Undecided(FetchError):
    """The endpoint answered, and its answer is no decision: nothing that lets anybody in."""


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
        revocations: Revocations,
        ignored: Iterable[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._shown = shown(config.url)
        self._revocations = revocations
        self._ignored = frozenset(ignored)
        self._session = session
        self._metrics = metrics
        self._now = now
        self._turns = Turns(config.connections, config.timeout, WAITING)
        self._answers: Bounded[bytes, _Answer] = Bounded(REMEMBERED, REMEMBERED_BYTES)
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
            since = self._revocations.number
            task = self._asking[key] = asyncio.create_task(self._ask(question), name="forward auth")
            task.add_done_callback(lambda done: self._asked(key, done, since))
        try:
            answer = await asyncio.shield(task)
        except FetchError as error:
            return self._outage(question, error)
        return _settled(answer)

    def _asked(self, key: bytes, task: "asyncio.Task[_Answer]", since: int) -> None:
        if self._asking.get(key) is task:
            del self._asking[key]
        # Here, as whoever asked may have left; and not what was decided before somebody was thrown out.
        if task.cancelled() or task.exception() is not None or self._config.cache is None:
            return
        if since != self._revocations.number:
            return
        self._answers.put(key, task.result())

    def forget(self) -> None:
        """Ask again about everybody: an answer need not say about whom it is."""
        self._answers.clear()
        self._asking.clear()

    async def _ask(self, question: Question) -> _Answer:
        """Return the endpoint's answer.

        Raises FetchError where that is neither yes nor no, Unavailable where it gets no turn to ask.
        """
        async with self._turns.turn(question.whose):
            return await self._exchange(question)

    async def _exchange(self, question: Question) -> _Answer:
        try:
            async with (
                asyncio.timeout(self._config.timeout),
                self._session().get(
                    URL(self._config.url).extend_query([("channel", name) for name in question.channels]),
                    headers=self._headers(question),
                    allow_redirects=False,
                ) as answer,
            ):
                return self._read(question, answer.status, await _body(answer))
        except TimeoutError:
            raise FetchError(f"gave no answer within {self._config.timeout:g} s") from None
        except aiohttp.ClientError as error:
            raise FetchError(told(error)) from None

    def _read(self, question: Question, status: int, body: bytes) -> _Answer:
        now, cache = self._now(), self._config.cache or 0.0
        if 400 <= status < 500 and status not in PASSING:
            # A client can make most of them happen, so none may count as an outage that lets it in.
            if status not in (401, 403) and self._seldom.tell(status) is not None:
                log.warning("forward_auth_refused", url=self._shown, status=status)
            return self._refused(now + min(cache, REFUSED_SECONDS), status)
        if status >= 500:
            raise FetchError(f"answered {status}")
        if not 200 <= status < 300:
            raise Undecided(f"answered {status}")
        said = _said(body)
        opened = question.channels
        if said.channels is not None:
            opened = tuple(name for name in opened if lists(said.channels, name))
        expires = said.expires if said.expires_in is None else now + said.expires_in
        if expires is not None and expires <= now:
            return self._refused(now + min(cache, REFUSED_SECONDS), 403)
        self._metrics.forward_requests.labels("opened").inc()
        until = now + cache if expires is None else min(now + cache, expires)
        return _Answer(until, Grant(said.subject, opened=frozenset(opened), expires=expires), status)

    def _refused(self, until: float, status: int) -> _Answer:
        self._metrics.forward_requests.labels("refused").inc()
        return _Answer(until, None, status)

    def _headers(self, question: Question) -> dict[str, str]:
        headers = {
            name: value
            for name in self._config.headers
            if (value := question.headers.get(name)) is not None and value.isprintable() and value.isascii()
        }
        headers["X-Original-URI"] = self._uri(question.uri)
        headers["X-Original-Method"] = question.method
        if question.address is not None:
            headers["X-Forwarded-For"] = question.address
        return headers

    def _uri(self, uri: str) -> str:
        """Return path and query as they were sent, without what differs with each reconnect."""
        whole = without(uri, self._ignored)
        if not whole.startswith("/"):  # a proxy's form (RFC 9112 §3.2.2)
            path, mark, query = whole.partition("?")
            whole = "/" + path.partition("://")[2].partition("/")[2] + mark + query
        if len(whole) > MAX_URI:
            raise BadRequest(f"the URL is longer than {MAX_URI} characters", code="bad_query")
        return whole.encode("ascii", "backslashreplace").decode()

    def _key(self, question: Question) -> bytes:
        headers = self._headers(question)
        told = (question.channels, sorted(headers.items()))
        return hashlib.sha256(msgspec.json.encode(told)).digest()

    def _outage(self, question: Question, error: FetchError) -> Grant:
        """Return what `on_outage` grants. Raises Forbidden or Unavailable.

        ``open`` is for an endpoint that is away. One that answers may send strangers to a login page,
        or refuse those who ask too often, and neither may let them in.
        """
        why = str(error)
        self._metrics.forward_requests.labels("outage").inc()
        if self._seldom.tell(why) is not None:
            log.error("forward_auth_down", url=self._shown, error=why, answer=self._config.on_outage)
        if self._config.on_outage == "open" and not isinstance(error, Undecided):
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


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body of a 2xx, and nothing of another answer's. Raises Undecided where it is too long."""
    if not 200 <= answer.status < 300:
        return b""
    try:
        return await read(answer)
    except FetchError as error:
        raise Undecided(str(error)) from None


def _said(body: bytes) -> _Said:
    """Return what a 2xx says; an empty body says yes, and no more. Raises Undecided."""
    if not body.strip():
        return _Said()
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
        if not members.keys().isdisjoint(_Said.__struct_fields__):
            return msgspec.convert(members, _Said)
    except (msgspec.MsgspecError, RecursionError):
        pass
    # A page that says 200 to everybody, or {"allowed": false}, is no decision.
    raise Undecided("answered 2xx with a body that is not JSON of subject, channels, expires")
