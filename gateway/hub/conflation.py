"""Which event of each key is the newest, for channels whose slow clients get no other (``conflate``).

A stream that reads on after it was full gets what it missed, less what was superseded meanwhile: an event
whose key has a newer event in the log, which the stream will get in its turn. So it ends up with the same
state as all others, in the order of the log. Keys that are forgotten only cost bytes: those of the channel
that was quiet the longest go first, and all of a channel when its last watcher leaves.
"""

from collections import OrderedDict

from gateway.core.event import EventId
from gateway.hub.encoded_event import EncodedEvent

MAX_KEYS = 100_000
"""Keys that are known at once, of all channels together, however much memory there is."""

KEY_OVERHEAD_BYTES = 400
"""Bytes that a key takes with its place and its event's id: measured, rounded up (310)."""

CHANNEL_OVERHEAD_BYTES = 700
"""Bytes that a channel with keys takes besides, likewise; its name may have 255 characters."""


class ConflationIndex:
    """The id of the newest event, by channel and key, in about ``max_bytes`` of memory."""

    def __init__(self, max_bytes: int) -> None:
        self._channels: OrderedDict[str, OrderedDict[bytes, EventId]] = OrderedDict()
        self._key_count = 0
        self.set_max_bytes(max_bytes)

    def __len__(self) -> int:
        return self._key_count

    def set_max_bytes(self, max_bytes: int) -> None:
        """Take at most so many bytes from the next event on."""
        self._max_bytes = max_bytes

    def record(self, entry: EncodedEvent) -> None:
        """Take note of an event of a channel that conflates; in the order of the log."""
        key = entry.conflation_key
        if key is None:
            return
        keys = self._channels.get(entry.channel)
        if keys is None:
            keys = self._channels[entry.channel] = OrderedDict()
        else:
            self._channels.move_to_end(entry.channel)
        self._key_count += key not in keys
        keys[key] = entry.id
        keys.move_to_end(key)
        while self._key_count > MAX_KEYS or self._size_bytes > self._max_bytes:
            self._evict_oldest()

    @property
    def _size_bytes(self) -> int:
        return self._key_count * KEY_OVERHEAD_BYTES + len(self._channels) * CHANNEL_OVERHEAD_BYTES

    def is_superseded(self, entry: EncodedEvent) -> bool:
        """Tell whether a newer event of the same key is in the log."""
        keys = self._channels.get(entry.channel)
        if keys is None or entry.conflation_key is None:
            return False
        newest = keys.get(entry.conflation_key)
        return newest is not None and newest > entry.id

    def forget_channel(self, channel: str) -> None:
        """Let go of a channel's keys; harmless where it has none."""
        self._key_count -= len(self._channels.pop(channel, ()))

    def _evict_oldest(self) -> None:
        channel, keys = next(iter(self._channels.items()))
        keys.popitem(last=False)
        self._key_count -= 1
        if not keys:
            del self._channels[channel]
