"""What a stream asked for. Equal subscriptions share one audience, and with it every byte."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.config.catalog import Declared, Match
from gateway.hub.entry import Entry
from gateway.sse import Format, chunk


@dataclass(frozen=True, slots=True)
class Subscription:
    """Channels in a canonical order, and how their events are written.

    ``format`` None leaves it to each channel; ``types`` None lets every type through; ``chunked`` is
    the framing of HTTP/1.1, without it the end of the connection ends the body (HTTP/1.0).
    """

    matches: tuple[Match, ...]
    format: Format | None = None
    types: frozenset[str] | None = None
    chunked: bool = True

    @property
    def key(self) -> object:
        """What makes two subscriptions the same."""
        return (self.channels, self.format, self.types, self.chunked)

    @property
    def channels(self) -> tuple[str, ...]:
        """Full names of the channels."""
        return tuple(match.name for match in self.matches)

    @property
    def declared(self) -> Mapping[str, Declared]:
        """What to follow in the log: the channels, and the templates that gaps are told under."""
        names = {match.name: match.declared for match in self.matches}
        return names | {match.declared.name: match.declared for match in self.matches if match.is_instance}

    @property
    def stored(self) -> Mapping[str, Declared]:
        """What of it has a history that can be read."""
        return {name: declared for name, declared in self.declared.items() if declared.retention.events}

    def wants(self, entry: Entry) -> bool:
        """Tell whether the event passes the type filter; gaps always do."""
        return self.types is None or entry.event.type in self.types or entry.is_gap

    def encode(self, entries: Sequence[Entry]) -> bytes:
        """Return the blocks of these events, without transfer framing."""
        format = self.format
        return b"".join([self._gap(entry) if entry.is_gap else entry.block(format) for entry in entries])

    def frame(self, blocks: bytes) -> bytes:
        """Return ``blocks`` as they go on the wire."""
        return chunk(blocks) if self.chunked and blocks else blocks

    def _gap(self, entry: Entry) -> bytes:
        concerned = tuple(
            match.name for match in self.matches if entry.channel in (match.name, match.declared.name)
        )
        return entry.gap_blocks(concerned)
