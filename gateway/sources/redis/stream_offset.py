"""How far a Redis stream was read, and whether entries are gone that nobody read. Pure.

How it works. A place is an entry's id and how many entries the stream had been given by then. Redis tells how
many it was given in all, the first that is left, and the highest id that XDEL took. While our place is not
before the first and nothing beyond it was deleted, nothing can be missing. Otherwise the counts settle it: at
the stream's end always, before it where the trimmed ones are all that is gone. An entry that its owner
deletes after we read it is not missed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Id = tuple[int, int]
UNKNOWN = -1
"""A number of entries that nobody can tell."""


def parse_id(text: bytes | str) -> Id:
    """Return an entry's id as numbers, in the order of the stream. Raises ValueError."""
    ms, _, seq = (text.decode() if isinstance(text, bytes) else text).partition("-")
    return int(ms), int(seq or 0)


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """Behind the entry ``id``, which was the ``count``-th of its stream (`UNKNOWN` where nobody counted)."""

    id: Id
    count: int

    def __str__(self) -> str:
        return f"{self.id[0]}-{self.id[1]}/{self.count}"

    @property
    def text(self) -> str:
        """The id as XREAD takes it."""
        return f"{self.id[0]}-{self.id[1]}"

    @classmethod
    def parse(cls, text: str) -> "StreamPlace | None":
        """Return the place that ``text`` spells, or None."""
        id, _, count = text.partition("/")
        try:
            return cls(parse_id(id), int(count))
        except ValueError:
            return None


class StreamInfo(NamedTuple):
    """What XINFO STREAM says."""

    length: int
    added: int
    last: Id
    """The highest id that was ever given."""
    deleted: Id
    """The highest id that XDEL ever took; trimming does not count here."""
    first: Id
    """The first entry that is left, and `newest` the last one; `last` where none is."""
    newest: Id

    @classmethod
    def of(cls, answer: Sequence[Any]) -> "StreamInfo | None":
        """Return what an answer (RESP2) says; None where the server is too old to count (before Redis 7)."""
        pairs: Mapping[bytes, Any] = dict(zip(answer[::2], answer[1::2], strict=False))
        if b"entries-added" not in pairs:
            return None
        last = pairs[b"last-generated-id"]
        first, newest = pairs[b"first-entry"], pairs[b"last-entry"]
        return cls(
            pairs[b"length"],
            pairs[b"entries-added"],
            parse_id(last),
            parse_id(pairs[b"max-deleted-entry-id"]),
            parse_id(first[0] if first else last),
            parse_id(newest[0] if newest else last),
        )


START = StreamPlace((0, 0), 0)
"""Before the first entry of all."""


def read_on(place: StreamPlace, ids: Sequence[Id], info: StreamInfo) -> tuple[StreamPlace, int]:
    """Return the place behind the entries ``ids``, which XREAD gave for ``place``, and how many are missing.

    ``info`` was asked for after they were read. Missing is 0, a number, or `UNKNOWN` (some, not how many).
    """
    is_counted = place.count != UNKNOWN
    behind = StreamPlace(ids[-1], place.count + len(ids) if is_counted else UNKNOWN)
    may_miss = info.first > place.id or info.deleted > place.id
    if info.last == behind.id:
        # The end: the server's count is ours. Less than we read: it was deleted and begun anew.
        exact = StreamPlace(behind.id, info.added)
        if is_counted and info.added >= behind.count:
            return exact, info.added - behind.count
        return exact, UNKNOWN if is_counted or may_miss else 0
    if may_miss and info.deleted <= place.id and info.first == ids[0]:
        before = info.added - info.length  # trimmed, all of them before the first that is left
        if is_counted and before >= place.count:
            return StreamPlace(behind.id, before + len(ids)), before - place.count
        return StreamPlace(behind.id, before + len(ids)), UNKNOWN
    if place.id < info.deleted < ids[0]:
        return StreamPlace(behind.id, UNKNOWN), UNKNOWN
    return behind, 0  # or not yet known: the count tells it at the end


def at_rest(place: StreamPlace, info: StreamInfo | None) -> tuple[StreamPlace, int]:
    """Return where to go on in a stream that gave nothing, and how many entries are missing.

    A stream whose last id lies before our place was deleted and begun anew, or a failover lost its end: what
    comes from now on would be hidden behind our place. ``info`` is None where the key is gone.
    """
    if info is None:
        return START, 0 if place.id == START.id else UNKNOWN
    if info.last < place.id:
        return StreamPlace(info.last, info.added), UNKNOWN
    if info.last > place.id and (info.length == 0 or info.newest <= place.id):
        # All that came after our place was deleted again, unread.
        is_counted = place.count != UNKNOWN and info.added > place.count
        return StreamPlace(info.last, info.added), info.added - place.count if is_counted else UNKNOWN
    return place, 0
