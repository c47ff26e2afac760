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

EntryId = tuple[int, int]
UNKNOWN_COUNT = -1
"""A number of entries that nobody can tell."""


def parse_entry_id(text: bytes | str) -> EntryId:
    """Return an entry's id as numbers, in the order of the stream. Raises ValueError."""
    ms, _, seq = (text.decode() if isinstance(text, bytes) else text).partition("-")
    return int(ms), int(seq or 0)


@dataclass(frozen=True, slots=True)
class RedisStreamOffset:
    """Behind the entry ``id``, which was the ``count``-th of its stream (`UNKNOWN_CALLER` where nobody counted)."""

    id: EntryId
    count: int

    def __str__(self) -> str:
        return f"{self.id[0]}-{self.id[1]}/{self.count}"

    @property
    def id_text(self) -> str:
        """The id as XREAD takes it."""
        return f"{self.id[0]}-{self.id[1]}"

    @classmethod
    def parse(cls, text: str) -> "RedisStreamOffset | None":
        """Return the place that ``text`` spells, or None."""
        id, _, count = text.partition("/")
        try:
            return cls(parse_entry_id(id), int(count))
        except ValueError:
            return None


class StreamInfo(NamedTuple):
    """What XINFO STREAM says."""

    length: int
    entries_added: int
    last_generated_id: EntryId
    """The highest id that was ever given."""
    max_deleted_id: EntryId
    """The highest id that XDEL ever took; trimming does not count here."""
    first_id: EntryId
    """The first entry that is left, and `newest` the last one; `last` where none is."""
    newest_id: EntryId

    @classmethod
    def parse(cls, answer: Sequence[Any]) -> "StreamInfo | None":
        """Return what an answer (RESP2) says; None where the server is too old to count (before Redis 7)."""
        pairs: Mapping[bytes, Any] = dict(zip(answer[::2], answer[1::2], strict=False))
        if b"entries-added" not in pairs:
            return None
        last = pairs[b"last-generated-id"]
        first, newest = pairs[b"first-entry"], pairs[b"last-entry"]
        return cls(
            pairs[b"length"],
            pairs[b"entries-added"],
            parse_entry_id(last),
            parse_entry_id(pairs[b"max-deleted-entry-id"]),
            parse_entry_id(first[0] if first else last),
            parse_entry_id(newest[0] if newest else last),
        )


START_OFFSET = RedisStreamOffset((0, 0), 0)
"""Before the first entry of all."""


def advance(
    offset: RedisStreamOffset, ids: Sequence[EntryId], info: StreamInfo
) -> tuple[RedisStreamOffset, int]:
    """Return the place behind the entries ``ids``, which XREAD gave for ``place``, and how many are missing.

    ``info`` was asked for after they were read. Missing is 0, a number, or `UNKNOWN_CALLER` (some, not how many).
    """
    is_counted = offset.count != UNKNOWN_COUNT
    behind = RedisStreamOffset(ids[-1], offset.count + len(ids) if is_counted else UNKNOWN_COUNT)
    may_miss = info.first_id > offset.id or info.max_deleted_id > offset.id
    if info.last_generated_id == behind.id:
        # The end: the server's count is ours. Less than we read: it was deleted and begun anew.
        exact = RedisStreamOffset(behind.id, info.entries_added)
        if is_counted and info.entries_added >= behind.count:
            return exact, info.entries_added - behind.count
        return exact, UNKNOWN_COUNT if is_counted or may_miss else 0
    if may_miss and info.max_deleted_id <= offset.id and info.first_id == ids[0]:
        before = info.entries_added - info.length  # trimmed, all of them before the first that is left
        if is_counted and before >= offset.count:
            return RedisStreamOffset(behind.id, before + len(ids)), before - offset.count
        return RedisStreamOffset(behind.id, before + len(ids)), UNKNOWN_COUNT
    if offset.id < info.max_deleted_id < ids[0]:
        return RedisStreamOffset(behind.id, UNKNOWN_COUNT), UNKNOWN_COUNT
    return behind, 0  # or not yet known: the count tells it at the end


def check_idle_stream(offset: RedisStreamOffset, info: StreamInfo | None) -> tuple[RedisStreamOffset, int]:
    """Return where to go on in a stream that gave nothing, and how many entries are missing.

    A stream whose last id lies before our place was deleted and begun anew, or a failover lost its end: what
    comes from now on would be hidden behind our place. ``info`` is None where the key is gone.
    """
    if info is None:
        return START_OFFSET, 0 if offset.id == START_OFFSET.id else UNKNOWN_COUNT
    if info.last_generated_id < offset.id:
        return RedisStreamOffset(info.last_generated_id, info.entries_added), UNKNOWN_COUNT
    if info.last_generated_id > offset.id and (info.length == 0 or info.newest_id <= offset.id):
        # All that came after our place was deleted again, unread.
        is_counted = offset.count != UNKNOWN_COUNT and info.entries_added > offset.count
        return RedisStreamOffset(
            info.last_generated_id, info.entries_added
        ), info.entries_added - offset.count if is_counted else UNKNOWN_COUNT
    return offset, 0
