"""Events with their encoded blocks: encoded once per format, shared by all streams of a node."""

import hashlib
from typing import Any, Literal

import msgspec

from gateway.config.channel_catalog import DeclaredChannel
from gateway.core.event import GAP_EVENT_TYPE, Event, EventId, Record
from gateway.core.sse import StreamFormat, encode_event_frame, encode_gap_frame

# Attributes rather than a mapping in each entry, which takes more memory than most events; bench row: ingest.
_FORMAT_ATTRIBUTES: dict[StreamFormat, str] = {
    "envelope": "as_envelope",
    "data": "as_data",
    "message": "as_message",
}


MAX_KEY_BYTES = 32
"""Bytes of the longest conflation key that is stored as it is; longer ones are replaced by a digest."""

_DIGEST_PREFIX = b"\xff"  # not in UTF-8, so no key equals the digest of another one


class EncodedEvent:
    """An event with its encoded blocks, each encoded at its first use."""

    __slots__ = ("_conflation_key", "as_data", "as_envelope", "as_message", "declared", "event")

    def __init__(self, event: Event, declared: DeclaredChannel) -> None:
        self.event = event
        self.declared = declared
        self.as_envelope: bytes | None = None
        self.as_data: bytes | None = None
        self.as_message: bytes | None = None
        self._conflation_key: bytes | Literal[False] | None = False

    @property
    def id(self) -> EventId:
        return self.event.id

    @property
    def channel(self) -> str:
        return self.event.channel

    @property
    def is_gap(self) -> bool:
        """Whether the event reports a gap in its channel."""
        return self.event.type == GAP_EVENT_TYPE

    @property
    def conflation_key(self) -> bytes | None:
        """Newer events with the same key supersede this one; None: none do. At most `MAX_KEY_BYTES`."""
        if self._conflation_key is False:
            self._conflation_key = self._compute_conflation_key()
        return self._conflation_key

    def _compute_conflation_key(self) -> bytes | None:
        if self.is_gap or self.declared.config.slow_client_policy != "conflate":
            return None
        type = self.event.type or ""
        if self.declared.conflation_key is None:
            return _bounded_key(type)
        # The type is part of the key, because a stream may be limited to some types.
        text = self.declared.conflation_key.render(Record(self.channel, self.event.payload))
        return None if text is None else _bounded_key(f"{type}\n{text}")

    def block(self, format: StreamFormat | None) -> bytes:
        """Return the event in ``format``, by default its channel's."""
        spec = self.declared.config
        chosen = format or spec.format
        attribute = _FORMAT_ATTRIBUTES[chosen]
        block: bytes | None = getattr(self, attribute)
        if block is None:
            block = encode_event_frame(self.event, chosen, spec.payload)
            setattr(self, attribute, block)
        return block

    def gap_blocks(self, channels: tuple[str, ...]) -> bytes:
        """Return one ``stream.gap`` for each of the stream's channels that the gap concerns.

        Only the last one has the id: a client that is cut between two gets all of them again.
        """
        gap: dict[str, Any] = msgspec.json.decode(self.event.payload)
        after = EventId.parse(str(gap.get("after", "")))
        id = self.event.id if self.event.is_retained else None
        return b"".join(
            encode_gap_frame(
                channel,
                str(gap["reason"]),
                after=after,
                oldest=self.event.id,
                id=id if position == len(channels) - 1 else None,
                missing_count=gap.get("missing"),
            )
            for position, channel in enumerate(channels)
        )


def _bounded_key(key: str) -> bytes:
    """Return a key, or the digest of a long one: payloads determine it, and rings store it."""
    text = key.encode("utf-8", "surrogatepass")
    if len(text) <= MAX_KEY_BYTES:
        return text
    return _DIGEST_PREFIX + hashlib.blake2b(text, digest_size=16).digest()
