"""Tracks the newest event per key, for channels whose slow clients get only that (``slow_client: conflate``).

A lagging stream gets the events that it missed, except superseded ones: those whose key has a newer event in
the log, which the stream gets later. So it ends up with the same state as all others, in the order of the
log. A forgotten key only costs some superseded deliveries: the least recent channel's are evicted first, and
all of a channel's when its last watcher leaves.
"""

from collections import OrderedDict

from gateway.core.event import EventId
from gateway.hub.encoded_event import EncodedEvent

MAX_KEYS = 100_000
"""Most keys of all channels together, however much memory there is."""

KEY_OVERHEAD_BYTES = 400
"""Bytes per key, with its entry and its event's id: measured (310), rounded up."""

CHANNEL_OVERHEAD_BYTES = 700
"""Bytes per channel with keys, likewise; its name may have 255 characters."""


class ConflationIndex:
    """The id of the newest event, by channel and key, in about ``max_bytes`` of memory."""

    def __init__(self, max_bytes: int) -> None:
        self._channels: OrderedDict[str, OrderedDict[bytes, EventId]] = OrderedDict()
        self._key_count = 0
        self.set_max_bytes(max_bytes)

    def __len__(self) -> int:
        return self._key_count

    def set_max_bytes(self, max_bytes: int) -> None:
        """Limit the memory from the next event on."""
        self._max_bytes = max_bytes

    def record(self, entry: EncodedEvent) -> None:
        """Record an event of a conflating channel; call it in the order of the log."""
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
        """Tell whether the log has a newer event of the same key."""
        keys = self._channels.get(entry.channel)
        if keys is None or entry.conflation_key is None:
            return False
        newest = keys.get(entry.conflation_key)
        return newest is not None and newest > entry.id

    def forget_channel(self, channel: str) -> None:
        """Forget a channel's keys; harmless if it has none."""
        self._key_count -= len(self._channels.pop(channel, ()))

    def _evict_oldest(self) -> None:
        channel, keys = next(iter(self._channels.items()))
        keys.popitem(last=False)
        self._key_count -= 1
        if not keys:
            del self._channels[channel]
