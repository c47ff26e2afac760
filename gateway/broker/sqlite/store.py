"""The tables of ``sqlite://`` and the statements on them. Synchronous; a store belongs to one thread.

Every method that writes runs inside `transaction`, which takes SQLite's write lock first: what it reads
there (the head, floors, keys) is true until it commits, for all processes on the file. Ids are stored as
one integer, milliseconds in the high bits, so that SQLite's row order is the log's order.
"""

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.broker.base import (
    CHANNEL_KEPT_MS,
    DEDUPLICATION_KEYS,
    RECENT_IDS,
    Batch,
    Page,
    Recent,
    Span,
)
from gateway.broker.sqlite import shared_store as board
from gateway.core.errors import Fenced, KeyReused
from gateway.core.event import (
    GONE,
    MAX_PACKED,
    SEQ_BITS,
    Appended,
    Draft,
    Event,
    Fence,
    Retention,
    pack,
    unpack,
)

# Who may read the files of ``sqlite://``: their owner alone, unless the file has wider permissions.

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def make_file(path: Path) -> None:
    """Make the file for its owner alone, whatever the umask says; one that exists keeps its permissions.

    SQLite gives those of the file to ``-wal`` and ``-shm``. What cannot be made is left for SQLite to report.
    """
    # Only where there is none: closing a file drops the locks that the process holds on it (fcntl(2)).
    with suppress(OSError):
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE))


def is_open_to_all(file: Path) -> bool:
    """Tell whether every user of the machine may read the file."""
    return bool(file.stat().st_mode & stat.S_IROTH)


APPLICATION_ID = 0x53534547  # "SSEG", in the file's header
VERSION = 6

_BUSY_SECONDS = 5.0

CHANNELS = 20_000
"""How many channels a connection remembers the row of."""

LIVE_MS = 10_000
"""How long (milliseconds) every event stays in the file, whatever its channel keeps, for followers to see."""

_SWEEP_ROWS = 4000  # that one sweep deletes: a pause of a few milliseconds

