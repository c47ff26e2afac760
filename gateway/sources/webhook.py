"""``POST /hooks/{source}`` as a source: who may post, under which topic, and what the body holds."""

import asyncio
import hashlib
import hmac

from gateway.config.model import Webhook
from gateway.errors import BadRequest, GatewayError, Unauthorized, Unavailable
from gateway.event import EventId, Record
from gateway.sources.base import Feed, Source
from gateway.webhooks.formats import payloads

MAX_TOPIC = 255
"""Longest topic, in characters."""

MAX_IDEMPOTENCY_KEY = 255
"""Longest ``Idempotency-Key``, in characters."""


class WebhookSource(Source):
    """Takes posts while it runs; it has nothing to connect to, so it is up from start to stop."""

    reads_once = False  # a balancer spreads the posts

    def __init__(self, config: Webhook) -> None:
        self._topic = config.topic
        self._feed: Feed | None = None
        # Digests, so that the comparison takes the same time whatever the lengths are.
        self._tokens = [_digest(token.get_secret_value()) for token in config.verify.bearer or ()]

    async def run(self, feed: Feed) -> None:
        feed.connected()
        self._feed = feed
        try:
            await asyncio.Event().wait()
        finally:
            self._feed = None

    def authorize(self, authorization: str | None) -> None:
        """Check the ``Authorization`` header. Raises Unauthorized."""
        if not self._tokens:
            return
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("this webhook wants Authorization: Bearer <token>", code="missing_token")
        given = _digest(token.strip())
        # Every token is compared, so that the time does not tell which one was near.
        equal = [hmac.compare_digest(given, known) for known in self._tokens]
        if not any(equal):
            raise Unauthorized(
                "the token is not one of this webhook's",
                code="invalid_token",
                challenge='Bearer error="invalid_token"',
            )

    async def receive(
        self, *, topic: str | None, content_type: str, body: bytes, idempotency_key: str | None = None
    ) -> list[EventId]:
        """Append what the body holds, all of it or nothing, and return the ids.

        Raises BadRequest, PayloadTooLarge or Rejected for what can never succeed, Unavailable for now.
        """
        if self._feed is None:
            raise Unavailable("the gateway is not taking webhooks just now", retry_after=2)
        topic = topic or self._topic
        if topic is None:
            raise BadRequest("no topic: add ?topic=… or set the source's topic", code="no_topic")
        if len(topic) > MAX_TOPIC:
            raise BadRequest(f"the topic is longer than {MAX_TOPIC} characters", code="bad_topic")
        if idempotency_key is not None and len(idempotency_key) > MAX_IDEMPOTENCY_KEY:
            raise BadRequest(
                f"Idempotency-Key is longer than {MAX_IDEMPOTENCY_KEY} characters", code="bad_idempotency_key"
            )
        if idempotency_key is not None and not idempotency_key.isascii():
            # Bytes that are no text arrive as surrogates, which no log can store.
            raise BadRequest("Idempotency-Key must be ASCII", code="bad_idempotency_key")
        records = [
            Record(
                topic=topic,
                payload=payload,
                key=None if idempotency_key is None else f"{idempotency_key}/{index}",
            )
            for index, payload in enumerate(payloads(content_type, body))
        ]
        return await self._feed.publish_all(records)

    def refused(self, error: GatewayError) -> None:
        """Count a post that can never succeed, by its error's code; temporary trouble is not counted."""
        if self._feed is not None and error.status < 500:
            self._feed.reject(error.code)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
