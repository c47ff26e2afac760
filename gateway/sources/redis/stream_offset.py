"""Offsets in a Redis stream, and the number of entries that were removed unread. Pure.

How it works. An offset is an entry's id, and how many entries had been added to the stream by then. XINFO
says how many were added in all, which entry is now the first, and the highest id that XDEL removed. While our
offset is not before the first entry and nothing after it was deleted, nothing is missing. Otherwise the
counts decide: at the end of the stream always, earlier only if trimming is the only removal. Entries that are
deleted after we read them are not missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

EntryId = tuple[int, int]
UNKNOWN_COUNT = -1
"""Stands for an unknown number of entries."""


def parse_entry_id(text: bytes | str) -> EntryId:
    """Return an entry's id as numbers, in the order of the stream. Raises ValueError."""
    ms, _, seq = (text.decode() if isinstance(text, bytes) else text).partition("-")
    return int(ms), int(seq or 0)


@dataclass(frozen=True, slots=True)
class RedisStreamOffset:
    """The position after the entry ``id``, the ``count``-th of its stream, or `UNKNOWN_COUNT`."""

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
        """Return the offset that ``text`` spells, or None."""
        id, _, count = text.partition("/")
        try:
            return cls(parse_entry_id(id), int(count))
        except ValueError:
            return None


class StreamInfo(NamedTuple):
    """The answer to XINFO STREAM."""

    length: int
    entries_added: int
    last_generated_id: EntryId
    """The highest id that was ever added."""
    max_deleted_id: EntryId
    """The highest id that XDEL ever removed; trimming does not change it."""
    first_id: EntryId
    """The first entry, and `newest_id` the last one; both are `last_generated_id` if the stream is empty."""
    newest_id: EntryId

    @classmethod
    def parse(cls, answer: Sequence[Any]) -> "StreamInfo | None":
        """Parse an answer (RESP2); None from a server before Redis 7, which does not count added entries."""
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
"""Before the first entry ever."""


def advance(
    offset: RedisStreamOffset, ids: Sequence[EntryId], info: StreamInfo
) -> tuple[RedisStreamOffset, int]:
    """Return the offset after the entries ``ids`` that followed ``offset``, and how many are missing.

    ``info`` was read after the entries. `UNKNOWN_COUNT` stands for some missing entries.
    """
    is_counted = offset.count != UNKNOWN_COUNT
    after = RedisStreamOffset(ids[-1], offset.count + len(ids) if is_counted else UNKNOWN_COUNT)
    may_miss = info.first_id > offset.id or info.max_deleted_id > offset.id
    if info.last_generated_id == after.id:
        # The end: the server's count is exact. Below ours, the stream was deleted and created anew.
        exact = RedisStreamOffset(after.id, info.entries_added)
        if is_counted and info.entries_added >= after.count:
            return exact, info.entries_added - after.count
        return exact, UNKNOWN_COUNT if is_counted or may_miss else 0
    if may_miss and info.max_deleted_id <= offset.id and info.first_id == ids[0]:
        before = info.entries_added - info.length  # trimmed, all of them before the first that is left
        if is_counted and before >= offset.count:
            return RedisStreamOffset(after.id, before + len(ids)), before - offset.count
        return RedisStreamOffset(after.id, before + len(ids)), UNKNOWN_COUNT
    if offset.id < info.max_deleted_id < ids[0]:
        return RedisStreamOffset(after.id, UNKNOWN_COUNT), UNKNOWN_COUNT
    return after, 0  # if some are missing, the count shows it at the end of the stream


def check_idle_stream(offset: RedisStreamOffset, info: StreamInfo | None) -> tuple[RedisStreamOffset, int]:
    """Return where to continue in a stream that returned no entries, and how many are missing.

    A stream whose last id is before our offset was deleted and created anew, or a failover lost its end: new
    entries with ids below our offset would never be read. ``info`` is None if the key is gone.
    """
    if info is None:
        return START_OFFSET, 0 if offset.id == START_OFFSET.id else UNKNOWN_COUNT
    if info.last_generated_id < offset.id:
        return RedisStreamOffset(info.last_generated_id, info.entries_added), UNKNOWN_COUNT
    if info.last_generated_id > offset.id and (info.length == 0 or info.newest_id <= offset.id):
        # All entries after our offset were deleted unread.
        is_counted = offset.count != UNKNOWN_COUNT and info.entries_added > offset.count
        missing = info.entries_added - offset.count if is_counted else UNKNOWN_COUNT
        return RedisStreamOffset(info.last_generated_id, info.entries_added), missing
    return offset, 0