_SCHEMA = """
CREATE TABLE log (
    start INTEGER NOT NULL,
    head INTEGER NOT NULL,
    dropped INTEGER NOT NULL DEFAULT 0  -- floor of channels without a row, grows with each deletion
);
CREATE TABLE channels (
    key INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    floor INTEGER NOT NULL,  -- as far as events were deleted, the limits may be further on
    events INTEGER NOT NULL,
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
CREATE INDEX events_by_channel ON events (channel, id) WHERE kept;
CREATE INDEX events_live ON events (id) WHERE NOT kept;
CREATE TABLE keys (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    channel INTEGER NOT NULL,
    key TEXT NOT NULL,
    id INTEGER NOT NULL,
    fingerprint TEXT
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


_ADDED = {
    3: board.SCHEMA,
    4: "ALTER TABLE log ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0",
    5: "ALTER TABLE keys ADD COLUMN fingerprint TEXT",
}
"""What the version after each one brought."""


class ForeignFile(Exception):
    """The file is not a log of this version."""


def foreign(database: sqlite3.Connection) -> str:
    """Return why a database is no log that this version takes; empty for one that it does, and for a new one.

    Raises sqlite3.Error.
    """
    application, version = _marks(database)
    if application == APPLICATION_ID:
        known = version == VERSION or version in _ADDED
        return "" if known else f"is a log of version {version}; this gateway has version {VERSION}"
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return "is a database of another program" if tables else ""


def _marks(database: sqlite3.Connection) -> tuple[int, int]:
    """Return whose a database is, and of which version."""
    application, version = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    return application, version


class Store:
    """One connection. Raises sqlite3.Error where the file is unusable, ForeignFile where it is not ours."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._path = path
        self._channels: dict[str, tuple[int, Retention]] = {}
        self._dropped = 0
        self._written: set[str] = set()
        make_file(path)
        # Autocommit, so that transactions are where `transaction` says; threads are the caller's business.
        self.db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")  # a commit is on disk before it returns
            self._prepare()
            self.identity = _identity(path)
            self._files = _identities(path)
        except BaseException:
            self.db.close()
            raise

    @property
    def is_current(self) -> bool:
        """Whether its files are those at its path: SQLite writes into deleted ones without an error."""
        try:
            return _identities(self._path) == self._files
        except OSError:
            return False

    def close(self) -> None:
        """Close the connection; harmless when repeated."""
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the write lock; commit at the end, or roll back on an error."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Let several statements see one state of the file (a read transaction)."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def head(self) -> int:
        """Return the id of the last event, packed."""
        return int(self.db.execute("SELECT head FROM log").fetchone()[0])

    def append(
        self, batches: Sequence[Batch], known: int
    ) -> tuple[list[Appended | Fenced | KeyReused], list[Event], int]:
        """Insert batches inside a transaction.

        Returns of each its ids, or why nothing of it was written; the events that are new; and the head
        before. ``known`` is the last id that this process knows of: none up to it is given.
        """
        before = self._head_after(known)
        head, now = before, self._clock() << SEQ_BITS
        answers: list[Appended | Fenced | KeyReused] = []
        events: list[Event] = []
        rows: list[tuple[int, int, bool, int, str | None, bytes]] = []
        keys: dict[tuple[int, str], tuple[int, str | None]] = {}
        for batch in batches:
            if batch.fence is not None and not self._is_current(batch.fence):
                answers.append(Fenced(f"the lease {batch.fence.name!r} is another node's by now"))
                continue
            if any(draft.fingerprint is not None and self._is_other(draft, keys) for draft in batch.drafts):
                answers.append(KeyReused())
                continue
            ids = Appended()
            # What an append costs besides its row; so nothing is called here that need not be.
            for draft in batch.drafts:
                name, retention, payload = draft.channel, draft.retention, draft.payload
                known_channel = self._channels.get(name)
                if known_channel is not None and known_channel[1] is retention:
                    channel = known_channel[0]
                else:
                    channel = self._channel(name, retention)
                head_after = now if now > head else head + 1
                if draft.key is not None:
                    seen = self._seen((channel, draft.key), keys)
                    if seen is not None:
                        ids.append(unpack(seen[0]))
                        ids.duplicates += 1
                        continue
                    keys[channel, draft.key] = head_after, draft.fingerprint
                head = head_after
                is_kept = retention.events > 0
                rows.append((head, channel, is_kept, draft.timestamp, draft.type, payload))
                id = unpack(head)
                ids.append(id)
                events.append(Event(id, name, payload, draft.timestamp, draft.type, is_kept))
            if batch.cursor is not None and batch.cursor.position == GONE:
                self.db.execute("DELETE FROM cursors WHERE source = ?", (batch.cursor.source,))
            elif batch.cursor is not None:
                self.db.execute(
                    "REPLACE INTO cursors VALUES (?, ?)", (batch.cursor.source, batch.cursor.position)
                )
            answers.append(ids)
        if rows:
            self._note_written({event.channel for event in events})
            self.db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
            self.db.execute("UPDATE log SET head = ?", (head,))
        if keys:
            self.db.executemany(
                "INSERT INTO keys (channel, key, id, fingerprint) VALUES (?, ?, ?, ?)",
                ((*key, *first) for key, first in keys.items()),
            )
            self.db.execute(
                "DELETE FROM keys WHERE number <= (SELECT max(number) FROM keys) - ?", (DEDUPLICATION_KEYS,)
            )
        return answers, events, before

    def _head_after(self, known: int) -> int:
        """Return the head, moved on to what is known if the file is another one, or went back."""
        head, dropped = self.db.execute("SELECT head, dropped FROM log").fetchone()
        if dropped != self._dropped:
            self._channels.clear()  # another process deleted rows: their keys may be given to other channels
            self._dropped = dropped
        if head >= known:
            return int(head)
        # Nobody knows what it lacks.
        self.db.execute("UPDATE log SET start = ?, head = ?", (known, known))
        self.db.execute("UPDATE channels SET floor = max(floor, ?)", (known,))
        return known

    def _is_current(self, fence: Fence) -> bool:
        row = self.db.execute("SELECT token FROM leases WHERE name = ?", (fence.name,)).fetchone()
        return row is not None and row[0] == fence.token

    def _seen(
        self, key: tuple[int, str], new: Mapping[tuple[int, str], tuple[int, str | None]]
    ) -> tuple[int, str | None] | None:
        """Return the id that a deduplication key was first given, and the fingerprint that it came with."""
        if key in new:
            return new[key]
        row: tuple[int, str | None] | None = self.db.execute(
            "SELECT id, fingerprint FROM keys WHERE channel = ? AND key = ?", key
        ).fetchone()
        return row

    def _is_other(self, draft: Draft, new: Mapping[tuple[int, str], tuple[int, str | None]]) -> bool:
        """Tell whether a draft's key came with another fingerprint before."""
        if draft.key is None:
            return False
        seen = self._seen((self._channel(draft.channel, draft.retention), draft.key), new)
        return seen is not None and seen[1] not in (None, draft.fingerprint)

    def since(self, after: int, limit: int) -> tuple[list[Event], int, int]:
        """Return for followers the first events after an id, of all channels, and the log's start and end."""
        with self._snapshot():
            rows = self.db.execute(
                "SELECT e.id, c.name, e.payload, e.timestamp, e.type, e.kept FROM events e"
                " JOIN channels c ON c.key = e.channel WHERE e.id > ? ORDER BY e.id LIMIT ?",
                (after, limit),
            ).fetchall()
            start, head = self.db.execute("SELECT start, head FROM log").fetchone()
            return [_event(row) for row in rows], int(start), int(head)

    def read(self, after: Mapping[str, int], until: int, limit: int, now: int) -> dict[str, Page]:
        """Return what `gateway.broker.base.Broker.read` promises."""
        with self._snapshot():
            return {name: self._page(name, id, until, limit, now) for name, id in after.items()}

    def _page(self, name: str, after: int, until: int, limit: int, now: int) -> Page:
        key, floor, expired = self._floor(name, now)
        rows = self.db.execute(
            "SELECT id, ?, payload, timestamp, type, kept FROM events INDEXED BY events_by_channel"
            " WHERE channel = ? AND id > ? AND id <= ? AND kept ORDER BY id LIMIT ?",
            (name, key, max(after, floor, expired), until, limit + 1),
        ).fetchall()
        events = [_event(row) for row in rows[:limit]]
        return Page(events, unpack(max(after, floor)), more=len(rows) > limit)

    def recent(self, spans: Sequence[Span], now: int) -> list[Recent]:
        """Return what `gateway.broker.base.Broker.recent` promises."""
        answers: list[Recent] = []
        room = RECENT_IDS
        with self._snapshot():
            for span in spans:
                key, floor, expired = self._floor(span.channel, now)
                count = min(span.limit, room)
                before = MAX_PACKED if span.before is None else pack(span.before)
                rows = self.db.execute(
                    "SELECT id FROM events INDEXED BY events_by_channel"
                    " WHERE channel = ? AND id >= ? AND id < ? AND kept ORDER BY id DESC LIMIT ?",
                    (key, pack(span.first), before, count),
                ).fetchall()
                ids = [row[0] for row in rows]
                room -= len(ids)
                answers.append(Recent(ids, max(floor, expired), len(ids) == count))
        return answers

    def cursor(self, source: str) -> str | None:
        """Return a source's position."""
        row = self.db.execute("SELECT position FROM cursors WHERE source = ?", (source,)).fetchone()
        return None if row is None else str(row[0])

    def parts(self, source: str) -> list[str]:
        """Return the parts of a source that have a position."""
        # What begins with "source/" lies before "source0": "0" is the character that follows "/".
        rows = self.db.execute(
            "SELECT source FROM cursors WHERE source >= ? AND source < ?", (f"{source}/", f"{source}0")
        )
        return [str(row[0]).removeprefix(f"{source}/") for row in rows]

    def lease(self, name: str, owner: str, boot: str, now: float, seconds: float) -> Fence | None:
        """Take or keep a lease, inside a transaction; ``now`` (seconds) is a clock that ``boot`` shares."""
        row = self.db.execute(
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
        self.db.execute(
            "REPLACE INTO leases VALUES (?, ?, ?, ?, ?)", (name, token, owner, boot, now + seconds)
        )
        return Fence(name, token)

    def release(self, fence: Fence) -> None:
        """Let a lease expire, inside a transaction; not one that somebody else has by now."""
        self.db.execute("UPDATE leases SET until = 0 WHERE name = ? AND token = ?", (fence.name, fence.token))

    def sweep(self, now: int, start: int, channels: int) -> tuple[int, bool]:
        """Delete some of what is no longer held, inside a transaction.

        Returns where the next sweep goes on, and whether there is more to delete already. Channels that
        were written to come first, then the others in turns.
        """
        room = (
            _SWEEP_ROWS
            - self.db.execute(
                "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE NOT kept AND id <= ? LIMIT ?)",
                ((now - LIVE_MS) << SEQ_BITS, _SWEEP_ROWS),
            ).rowcount
        )
        written = [self._written.pop() for _ in range(min(channels, len(self._written)))]
        rows = self.db.execute(
            "SELECT key, name FROM channels WHERE key > ? ORDER BY key LIMIT ?", (start, channels)
        ).fetchall()
        for name in {*written, *(name for _, name in rows)}:
            deleted, is_done = self._trim(name, now, max(room, 0))
            room -= deleted
            if not is_done:
                self._note_written({name})
        self._drop([key for key, _ in rows], now)
        return int(rows[-1][0]) if len(rows) == channels else 0, room <= 0

    def _note_written(self, names: set[str]) -> None:
        """Let the sweep come by some channels soon; where too many wait for that, it comes in turns."""
        if len(self._written) < CHANNELS:
            self._written |= names

    def _trim(self, name: str, now: int, room: int) -> tuple[int, bool]:
        """Delete what followers had time to see of a channel; returns how much, and whether that was all."""
        key, floor, _ = self._floor(name, now)
        until = min(floor, (now - LIVE_MS) << SEQ_BITS)
        cut = self.db.execute(
            "SELECT id FROM events INDEXED BY events_by_channel"
            " WHERE channel = ? AND kept AND id <= ? ORDER BY id LIMIT 1 OFFSET ?",
            (key, until, room),
        ).fetchone()
        if cut is not None:
            until = cut[0] - 1
        deleted = self.db.execute(
            "DELETE FROM events INDEXED BY events_by_channel WHERE channel = ? AND kept AND id <= ?",
            (key, until),
        ).rowcount
        if deleted:
            self.db.execute("UPDATE channels SET floor = max(floor, ?) WHERE key = ?", (until, key))
        return deleted, until == floor

    def _drop(self, keys: Sequence[int], now: int) -> None:
        """Delete the rows in ``keys`` of channels that hold nothing and were idle for `CHANNEL_KEPT_MS`.

        A client that resumes with an older id receives a gap on any channel without a row.
        """
        old = (now - CHANNEL_KEPT_MS) << SEQ_BITS
        marks = ",".join("?" * len(keys))
        dropped = self.db.execute(
            f"DELETE FROM channels WHERE key IN ({marks}) AND floor <= ?"  # noqa: S608 -- nothing but marks
            " AND NOT EXISTS (SELECT 1 FROM events INDEXED BY events_by_channel"
            " WHERE channel = channels.key AND kept)"
            " AND channels.key NOT IN (SELECT channel FROM events INDEXED BY events_live WHERE NOT kept)"
            " AND NOT EXISTS (SELECT 1 FROM keys WHERE channel = channels.key)"
            " RETURNING name, floor",
            (*keys, old),
        ).fetchall()
        if not dropped:
            return
        for name, _ in dropped:
            self._channels.pop(name, None)
        floor = max(floor for _, floor in dropped)
        self._dropped = self.db.execute(
            "UPDATE log SET dropped = max(dropped + 1, ?) RETURNING dropped", (floor,)
        ).fetchone()[0]

    def _prepare(self) -> None:
        with self.transaction():
            application, version = _marks(self.db)
            if (application, version) == (APPLICATION_ID, VERSION):
                return
            if application == APPLICATION_ID and version in _ADDED:
                self._create(";".join(_ADDED[each] for each in range(version, VERSION)))
                return
            if why := foreign(self.db):
                raise ForeignFile(why)
            self._create(_SCHEMA + board.SCHEMA)
            start = self._clock() << SEQ_BITS
            self.db.execute("INSERT INTO log (start, head) VALUES (?, ?)", (start, start))
            self.db.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _create(self, schema: str) -> None:
        for statement in schema.split(";"):
            self.db.execute(statement)
        self.db.execute(f"PRAGMA user_version = {VERSION}")

    def _channel(self, name: str, retention: Retention) -> int:
        known = self._channels.get(name)
        if known is not None and known[1] == retention:
            return known[0]
        key = self.db.execute(
            "INSERT INTO channels (name, floor, events, age_ms) VALUES (?, ?, ?, ?) ON CONFLICT (name)"
            " DO UPDATE SET events = excluded.events, age_ms = excluded.age_ms RETURNING key",
            (name, self._floor_without_row(), retention.events, retention.age_ms),
        ).fetchone()[0]
        if len(self._channels) >= CHANNELS:
            self._channels.clear()
        self._channels[name] = int(key), retention
        return int(key)

    def _floor_without_row(self) -> int:
        """Return the floor of a channel that has no row: nothing was written to it, or long ago."""
        return int(self.db.execute("SELECT max(start, dropped) FROM log").fetchone()[0])

    def _floor(self, name: str, now: int) -> tuple[int | None, int, int]:
        """Return a channel's key, its floor, and the greatest id that is too old just now."""
        row = self.db.execute(
            "SELECT key, floor, events, age_ms FROM channels WHERE name = ?", (name,)
        ).fetchone()
        if row is None:
            return None, self._floor_without_row(), 0
        key, floor, events, age = row
        pushed = self.db.execute(
            "SELECT id FROM events INDEXED BY events_by_channel WHERE channel = ? AND kept"
            " ORDER BY id DESC LIMIT 1 OFFSET ?",
            (key, events),
        ).fetchone()
        floor = max(floor, pushed[0] if pushed is not None else 0)
        if age is None:
            return key, floor, 0
        expired = ((now - age + 1) << SEQ_BITS) - 1
        last = self.db.execute(
            "SELECT max(id) FROM events INDEXED BY events_by_channel WHERE channel = ? AND id <= ? AND kept",
            (key, expired),
        ).fetchone()[0]
        return key, max(floor, last or 0), expired


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from all others. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _identities(path: Path) -> list[tuple[int, int]]:
    """Return the same of a file and of the two beside it, which are there while anybody has it open."""
    return [_identity(path), *(_identity(path.with_name(f"{path.name}{each}")) for each in ("-wal", "-shm"))]


def _event(row: tuple[int, str, bytes, int, str | None, int]) -> Event:
    id, channel, payload, timestamp, type_, kept = row
    return Event(unpack(id), channel, payload, timestamp, type_, bool(kept))
