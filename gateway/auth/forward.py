"""Forward auth: an HTTP endpoint of the user authorizes streams, as with nginx's ``auth_request``.

One request covers all channels of a stream with ``access: forward``; it carries the configured headers and
the client's URL. Decisions are cached for the configured time under everything that was sent, so a herd that
reconnects causes at most one request per client. Pending requests are bounded, and each has a deadline.
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

from gateway.auth.credentials import strip_query
from gateway.auth.grant import Grant
from gateway.auth.revocation import RecentRevocations
from gateway.auth.rules import claim_covers
from gateway.config.model.auth import ForwardConfig
from gateway.core.bounded_dict import BoundedDict
from gateway.core.errors import BadRequest, Forbidden, Unauthorized, Unavailable
from gateway.core.sanitize import redact_url
from gateway.net.http_fetch import FetchError, describe_client_error, read_bounded_body
from gateway.observability.eager import enter_task
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.metrics import Metrics

log = structlog.get_logger("gateway.auth")

MAX_CACHED_DECISIONS = 20_000
"""Decisions that are cached."""

MAX_CACHED_BYTES = 32 * 1024 * 1024
"""Bytes of the cached decisions: a request may name many channels."""

MAX_REFUSAL_CACHE_SECONDS = 2.0
"""How long a denial is cached at the most: the user may log in at any moment."""

MAX_URI_CHARS = 4096
"""Longest path and query that are forwarded, in characters: servers reject headers of twice that."""

TEMPORARY_STATUSES = (408, 425, 429)
"""4xx statuses that are no decision about the client."""

MAX_PENDING_REQUESTS = 1000
"""Requests that may be pending, running ones included, before further ones are rejected."""


class FairSemaphore:
    """A semaphore of which no single client takes more than half.

    Callers wait for ``timeout_seconds`` at the most, and ``max_pending`` of them at a time.
    """

    def __init__(self, limit: int, timeout_seconds: float, max_pending: int) -> None:
        self._semaphore = asyncio.Semaphore(limit)
        self._max_per_client = max(1, limit // 2)
        self._timeout_seconds = timeout_seconds
        self._max_pending = max_pending
        self._pending_count = 0
        self._per_client: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def acquire(self, client_key: str | None) -> AsyncIterator[None]:
        """Hold the semaphore until the block ends. Raises Unavailable. Cancelling is safe."""
        if self._pending_count >= self._max_pending:
            raise _overload_error()
        own = self._register(client_key)
        self._pending_count += 1
        try:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await own.acquire()
                    try:
                        await self._semaphore.acquire()
                    except BaseException:
                        own.release()
                        raise
            except TimeoutError:
                raise _overload_error() from None
            try:
                yield
            finally:
                self._semaphore.release()
                own.release()
        finally:
            self._pending_count -= 1
            self._unregister(client_key)

    def _register(self, client_key: str | None) -> asyncio.Semaphore:
        if client_key is None:
            return asyncio.Semaphore()
        own, users = self._per_client.get(client_key, (asyncio.Semaphore(self._max_per_client), 0))
        if users >= self._max_pending // 2:
            raise _overload_error()
        self._per_client[client_key] = own, users + 1
        return own

    def _unregister(self, client_key: str | None) -> None:
        if client_key is None:
            return
        own, users = self._per_client.pop(client_key)
        if users > 1:
            self._per_client[client_key] = own, users - 1


def _overload_error() -> Unavailable:
    return Unavailable("too many forward-auth requests are pending", code="auth_unavailable")


class AuthRequest(NamedTuple):
    """The request that is to be authorized."""

    channels: tuple[str, ...]
    headers: Mapping[str, str]
    query: Mapping[str, str]
    uri: str
    """Path and query as the client sent them."""
    address: str | None
    """The client's."""
    client_key: str | None
    """Under which limits count the client; None: not at all."""
    method: str = "GET"


class _DecisionBody(msgspec.Struct, frozen=True):
    """The JSON body of a 2xx; every member is optional."""

    subject: str | None = None
    channels: list[str] | None = None
    expires: float | None = None
    expires_in: float | None = None


