"""``POST /hooks/{source}`` as a source: verifies senders, limits their rate, and publishes what they post."""

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
from gateway.sources.context import Source, SourceContext
from gateway.webhooks.credentials import UNIDENTIFIED, Headers, PeerCertificate, VerifiedMessage
from gateway.webhooks.detect import check_path, parse_post
from gateway.webhooks.formats.base import Outcome, Post, WebhookResponse, fingerprint_of
from gateway.webhooks.idempotency import IdempotencyCache
from gateway.webhooks.signatures import build_verifier

THREADED_BODY_BYTES = 256 * 1024
"""Larger bodies (bytes) are checked in a thread, so that they do not hold up the event loop."""

LARGE_BODY_BYTES = 1024 * 1024
"""Larger bodies (bytes) are checked one at a time: the values of 16 MiB of JSON take a hundred MiB."""

LARGE_BODY_WAIT_SECONDS = 20.0
"""How long a large body waits for the others: a check takes about a second at most."""

T = TypeVar("T")


class BodyChecker:
    """Runs the checks of webhook bodies for all sources of a node; large ones in a thread, one at a time."""

    def __init__(self) -> None:
        self._large_body_lock = asyncio.Lock()

    async def run(self, size: int, check: Callable[[], T]) -> T:
        """Return or raise what ``check`` does; ``size`` is the body's, in bytes.

        Raises Unavailable if other large bodies take too long. Cancelling is safe, but a check that runs
        goes on.
        """
        if size <= THREADED_BODY_BYTES:
            return check()
        if size <= LARGE_BODY_BYTES:
            return await asyncio.to_thread(check)
        try:
            async with asyncio.timeout(LARGE_BODY_WAIT_SECONDS):
                await self._large_body_lock.acquire()
        except TimeoutError:
            raise Unavailable("other large bodies are being checked; try again", retry_after=2) from None
        # The lock is released when the check ends, even if its request was cancelled before.
        checking = asyncio.ensure_future(asyncio.to_thread(check))
        checking.add_done_callback(self._release_lock)
        return await asyncio.shield(checking)

    def _release_lock(self, checking: "asyncio.Future[T]") -> None:
        self._large_body_lock.release()
        if not checking.cancelled():
            checking.exception()  # marks it as retrieved: a cancelled request does not await it


