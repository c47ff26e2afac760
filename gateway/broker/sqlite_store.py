"""The tables of ``sqlite://`` and the statements on them. Synchronous; a store belongs to one thread.

Every method that writes runs inside `transaction`, which takes SQLite's write lock first: what it reads
there (the head, floors, keys) is true until it commits, for all processes on the file. Ids are stored as
one integer, milliseconds in the high bits, so that SQLite's row order is the log's order.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gateway.broker.base import DEDUPLICATION_KEYS, Page
from gateway.errors import Fenced
from gateway.event import Cursor, Draft, Event, EventId, Fence, Retention

APPLICATION_ID = 0x53534547  # "SSEG", in the file's header
VERSION = 2

_SEQ_BITS = 20
_MAX_SEQ = (1 << _SEQ_BITS) - 1
_BUSY_SECONDS = 5.0

LIVE_MS = 10_000
"""How long (milliseconds) every event stays in the file, whatever its channel keeps, for followers to see."""

_CHUNK = 1000  # rows that one trimming statement deletes: a pause of a few milliseconds

_SCHEMA = """
CREATE TABLE log (start INTEGER NOT NULL, head INTEGER NOT NULL);
CREATE TABLE channels (
    key INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    held INTEGER NOT NULL DEFAULT 0,    -- events after the floor
    stored INTEGER NOT NULL DEFAULT 0,  -- and those below it that are not deleted yet
    floor INTEGER NOT NULL,
    age_ms INTEGER
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    channel INTEGER NOT NULL,
    kept INTEGER NOT NULL,
    timestamp INTEGER NOT NULL,
    type TEXT,
    payload BLOB NOT NULL
);
CREATE INDEX events_by_channel ON events (channel, id);
CREATE INDEX events_live ON events (id) WHERE NOT kept;
CREATE TABLE keys (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    channel INTEGER NOT NULL,
    key TEXT NOT NULL,
    id INTEGER NOT NULL
);
CREATE UNIQUE INDEX keys_by_key ON keys (channel, key);
CREATE TABLE cursors (source TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    token INTEGER NOT NULL,
    owner TEXT NOT NULL,
    boot TEXT NOT NULL,
    until REAL NOT NULL
) WITHOUT ROWID;
"""


class ForeignFile(Exception):
    """The file is not a log of this version."""


def pack(id: EventId) -> int:
    """Return an id as the integer that is stored; ids that no log gives are clipped to the nearest."""
    ms: int = min(id.ms, 2**43 - 1)
    return (ms << _SEQ_BITS) | min(id.seq, _MAX_SEQ)


def unpack(number: int) -> EventId:
    """Return the id that `pack` stored."""
    return EventId(number >> _SEQ_BITS, number & _MAX_SEQ)


class Store:
    """One connection. Raises sqlite3.Error where the file is unusable, ForeignFile where it is not ours."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._clock = clock
        # Autocommit, so that transactions are where `transaction` says; threads are the caller's business.
        self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # a commit is on disk before it returns
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the connection; harmless when repeated."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the write lock; commit at the end, or roll back on an error."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Let several statements see one state of the file (a read transaction)."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def head(self) -> int:
        """Return the id of the last event, packed."""
        return int(self._db.execute("SELECT head FROM log").fetchone()[0])

    def go_on_after(self, known: int) -> None:
        """See to it, inside a transaction, that no id repeats that was given before the file went back."""
        if self.head() < known:
            # Another file, or an older copy of this one: nobody knows what it lacks.
            self._db.execute("UPDATE log SET start = ?, head = ?", (known, known))
            self._db.execute("UPDATE channels SET floor = max(floor, ?), held = 0", (known,))

    def append(
        self, drafts: Sequence[Draft], cursor: Cursor | None, fence: Fence | None
    ) -> tuple[list[EventId], list[Event]]:
        """Insert a batch inside a transaction: returns the id of each draft, and the events that are new.

        Raises Fenced before anything is written.
        """
        if fence is not None:
            row = self._db.execute("SELECT token FROM leases WHERE name = ?", (fence.name,)).fetchone()
            if row is None or row[0] != fence.token:
                raise Fenced(f"the lease {fence.name!r} is another node's by now")
        ids: list[EventId] = []
        events: list[Event] = []
        head, now = self.head(), self._clock()
        kept: dict[int, tuple[int, Retention]] = {}
        for draft in drafts:
            channel = self._channel(draft.channel, draft.retention)
            if draft.key is not None:
                seen = self._db.execute(
                    "SELECT id FROM keys WHERE channel = ? AND key = ?", (channel, draft.key)
                ).fetchone()
                if seen is not None:
                    ids.append(unpack(seen[0]))
                    continue
            head = max(now << _SEQ_BITS, head + 1)
            is_kept = draft.retention.events > 0
            self._db.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
                (head, channel, is_kept, draft.timestamp, draft.type, draft.payload),
            )
            if draft.key is not None:
                self._db.execute(
                    "INSERT INTO keys (channel, key, id) VALUES (?, ?, ?)", (channel, draft.key, head)
                )
            if is_kept:
                kept[channel] = (kept.get(channel, (0, draft.retention))[0] + 1, draft.retention)
            id = unpack(head)
            ids.append(id)
            events.append(Event(id, draft.channel, draft.payload, draft.timestamp, draft.type, is_kept))
        for channel, (count, retention) in kept.items():
            self._trim_count(channel, count, retention.events)
            self._delete(channel, now)
        if events:
            self._db.execute("UPDATE log SET head = ?", (head,))
            self._db.execute(
                "DELETE FROM keys WHERE number <= (SELECT max(number) FROM keys) - ?", (DEDUPLICATION_KEYS,)
            )
        if cursor is not None:
            self._db.execute("REPLACE INTO cursors VALUES (?, ?)", (cursor.source, cursor.position))
        return ids, events

    def since(self, after: int, limit: int) -> tuple[list[Event], int]:
        """Return the first events of all channels after an id, for followers, and the log's head."""
        with self._snapshot():
            rows = self._db.execute(
                "SELECT e.id, c.name, e.payload, e.timestamp, e.type, e.kept FROM events e"
                " JOIN channels c ON c.key = e.channel WHERE e.id > ? ORDER BY e.id LIMIT ?",
                (after, limit),
            ).fetchall()
            return [_event(row) for row in rows], self.head()

    def read(self, after: Mapping[str, int], until: int, limit: int, now: int) -> dict[str, Page]:
        """Return what `gateway.broker.base.Broker.read` promises."""
        with self._snapshot():
            return {name: self._page(name, id, until, limit, now) for name, id in after.items()}

    def _page(self, name: str, after: int, until: int, limit: int, now: int) -> Page:
        key, floor, expired = self._floor(name, now)
        rows = self._db.execute(
            "SELECT id, ?, payload, timestamp, type, kept FROM events INDEXED BY events_by_channel"
            " WHERE channel = ? AND id > ? AND id <= ? AND kept ORDER BY id LIMIT ?",
            (name, key, max(after, floor, expired), until, limit + 1),
        ).fetchall()
        events = [_event(row) for row in rows[:limit]]
        return Page(events, unpack(max(after, floor)), more=len(rows) > limit)

    def newest(self, channels: Sequence[str], count: int, now: int) -> EventId:
        """Return what `gateway.broker.base.Broker.newest` promises."""
        found: list[int] = []
        for name in channels:
            key, floor, expired = self._floor(name, now)
            rows = self._db.execute(
                "SELECT id FROM events INDEXED BY events_by_channel"
                " WHERE channel = ? AND id > ? AND kept ORDER BY id DESC LIMIT ?",
                (key, max(floor, expired), count),
            )
            found += [row[0] for row in rows]
        newest = sorted(found)[-count:] if count > 0 else []
        return unpack(newest[0] - 1 if newest else self.head())

    def cursor(self, source: str) -> str | None:
        """Return a source's position."""
        row = self._db.execute("SELECT position FROM cursors WHERE source = ?", (source,)).fetchone()
        return None if row is None else str(row[0])

    def lease(self, name: str, owner: str, boot: str, now: float, seconds: float) -> Fence | None:
        """Take or keep a lease, inside a transaction; ``now`` (seconds) is a clock that ``boot`` shares."""
        row = self._db.execute(
            "SELECT token, owner, boot, until FROM leases WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            token = 1
        elif row[2] != boot or row[3] <= now:
            token = row[0] + 1
        elif row[1] == owner:
            token = row[0]
        else:
            return None
        self._db.execute(
            "REPLACE INTO leases VALUES (?, ?, ?, ?, ?)", (name, token, owner, boot, now + seconds)
        )
        return Fence(name, token)

    def release(self, fence: Fence) -> None:
        """Let a lease expire, inside a transaction; not one that somebody else has by now."""
        self._db.execute(
            "UPDATE leases SET until = 0 WHERE name = ? AND token = ?", (fence.name, fence.token)
        )

    def sweep(self, now: int, start: int, channels: int) -> int:
        """Delete some of what grew too old, inside a transaction; returns where the next sweep goes on."""
        self._db.execute(
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE NOT kept AND id <= ? LIMIT ?)",
            ((now - LIVE_MS) << _SEQ_BITS, _CHUNK),
        )
        rows = self._db.execute(
            "SELECT key, age_ms FROM channels WHERE key > ? AND (held > 0 OR stored > 0)"
            " ORDER BY key LIMIT ?",
            (start, channels),
        ).fetchall()
        for key, age in rows:
            if age is not None:
                self._drop(key, ((now - age + 1) << _SEQ_BITS) - 1)
            self._delete(key, now)
        return int(rows[-1][0]) if len(rows) == channels else 0

    def _prepare(self) -> None:
        with self.transaction():
            application, version = (
                self._db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version")
            )
            if (application, version) == (APPLICATION_ID, VERSION):
                return
            if application == APPLICATION_ID:
                raise ForeignFile(f"is a log of version {version}; this gateway has version {VERSION}")
            if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise ForeignFile("is a database of another program")
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            start = self._clock() << _SEQ_BITS
            self._db.execute("INSERT INTO log VALUES (?, ?)", (start, start))
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _channel(self, name: str, retention: Retention) -> int:
        row = self._db.execute("SELECT key, age_ms FROM channels WHERE name = ?", (name,)).fetchone()
        if row is None:
            values = (name, self._start(), retention.age_ms)
            row = self._db.execute(
                "INSERT INTO channels (name, floor, age_ms) VALUES (?, ?, ?) RETURNING key", values
            ).fetchone()
        elif row[1] != retention.age_ms:
            self._db.execute("UPDATE channels SET age_ms = ? WHERE key = ?", (retention.age_ms, row[0]))
        return int(row[0])

    def _start(self) -> int:
        return int(self._db.execute("SELECT start FROM log").fetchone()[0])

    def _floor(self, name: str, now: int) -> tuple[int | None, int, int]:
        """Return a channel's key, its floor, and the greatest id that is too old just now."""
        row = self._db.execute("SELECT key, floor, age_ms FROM channels WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None, self._start(), 0
        key, floor, age = row
        if age is None:
            return key, floor, 0
        expired = ((now - age + 1) << _SEQ_BITS) - 1
        last = self._db.execute(
            "SELECT max(id) FROM events INDEXED BY events_by_channel WHERE channel = ? AND id <= ? AND kept",
            (key, expired),
        ).fetchone()[0]
        return key, max(floor, last or 0), expired

    def _trim_count(self, channel: int, added: int, most: int) -> None:
        held = self._db.execute(
            "UPDATE channels SET held = held + ?, stored = stored + ? WHERE key = ? RETURNING held",
            (added, added, channel),
        ).fetchone()[0]
        if held > most:
            last = self._db.execute(
                "SELECT id FROM events INDEXED BY events_by_channel WHERE channel = ? AND kept"
                " AND id > (SELECT floor FROM channels WHERE key = ?) ORDER BY id LIMIT 1 OFFSET ?",
                (channel, channel, held - most - 1),
            ).fetchone()
            if last is not None:
                self._db.execute(
                    "UPDATE channels SET floor = ?, held = ? WHERE key = ?", (last[0], most, channel)
                )

    def _drop(self, channel: int, until: int) -> None:
        """Raise a channel's floor to its last event up to ``until``."""
        last, count = self._db.execute(
            "SELECT max(id), count(*) FROM events INDEXED BY events_by_channel WHERE channel = ? AND kept"
            " AND id > (SELECT floor FROM channels WHERE key = ?) AND id <= ?",
            (channel, channel, until),
        ).fetchone()
        if count:
            self._db.execute(
                "UPDATE channels SET floor = ?, held = held - ? WHERE key = ?", (last, count, channel)
            )

    def _delete(self, channel: int, now: int) -> None:
        """Delete some of what a channel no longer holds, and what followers have had time to see."""
        deleted = self._db.execute(
            "DELETE FROM events WHERE id IN (SELECT id FROM events INDEXED BY events_by_channel"
            " WHERE channel = ? AND kept AND id <= (SELECT floor FROM channels WHERE key = ?) AND id <= ?"
            " ORDER BY id LIMIT ?)",
            (channel, channel, (now - LIVE_MS) << _SEQ_BITS, _CHUNK),
        ).rowcount
        if deleted:
            self._db.execute("UPDATE channels SET stored = stored - ? WHERE key = ?", (deleted, channel))


def _event(row: tuple[int, str, bytes, int, str | None, int]) -> Event:
    id, channel, payload, timestamp, type_, kept = row
    return Event(unpack(id), channel, payload, timestamp, type_, bool(kept))
