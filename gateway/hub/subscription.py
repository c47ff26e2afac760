"""Subscriptions: what streams requested. Equal ones are one object and share one audience."""

from collections.abc import Mapping, Sequence
from weakref import WeakValueDictionary

from gateway.config.channel_catalog import ChannelMatch, DeclaredChannel
from gateway.core.sse import StreamFormat, encode_http_chunk
from gateway.hub.encoded_event import EncodedEvent


class Subscription:
    """Channels in a canonical order, and how their events are written. Create it with `of`.

    ``format`` None: each channel's own; ``types`` None: all types; ``chunked``: the framing of HTTP/1.1,
    without which the end of the connection ends the body (HTTP/1.0).
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
        """What to follow in the log: the channels, and the templates under which gaps are reported."""
        kept = {name: declared for name, declared in self.followed.items() if declared.retention.max_events}
        self.with_history: Mapping[str, DeclaredChannel] = (
            kept if len(kept) < len(self.followed) else self.followed
        )
        """Those of them that have a history."""
        self.is_unfiltered = (
            types is None
            and self.with_history is self.followed
            and all(declared.config.slow_client_policy != "conflate" for declared in self.followed.values())
        )
        """Whether it gets every event of its channels, and each has an id; bench row: herd."""

    @classmethod
    def of(
        cls,
        matches: tuple[ChannelMatch, ...],
        format: StreamFormat | None = None,
        types: frozenset[str] | None = None,
        *,
        chunked: bool = True,
    ) -> "Subscription":
        """Return the object for this subscription; the order of the channels makes no difference."""
        if len(matches) == 1:  # most streams: no sorting, no runs; bench row: storm
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
        """Tell whether an event passes the type filter; gaps always do."""
        return self.types is None or entry.event.type in self.types or entry.is_gap

    def encode(self, entries: Sequence[EncodedEvent]) -> bytes:
        """Return the blocks of these events, without transfer framing."""
        format = self.format
        return b"".join(
            [self._encode_gap(entry) if entry.is_gap else entry.block(format) for entry in entries]
        )

    def frame(self, blocks: bytes) -> bytes:
        """Return ``blocks`` with the transfer framing."""
        return encode_http_chunk(blocks) if self.is_chunked and blocks else blocks

    def _encode_gap(self, entry: EncodedEvent) -> bytes:
        concerned = tuple(
            match.name for match in self.matches if entry.channel in (match.name, match.declared.name)
        )
        return entry.gap_blocks(concerned)


def _stream_schema_runs(matches: tuple[ChannelMatch, ...]) -> tuple[int, ...]:
    """Return the identity of each channel's stream schema, which a reload may replace.

    Run-length encoded, because most channels of a stream are of one template; bench row: own-channels.
    """
    runs: list[int] = []
    for match in matches:
        schema = id(match.declared.stream_schema)
        if runs and runs[-2] == schema:
            runs[-1] += 1
        else:
            runs += [schema, 1]
    return tuple(runs)


# Weak: a subscription is freed with its last stream.
_interned: WeakValueDictionary[object, Subscription] = WeakValueDictionary()
