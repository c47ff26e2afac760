"""One event on its way through a node: encoded once per format, shared by every stream."""

import hashlib
from typing import Any, Literal

import msgspec

from gateway.config.channel_catalog import DeclaredChannel
from gateway.core.event import GAP_EVENT_TYPE, Event, EventId, Record
from gateway.core.sse import StreamFormat, encode_event_frame, encode_gap_frame

# A mapping in each entry would take more than many an event does.
_FORMAT_ATTRIBUTES: dict[StreamFormat, str] = {
    "envelope": "as_envelope",
    "data": "as_data",
    "message": "as_message",
}


MAX_KEY_BYTES = 32
"""Bytes of a key that is kept as it is; a longer one is known by its digest."""

_DIGEST_PREFIX = b"\xff"  # in no UTF-8, so that no key is spelled like the digest of another one


class EncodedEvent:
    """An event with its blocks, each made when it is first asked for."""

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
        """True if this tells a hole in its channel rather than something that happened."""
        return self.event.type == GAP_EVENT_TYPE

    @property
    def conflation_key(self) -> bytes | None:
        """What a newer event must share to supersede this one; None where none can. Never long."""
        if self._conflation_key is False:
            self._conflation_key = self._compute_conflation_key()
        return self._conflation_key

    def _compute_conflation_key(self) -> bytes | None:
        if self.is_gap or self.declared.config.slow_client_policy != "conflate":
            return None
        type = self.event.type or ""
        if self.declared.conflation_key is None:
            return _bounded_key(type)
        # The type is part of it, because a stream may have asked for some types only.
        text = self.declared.conflation_key.render(Record(self.channel, self.event.payload))
        return None if text is None else _bounded_key(f"{type}\n{text}")

    def block(self, format: StreamFormat | None) -> bytes:
        """Return the event in ``format``, or in its channel's own."""
        spec = self.declared.config
        chosen = format or spec.format
        slot = _FORMAT_ATTRIBUTES[chosen]
        made: bytes | None = getattr(self, slot)
        if made is None:
            made = encode_event_frame(self.event, chosen, spec.payload)
            setattr(self, slot, made)
        return made

    def gap_blocks(self, channels: tuple[str, ...]) -> bytes:
        """Return one ``stream.gap`` for each of the stream's channels that the hole concerns.

        The id stands on the last one: a client that was cut between two is told all of them again.
        """
        told: dict[str, Any] = msgspec.json.decode(self.event.payload)
        after = EventId.parse(str(told.get("after", "")))
        id = self.event.id if self.event.is_retained else None
        return b"".join(
            encode_gap_frame(
                channel,
                str(told["reason"]),
                after=after,
                oldest=self.event.id,
                id=id if position == len(channels) - 1 else None,
                missing_count=told.get("missing"),
            )
            for position, channel in enumerate(channels)
        )


def _bounded_key(key: str) -> bytes:
    """Return a key, or its digest: a payload decides how long it is, and a ring holds it with the event."""
    text = key.encode("utf-8", "surrogatepass")
    if len(text) <= MAX_KEY_BYTES:
        return text
    return _DIGEST_PREFIX + hashlib.blake2b(text, digest_size=16).digest()