class WebhookSource(Source):
    """Accepts posts while it runs. It has no upstream to connect to, so it is up from start to stop."""

    is_exclusive = False  # a load balancer spreads the posts over all nodes

    def __init__(self, config: WebhookConfig, body_checker: BodyChecker, *, event_bytes: int) -> None:
        self.body_checker = body_checker
        self._replays = IdempotencyCache()
        self._context: SourceContext | None = None
        self._config: WebhookConfig | None = None
        self.reconfigure(config, event_bytes=event_bytes)

    def reconfigure(self, config: WebhookConfig, *, event_bytes: int) -> None:
        """Apply another configuration to posts that come from now on."""
        self._record_bytes = 2 * event_bytes  # a record also has white space and an envelope
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
        """Answer 503 from now on, while the node shuts down."""
        self._context = None

    @property
    def needs_body(self) -> bool:
        """Whether verifying the sender takes the whole body."""
        return self._verifier.needs_body

    def check_before_body(
        self, headers: Headers, token: str | None, certificate: PeerCertificate | None = None
    ) -> None:
        """Check everything that needs no body; ``certificate`` is the client's.

        Raises Unauthorized, Forbidden, TooManyRequests or Unavailable.
        """
        self._running_context()
        if (
            self._verifier.has_ambient_credentials
            and headers.get("sec-fetch-site") in CROSS_ORIGIN_FETCH_SITES
        ):
            # A form, or a fetch without a preflight, carries the browser's certificates and passwords.
            raise Forbidden("pages of other origins may not post here", code="cross_origin")
        self._verifier.check_certificate(certificate, time.time())
        self._verifier.check_headers(headers, token)
        seconds = self.rate_wait_seconds()
        if seconds:
            raise TooManyRequests(
                "more records than this source's rate allows", retry_after=max(1, math.ceil(seconds))
            )

    def _running_context(self) -> SourceContext:
        if self._context is None:
            raise Unavailable("the gateway does not accept webhooks at the moment", retry_after=2)
        return self._context

    def rate_wait_seconds(self) -> float:
        """Return the seconds until the source's rate allows more records; 0 if it does already."""
        return 0.0 if self._rate is None else self._rate.seconds_until_available()

    async def process_once(
        self, post: Post, append: Callable[[Post], Awaitable[tuple[WebhookResponse, int]]]
    ) -> WebhookResponse:
        """Verify a post and ``append`` it; a message that was appended before gets the same response again.

        ``append`` receives the post with its metadata, and returns the response and how many events it
        stands for. Raises Unauthorized, or Unavailable while the same message is being processed.
        """
        proof = self._verifier.verify_message(post.headers, post.body, time.time())
        handled = self._replays.begin(proof)
        if handled is not None and handled.response is not None:
            if self._context is not None:
                self._context.count_duplicates(handled.event_count)
            return handled.response
        response, events = None, 0
        try:
            response, events = await append(self.with_metadata(post, proof))
        finally:
            self._replays.finish(proof, response, events)
        return response

    def with_metadata(self, post: Post, proof: VerifiedMessage = UNIDENTIFIED) -> Post:
        """Return a post with what the configuration and its signature say about it.

        Raises RecordRejected for a path that the source's format does not serve.
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
        """Append the records of a body, and return the response in the sender's format.

        All of them or none, if the format has no result for each record. Raises BadRequest, Unauthorized,
        PayloadTooLarge or RecordRejected for what can never succeed, Unavailable for what can be retried.
        """
        return await self.process_once(post, self._append_post)

    async def _append_post(self, post: Post) -> tuple[WebhookResponse, int]:
        parsed = await self.body_checker.run(len(post.body), lambda: parse_post(post, self._format))
        outcomes = await self.append_records(parsed.records, atomic=parsed.format.is_atomic)
        # Nothing is in the log then, and a sender that reads only the status has to retry.
        if unavailable := next((each for each in outcomes if isinstance(each, Unavailable)), None):
            raise unavailable
        errors = [each for each in outcomes if isinstance(each, GatewayError) and each.status == 404]
        if errors and len(errors) == len(outcomes):
            raise errors[0]
        events = self.count_outcomes(outcomes)
        return parsed.format.build_response(post, parsed, outcomes), events

    async def append_records(
        self, records: Sequence[Record | GatewayError], *, atomic: bool = False
    ) -> Sequence[Outcome]:
        """Append records and return the outcome of each; ``atomic`` raises the first error instead."""
        context = self._running_context()
        if self._rate is not None:
            self._rate.consume(len(records))
        outcomes: list[Outcome] = [each if isinstance(each, GatewayError) else () for each in records]
        if atomic and (error := next((each for each in outcomes if isinstance(each, GatewayError)), None)):
            raise error
        valid = [(index, each) for index, each in enumerate(records) if isinstance(each, Record)]
        published = await context.publish_each([record for _, record in valid], atomic=atomic)
        for (index, _), outcome in zip(valid, published, strict=True):
            outcomes[index] = outcome
        return outcomes

    def count_outcomes(self, outcomes: Sequence[Outcome]) -> int:
        """Count the rejected records among these, and return how many events the others became."""
        events = 0
        for outcome in outcomes:
            if isinstance(outcome, GatewayError):
                self.count_rejection(outcome)
            else:
                events += len(outcome)
        return events

    def count_rejection(self, error: GatewayError, client: str | None = None) -> bool:
        """Count an error that no retry can cure, by its code; False if it was not counted."""
        if self._context is None or error.status >= 500:
            return False
        self._context.count_rejection(
            error.code, error.message, **({} if client is None else {"client": client})
        )
        return True
