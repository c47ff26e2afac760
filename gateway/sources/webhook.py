"""``POST /hooks/{source}`` as a source: who may post, how much, and what becomes of it."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from gateway.config.model.origins import CROSS_ORIGIN_FETCH_SITES
from gateway.config.model.sources import WebhookConfig
from gateway.config.placeholders import Expression
from gateway.core.errors import Forbidden, GatewayError, TooManyRequests, Unavailable
from gateway.core.event import Record
from gateway.core.token_bucket import TokenBucket
from gateway.sources.base import Source, SourceContext
from gateway.webhooks.credentials import UNIDENTIFIED, Headers, PeerCertificate, VerifiedMessage
from gateway.webhooks.detect import check_path, parse_post
from gateway.webhooks.formats.base import Outcome, Post, WebhookResponse, fingerprint_of
from gateway.webhooks.idempotency import IdempotencyCache
from gateway.webhooks.signatures import build_verifier

# The checks of webhooks' bodies, which take memory and time in proportion to the body, and more.
#
# A body of 16 MiB may hold millions of values, which take a hundred MiB for as long as they are looked at.
# So the checks of large ones take turns, and run in a thread, that the loop gets its own turns meanwhile.

THREADED_BODY_BYTES = 256 * 1024
"""Bytes of a body that is checked in a thread."""

LARGE_BODY_BYTES = 1024 * 1024
"""Bytes of a body that is checked while no other large one is."""

LARGE_BODY_WAIT_SECONDS = 20.0
"""How long a large body waits for its turn: a check takes about a second at the most."""

T = TypeVar("T")


class BodyChecker:
    """Runs checks; one for all sources of a node."""

    def __init__(self) -> None:
        self._large_body_lock = asyncio.Lock()

    async def run(self, size: int, check: Callable[[], T]) -> T:
        """Return what the check of a body of ``size`` bytes returns, and raise what it raises.

        Raises Unavailable where others take too long. Cancelling is safe; a check that runs goes on.
        """
        if size <= THREADED_BODY_BYTES:
            return check()
        if size <= LARGE_BODY_BYTES:
            return await asyncio.to_thread(check)
        try:
            async with asyncio.timeout(LARGE_BODY_WAIT_SECONDS):
                await self._large_body_lock.acquire()
        except TimeoutError:
            raise Unavailable("other large bodies are checked just now", retry_after=2) from None
        # The turn is over with the check, also where nobody waits for it any more.
        checking = asyncio.ensure_future(asyncio.to_thread(check))
        checking.add_done_callback(self._release_lock)
        return await asyncio.shield(checking)

    def _release_lock(self, checking: "asyncio.Future[T]") -> None:
        self._large_body_lock.release()
        if not checking.cancelled():
            checking.exception()  # whoever waited has it; without anybody it is nobody's


class WebhookSource(Source):
    """Takes posts while it runs; it has nothing to connect to, so it is up from start to stop."""

    is_exclusive = False  # a balancer spreads the posts

    def __init__(
        self,
        config: WebhookConfig,
        body_checker: BodyChecker,
        *,
        event_bytes: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._body_checker = body_checker
        self._replays = IdempotencyCache()
        self._now = now
        self._context: SourceContext | None = None
        self._config: WebhookConfig | None = None
        self.reconfigure(config, event_bytes=event_bytes)

    def reconfigure(self, config: WebhookConfig, *, event_bytes: int) -> None:
        """Take another configuration, for posts that come from now on."""
        self._record_bytes = 2 * event_bytes  # white space and an envelope count here, and not in the event
        self._format = config.format
        self._default_topic = None if config.topic is None else Expression(config.topic)
        self._verifier = build_verifier(config.verify)
        if self._config is None or config.rate != self._config.rate:
            self._rate = None if config.rate is None else TokenBucket(config.rate)
        self._config = config

    async def run(self, context: SourceContext) -> None:
        context.report_connected()
        self._context = context
        try:
            await asyncio.Event().wait()
        finally:
            self._context = None

    def pause(self) -> None:
        """Answer 503 from now on: nobody is left who would get what is posted."""
        self._context = None

    @property
    def needs_body(self) -> bool:
        """Whether the sender is known only once its whole body was read."""
        return self._verifier.needs_body

    def check_before_body(
        self, headers: Headers, token: str | None, certificate: PeerCertificate | None = None
    ) -> None:
        """Check what needs no body; ``certificate`` is the client's.

        Raises Unauthorized, Forbidden, TooManyRequests or Unavailable.
        """
        if self._context is None:
            raise Unavailable("the gateway is not taking webhooks just now", retry_after=2)
        if (
            self._verifier.has_ambient_credentials
            and headers.get("sec-fetch-site") in CROSS_ORIGIN_FETCH_SITES
        ):
            # A form or a fetch without a preflight carries certificates and passwords that the browser holds.
            raise Forbidden("pages of other origins may not post here", code="cross_origin")
        self._verifier.check_certificate(certificate, self._now())
        self._verifier.check_headers(headers, token)
        if self._rate is not None:
            seconds = self._rate.seconds_until_available()
            if seconds:
                raise TooManyRequests(
                    "more records than this source's rate allows", retry_after=max(1, math.ceil(seconds))
                )

    def rate_wait_seconds(self) -> float:
        """Return the seconds until the rate allows more: for a sender that is read as fast as it may send."""
        return 0.0 if self._rate is None else self._rate.seconds_until_available()

    async def process_once(
        self, post: Post, append: Callable[[Post], Awaitable[tuple[WebhookResponse, int]]]
    ) -> WebhookResponse:
        """Check who sent a body, and let ``take`` append it; a message that was taken gets the same answer.

        ``take`` is given the post with what its signature says, and returns the answer and how many events it
        stands for. Raises Unauthorized, or Unavailable while the same message is being taken.
        """
        proof = self._verifier.verify_message(post.headers, post.body, self._now())
        answered = self._replays.begin(proof)
        if answered is not None and answered.response is not None:
            if self._context is not None:
                self._context.count_duplicates(answered.event_count)
            return answered.response
        reply, events = None, 0
        try:
            reply, events = await append(self.with_metadata(post, proof))
        finally:
            self._replays.finish(proof, reply, events)
        return reply

    def with_metadata(self, post: Post, proof: VerifiedMessage = UNIDENTIFIED) -> Post:
        """Return a post with what the file and its signature tell of it.

        Raises Rejected for a path that its format does not speak.
        """
        check_path(post, self._format)
        is_keyed = proof.message_id is None and post.message_id is not None
        return msgspec.structs.replace(
            post,
            default_topic=self._default_topic,
            message_id=proof.message_id or post.message_id,
            has_idempotency_key=is_keyed,
            request_fingerprint=fingerprint_of(post.body) if is_keyed and post.body else None,
            type=proof.event_type,
            max_record_bytes=self._record_bytes,
            shared_values={f"headers.{name}": text for name, text in post.headers.items()},
        )

    async def receive(self, post: Post) -> WebhookResponse:
        """Append what the body holds, and return the answer in its format's own form.

        All of it or nothing, where the format cannot tell about each record. Raises BadRequest,
        Unauthorized, PayloadTooLarge or Rejected for what can never succeed, Unavailable for now.
        """
        return await self.process_once(post, self._append_post)

    async def _append_post(self, post: Post) -> tuple[WebhookResponse, int]:
        parsed = await self.run_check(len(post.body), lambda: parse_post(post, self._format))
        outcomes = await self.append_records(parsed.records, atomic=parsed.format.is_atomic)
        # Nothing is in the log then, and whoever reads the status only must try again.
        if later := next((each for each in outcomes if isinstance(each, Unavailable)), None):
            raise later
        first = outcomes[0] if outcomes else ()
        if isinstance(first, GatewayError) and {_status_of(outcome) for outcome in outcomes} == {404}:
            raise first
        self.count_rejected_records(outcomes)
        return parsed.format.build_response(post, parsed, outcomes), count_events(outcomes)

    async def run_check(self, size: int, check: Callable[[], T]) -> T:
        """Return what a check of a body of ``size`` bytes returns, once it has its turn.

        Raises what it raises, or Unavailable. Cancelling is safe.
        """
        return await self._body_checker.run(size, check)

    async def append_records(
        self, records: Sequence[Record | GatewayError], *, atomic: bool = False
    ) -> Sequence[Outcome]:
        """Append records and return what became of each; ``atomic`` raises the first refusal instead."""
        if self._context is None:
            raise Unavailable("the gateway is not taking webhooks just now", retry_after=2)
        if self._rate is not None:
            self._rate.consume(len(records))
        outcomes: list[Outcome] = [each if isinstance(each, GatewayError) else () for each in records]
        if atomic and (error := next((each for each in outcomes if isinstance(each, GatewayError)), None)):
            raise error
        good = [(place, each) for place, each in enumerate(records) if isinstance(each, Record)]
        published = await self._context.publish_each([record for _, record in good], atomic=atomic)
        for (place, _), outcome in zip(good, published, strict=True):
            outcomes[place] = outcome
        return outcomes

    def count_rejected_records(self, outcomes: Sequence[Outcome]) -> None:
        """Count the records among these that were refused."""
        for outcome in outcomes:
            if isinstance(outcome, GatewayError):
                self.count_rejection(outcome)

    def count_rejection(self, error: GatewayError, client: str | None = None) -> bool:
        """Count what can never succeed, by its error's code; False for what was not counted."""
        if self._context is None or error.status >= 500:
            return False
        self._context.count_rejection(
            error.code, error.message, **({} if client is None else {"client": client})
        )
        return True


def count_events(outcomes: Sequence[Outcome]) -> int:
    """Return how many events these are."""
    return sum(len(outcome) for outcome in outcomes if not isinstance(outcome, GatewayError))


def _status_of(outcome: Outcome) -> int:
    return outcome.status if isinstance(outcome, GatewayError) else 200
