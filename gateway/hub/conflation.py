"""Which event of each key is the newest, for channels whose slow clients get no other (``conflate``).

A stream that reads on after it was full gets what it missed, less what was superseded meanwhile: an event
whose key has a newer event in the log, which the stream will get in its turn. So it ends up with the same
state as all others, in the order of the log. Keys that are forgotten only cost bytes: those of the channel
that was quiet the longest go first, and all of a channel when its last watcher leaves.
"""

from collections import OrderedDict

from gateway.core.event import EventId
from gateway.hub.encoded_event import Entry

MAX_KEYS = 100_000
"""Keys that are known at once, of all channels together, however much memory there is."""

KEY_BYTES = 400
"""Bytes that a key takes with its place and its event's id: measured, rounded up (310)."""

CHANNEL_BYTES = 700
"""Bytes that a channel with keys takes besides, likewise; its name may have 255 characters."""


class Newest:
    """The id of the newest event, by channel and key, in about ``max_bytes`` of memory."""

    def __init__(self, max_bytes: int) -> None:
        self._channels: OrderedDict[str, OrderedDict[bytes, EventId]] = OrderedDict()
        self._count = 0
        self.limit(max_bytes)

    def __len__(self) -> int:
        return self._count

    def limit(self, max_bytes: int) -> None:
        """Take at most so many bytes from the next event on."""
        self._max_bytes = max_bytes

    def note(self, entry: Entry) -> None:
        """Take note of an event of a channel that conflates; in the order of the log."""
        key = entry.key
        if key is None:
            return
        keys = self._channels.get(entry.channel)
        if keys is None:
            keys = self._channels[entry.channel] = OrderedDict()
        else:
            self._channels.move_to_end(entry.channel)
        self._count += key not in keys
        keys[key] = entry.id
        keys.move_to_end(key)
        while self._count > MAX_KEYS or self._bytes > self._max_bytes:
            self._drop()

    @property
    def _bytes(self) -> int:
        return self._count * KEY_BYTES + len(self._channels) * CHANNEL_BYTES

    def supersedes(self, entry: Entry) -> bool:
        """Tell whether a newer event of the same key is in the log."""
        keys = self._channels.get(entry.channel)
        if keys is None or entry.key is None:
            return False
        newest = keys.get(entry.key)
        return newest is not None and newest > entry.id

    def forget(self, channel: str) -> None:
        """Let go of a channel's keys; harmless where it has none."""
        self._count -= len(self._channels.pop(channel, ()))

    def _drop(self) -> None:
        channel, keys = next(iter(self._channels.items()))
        keys.popitem(last=False)
        self._count -= 1
        if not keys:
            del self._channels[channel]
