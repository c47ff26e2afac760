"""What a stream asked for. Equal subscriptions are one object, share one audience, and with it every byte."""

from collections.abc import Mapping, Sequence
from weakref import WeakValueDictionary

from gateway.config.channel_catalog import ChannelMatch, DeclaredChannel
from gateway.core.sse import StreamFormat, encode_http_chunk
from gateway.hub.encoded_event import EncodedEvent


class Subscription:
    """Channels in a canonical order, and how their events are written. Make it with `of`.

    ``format`` None leaves it to each channel; ``types`` None lets every type through; ``chunked`` is
    the framing of HTTP/1.1, without it the end of the connection ends the body (HTTP/1.0).
    """

    __slots__ = (
        "__weakref__",
        "channels",
        "declared_names",
        "followed",
        "format",
        "is_chunked",
        "is_unfiltered",
        "matches",
        "types",
        "with_history",
    )

    def __init__(
        self,
        names: tuple[str, ...],
        matches: tuple[ChannelMatch, ...],
        format: StreamFormat | None,
        types: frozenset[str] | None,
        *,
        chunked: bool,
    ) -> None:
        self.matches = matches
        self.format = format
        self.types = types
        self.is_chunked = chunked
        self.channels = names
        """Full names of the channels."""
        self.declared_names = tuple(dict.fromkeys(match.declared.name for match in matches))
        """Names of the channels as they are declared, each once."""
        declared = {match.name: match.declared for match in matches}
        declared.update({match.declared.name: match.declared for match in matches if match.is_instance})
        self.followed: Mapping[str, DeclaredChannel] = declared
        """What to follow in the log: the channels, and the templates that gaps are told under."""
        kept = {name: declared for name, declared in self.followed.items() if declared.retention.max_events}
        self.with_history: Mapping[str, DeclaredChannel] = (
            kept if len(kept) < len(self.followed) else self.followed
        )
        """What of it has a history that can be read."""
        self.is_unfiltered = (
            types is None
            and self.with_history is self.followed
            and all(declared.config.slow_client_policy != "conflate" for declared in self.followed.values())
        )
        """Whether it wants all events of its channels, and each has an id."""

    @classmethod
    def of(
        cls,
        matches: tuple[ChannelMatch, ...],
        format: StreamFormat | None = None,
        types: frozenset[str] | None = None,
        *,
        chunked: bool = True,
    ) -> "Subscription":
        """Return the one object for this subscription; a=…&b=… and b=…&a=… are the same."""
        if len(matches) == 1:
            key: object = (matches[0].name, id(matches[0].declared.stream_schema), format, types, chunked)
            found = _interned.get(key)
            if found is None:
                found = _interned[key] = cls((matches[0].name,), matches, format, types, chunked=chunked)
            return found
        matches = tuple(sorted(matches, key=lambda match: match.name))
        names = tuple([match.name for match in matches])  # the key holds what the subscription does
        key = (names, _stream_schema_runs(matches), format, types, chunked)
        found = _interned.get(key)
        if found is None:
            found = _interned[key] = cls(names, matches, format, types, chunked=chunked)
        return found

    def accepts(self, entry: EncodedEvent) -> bool:
        """Tell whether the event passes the type filter; gaps always do."""
        return self.types is None or entry.event.type in self.types or entry.is_gap

    def encode(self, entries: Sequence[EncodedEvent]) -> bytes:
        """Return the blocks of these events, without transfer framing."""
        format = self.format
        return b"".join(
            [self._encode_gap(entry) if entry.is_gap else entry.block(format) for entry in entries]
        )

    def frame(self, blocks: bytes) -> bytes:
        """Return ``blocks`` as they go on the wire."""
        return encode_http_chunk(blocks) if self.is_chunked and blocks else blocks

    def _encode_gap(self, entry: EncodedEvent) -> bytes:
        concerned = tuple(
            match.name for match in self.matches if entry.channel in (match.name, match.declared.name)
        )
        return entry.gap_blocks(concerned)


def _stream_schema_runs(matches: tuple[ChannelMatch, ...]) -> tuple[int, ...]:
    """Return which form each channel has: another configuration may give it another one.

    Runs of one form, each with its length, because most channels of a stream are of one template.
    """
    runs: list[int] = []
    for match in matches:
        form = id(match.declared.stream_schema)
        if runs and runs[-2] == form:
            runs[-1] += 1
        else:
            runs += [form, 1]
    return tuple(runs)


# Holds nobody alive: a subscription is gone with its last stream.
_interned: WeakValueDictionary[object, Subscription] = WeakValueDictionary()
