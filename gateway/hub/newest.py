"""Which event of each key is the newest, for channels whose slow clients get no other (``conflate``).

A stream that reads on after it was full gets what it missed, less what was superseded meanwhile: an event
whose key has a newer event in the log, which the stream will get in its turn. So it ends up with the same
state as all others, in the order of the log. Keys that are forgotten, oldest first, only cost bytes.
"""

from collections import OrderedDict

from gateway.event import EventId
from gateway.hub.entry import Entry

MAX_KEYS = 100_000
"""Keys that are known at once, of all channels together."""


class Newest:
    """The id of the newest event, by channel and key."""

    def __init__(self) -> None:
        self._ids: OrderedDict[tuple[str, str], EventId] = OrderedDict()

    def note(self, entry: Entry) -> None:
        """Take note of an event of a channel that conflates; in the order of the log."""
        key = entry.key
        if key is None:
            return
        place = (entry.channel, key)
        self._ids[place] = entry.id
        self._ids.move_to_end(place)
        if len(self._ids) > MAX_KEYS:
            self._ids.popitem(last=False)

    def supersedes(self, entry: Entry) -> bool:
        """Tell whether a newer event of the same key is in the log."""
        key = entry.key
        newest = None if key is None else self._ids.get((entry.channel, key))
        return newest is not None and newest > entry.id