class NoDecisionError(FetchError):
    """The endpoint's answer is no decision, so it authorizes nobody."""


class _Decision(NamedTuple):
    valid_until: float
    grant: Grant | None
    status: int


class ForwardAuth:
    """Requests and caches the endpoint's decisions.

    ``ignored_query`` names query values that do not affect the decision and differ with each reconnect.
    """

    def __init__(
        self,
        config: ForwardConfig,
        http_session: Callable[[], aiohttp.ClientSession],
        metrics: Metrics,
        revocations: RecentRevocations,
        ignored_query: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._display_url = redact_url(config.url)
        self._revocations = revocations
        self._ignored_query = frozenset(ignored_query)
        self._http_session = http_session
        self._metrics = metrics
        self._clock = clock
        self._semaphore = FairSemaphore(config.connections, config.timeout, MAX_PENDING_REQUESTS)
        self._decisions: BoundedDict[bytes, _Decision] = BoundedDict(MAX_CACHED_DECISIONS, MAX_CACHED_BYTES)
        self._in_flight: dict[bytes, asyncio.Task[_Decision]] = {}
        self._log_throttle = LogThrottle()

    async def resolve(self, request: AuthRequest) -> Grant:
        """Return the endpoint's decision. Waits only for one that is not cached.

        Raises Unauthorized or Forbidden, or Unavailable for an outage. Cancelling is safe.
        """
        key = self._cache_key(request)
        cached = self._decisions.get(key)
        if cached is not None and cached.valid_until > self._clock():
            return _grant_or_raise(cached)
        await enter_task()
        task = self._in_flight.get(key)
        if task is None:
            since = self._revocations.count
            task = self._in_flight[key] = asyncio.create_task(
                self._request_decision(request), name="forward auth"
            )
            task.add_done_callback(lambda done: self._on_decision(key, done, since))
        try:
            answer = await asyncio.shield(task)
        except FetchError as error:
            return self._on_outage(request, error)
        return _grant_or_raise(answer)

    def _on_decision(self, key: bytes, task: "asyncio.Task[_Decision]", since: int) -> None:
        if self._in_flight.get(key) is task:
            del self._in_flight[key]
        # A callback, as the clients may be gone; a decision from before a revocation is not cached.
        if task.cancelled() or task.exception() is not None or self._config.cache is None:
            return
        if since != self._revocations.count:
            return
        self._decisions.put(key, task.result())

    def clear_cache(self) -> None:
        """Drop all cached decisions: they need not name their subject."""
        self._decisions.clear()
        self._in_flight.clear()

    async def _request_decision(self, request: AuthRequest) -> _Decision:
        """Raises FetchError where the endpoint does not decide, Unavailable where too many requests wait."""
        async with self._semaphore.acquire(request.client_key):
            return await self._send_request(request)

    async def _send_request(self, request: AuthRequest) -> _Decision:
        try:
            async with (
                asyncio.timeout(self._config.timeout),
                self._http_session().get(
                    URL(self._config.url).extend_query([("channel", name) for name in request.channels]),
                    headers=self._headers(request),
                    allow_redirects=False,
                ) as answer,
            ):
                return self._parse_response(request, answer.status, await _read_body(answer))
        except TimeoutError:
            raise FetchError(f"gave no answer within {self._config.timeout:g} s") from None
        except aiohttp.ClientError as error:
            raise FetchError(describe_client_error(error)) from None

    def _parse_response(self, request: AuthRequest, status: int, body: bytes) -> _Decision:
        now, cache = self._clock(), self._config.cache or 0.0
        if 400 <= status < 500 and status not in TEMPORARY_STATUSES:
            # Clients can cause most of these, so none may count as an outage that admits them.
            if status not in (401, 403) and self._log_throttle.should_log(status) is not None:
                log.warning("forward_auth_refused", url=self._display_url, status=status)
            return self._refusal(now + min(cache, MAX_REFUSAL_CACHE_SECONDS), status)
        if status >= 500:
            raise FetchError(f"answered {status}")
        if not 200 <= status < 300:
            raise NoDecisionError(f"answered {status}")
        decision = _parse_decision_body(body)
        opened = request.channels
        if decision.channels is not None:
            opened = tuple(name for name in opened if claim_covers(decision.channels, name))
        expires = decision.expires if decision.expires_in is None else now + decision.expires_in
        if expires is not None and expires <= now:
            return self._refusal(now + min(cache, MAX_REFUSAL_CACHE_SECONDS), 403)
        self._metrics.forward_auth.labels("allowed").inc()
        until = now + cache if expires is None else min(now + cache, expires)
        return _Decision(until, Grant(decision.subject, opened=frozenset(opened), expires=expires), status)

    def _refusal(self, until: float, status: int) -> _Decision:
        self._metrics.forward_auth.labels("denied").inc()
        return _Decision(until, None, status)

    def _headers(self, request: AuthRequest) -> dict[str, str]:
        headers = {
            name: value
            for name in self._config.headers
            if (value := request.headers.get(name)) is not None and value.isprintable() and value.isascii()
        }
        headers["X-Original-URI"] = self._original_uri(request.uri)
        headers["X-Original-Method"] = request.method
        if request.address is not None:
            headers["X-Forwarded-For"] = request.address
        return headers

    def _original_uri(self, uri: str) -> str:
        """Return path and query as they were sent, without the ignored query values."""
        whole = strip_query(uri, self._ignored_query)
        if not whole.startswith("/"):  # a proxy's form (RFC 9112 §3.2.2)
            path, mark, query = whole.partition("?")
            whole = "/" + path.partition("://")[2].partition("/")[2] + mark + query
        if len(whole) > MAX_URI_CHARS:
            raise BadRequest(f"the URL is longer than {MAX_URI_CHARS} characters", code="bad_query")
        return whole.encode("ascii", "backslashreplace").decode()

    def _cache_key(self, request: AuthRequest) -> bytes:
        headers = self._headers(request)
        return hashlib.sha256(msgspec.json.encode((request.channels, sorted(headers.items())))).digest()

    def _on_outage(self, request: AuthRequest, error: FetchError) -> Grant:
        """Return what `on_outage` grants. Raises Forbidden or Unavailable.

        ``open`` is for an endpoint that is unreachable. One that answers may redirect to a login page or
        limit rates, and neither may admit a client.
        """
        why = str(error)
        self._metrics.forward_auth.labels("unavailable").inc()
        if self._log_throttle.should_log(why) is not None:
            log.error("forward_auth_down", url=self._display_url, error=why, answer=self._config.on_outage)
        if self._config.on_outage == "open" and not isinstance(error, NoDecisionError):
            return Grant(opened=frozenset(request.channels))
        if self._config.on_outage == "refuse":
            raise Forbidden("the authorization service is unavailable", code="auth_unavailable")
        raise Unavailable("the authorization service is unavailable", code="auth_unavailable")


def _grant_or_raise(answer: _Decision) -> Grant:
    if answer.grant is not None:
        return answer.grant
    if answer.status == 401:
        raise Unauthorized("the forward-auth endpoint requires authentication", code="auth_refused")
    raise Forbidden("the forward-auth endpoint denied access", code="auth_refused")


async def _read_body(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body of a 2xx; ``b""`` for other answers. Raises NoDecisionError if it is too long."""
    if not 200 <= answer.status < 300:
        return b""
    try:
        return await read_bounded_body(answer)
    except FetchError as error:
        raise NoDecisionError(str(error)) from None


def _parse_decision_body(body: bytes) -> _DecisionBody:
    """Return the body of a 2xx; an empty one grants access and no more. Raises NoDecisionError."""
    if not body.strip():
        return _DecisionBody()
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
        if not members.keys().isdisjoint(_DecisionBody.__struct_fields__):
            return msgspec.convert(members, _DecisionBody)
    except (msgspec.MsgspecError, RecursionError):
        pass
    # A page that answers everybody with 200, or {"allowed": false}, is no decision.
    raise NoDecisionError("answered 2xx with a body that is not JSON of subject, channels, expires")
