"""Recently accepted messages of a webhook source: a repeated delivery adds no second event. Pure."""

from collections import OrderedDict
from typing import NamedTuple

from gateway.core.errors import Unavailable
from gateway.webhooks.credentials import VerifiedMessage, digest
from gateway.webhooks.formats.base import WebhookResponse

MAX_REMEMBERED_MESSAGES = 100_000
"""Messages of one source that are remembered; the oldest is forgotten first."""

MAX_REMEMBERED_RESPONSE_BYTES = 512
"""Longest response that is kept with its message; for a longer one, the log finds the repeated message."""


class HandledMessage(NamedTuple):
    """The result of an accepted message."""

    response: WebhookResponse | None
    """None if it is too long to be kept."""
    event_count: int


class IdempotencyCache:
    """Remembers accepted messages and their responses.

    The log deduplicates as well, on every node, but may forget a message while its timestamp is still
    tolerated here.
    """

    def __init__(self) -> None:
        # None while a message is being processed.
        self._messages: OrderedDict[bytes, HandledMessage | None] = OrderedDict()

    def begin(self, message: VerifiedMessage) -> HandledMessage | None:
        """Return the result of a repeated message, or None for a new one: then call `finish`.

        Raises Unavailable while the message is being processed.
        """
        if message.attempt_id is None:
            return None
        key = digest(message.attempt_id)
        if key in self._messages:
            handled = self._messages[key]
            if handled is None:
                raise Unavailable("this message is being processed; retry in a second", retry_after=1)
            if handled.response is not None:
                return handled
        self._messages[key] = None
        if len(self._messages) > MAX_REMEMBERED_MESSAGES:
            self._messages.popitem(last=False)
        return None

    def finish(
        self, message: VerifiedMessage, response: WebhookResponse | None, event_count: int = 0
    ) -> None:
        """Store the response. None means that the message is not in the log and may be sent again."""
        if message.attempt_id is None:
            return
        key = digest(message.attempt_id)
        if response is None:
            self._messages.pop(key, None)
        else:
            kept = response if len(response.body) <= MAX_REMEMBERED_RESPONSE_BYTES else None
            self._messages[key] = HandledMessage(kept, event_count)
