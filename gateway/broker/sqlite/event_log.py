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
    IDLE_CHANNEL_TTL_MS,
    MAX_RECENT_IDS,
    MIN_DEDUPLICATION_KEYS,
    AppendBatch,
    HistoryPage,
    HistorySpan,
    SpanIds,
)
from gateway.broker.sqlite import shared_store as board
from gateway.core.errors import IdempotencyKeyReused, StaleFencingToken
from gateway.core.event import (
    DELETED_OFFSET,
    MAX_PACKED_ID,
    PACKED_SEQ_BITS,
    AppendedIds,
    Draft,
    Event,
    FencingToken,
    Retention,
    pack_id,
    unpack_id,
)

# Who may read the files of ``sqlite://``: their owner alone, unless the file has wider permissions.

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def create_private_file(path: Path) -> None:
    """Make the file for its owner alone, whatever the umask says; one that exists keeps its permissions.

    SQLite gives those of the file to ``-wal`` and ``-shm``. What cannot be made is left for SQLite to report.
    """
    # Only where there is none: closing a file drops the locks that the process holds on it (fcntl(2)).
    with suppress(OSError):
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE))


def is_world_readable(file: Path) -> bool:
    """Tell whether every user of the machine may read the file."""
    return bool(file.stat().st_mode & stat.S_IROTH)


APPLICATION_ID = 0x53534547  # "SSEG", in the file's header
SCHEMA_VERSION = 6

_BUSY_TIMEOUT_SECONDS = 5.0

MAX_CACHED_CHANNELS = 20_000
"""How many channels a connection remembers the row of."""

MIN_RETENTION_MS = 10_000
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


_MIGRATIONS = {
    3: board.SCHEMA,
    4: "ALTER TABLE log ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0",
    5: "ALTER TABLE keys ADD COLUMN fingerprint TEXT",
}
"""What the version after each one brought."""


class IncompatibleFile(Exception):
    """The file is not a log of this version."""


def explain_incompatibility(database: sqlite3.Connection) -> str:
    """Return why a database is no log that this version takes; empty for one that it does, and for a new one.

    Raises sqlite3.Error.
    """
    application, version = _read_application_and_version(database)
    if application == APPLICATION_ID:
        known = version == SCHEMA_VERSION or version in _MIGRATIONS
        return "" if known else f"is a log of version {version}; this gateway has version {SCHEMA_VERSION}"
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return "is a database of another program" if tables else ""


def _read_application_and_version(database: sqlite3.Connection) -> tuple[int, int]:
    """Return whose a database is, and of which version."""
    application, version = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    return application, version


class SqliteEventLog:
    """One connection. Raises sqlite3.Error where the file is unusable, ForeignFile where it is not ours."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._path = path
        self._channel_cache: dict[str, tuple[int, Retention]] = {}
        self._deleted_channels_floor = 0
        self._channels_to_sweep: set[str] = set()
        create_private_file(path)
        # Autocommit, so that transactions are where `transaction` says; threads are the caller's business.
        self.db = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")  # a commit is on disk before it returns
            self._prepare_schema()
            self.file_identity = _file_identity(path)
            self._file_identities = _file_identities(path)
        except BaseException:
            self.db.close()
            raise

    @property
    def is_file_current(self) -> bool:
        """Whether its files are those at its path: SQLite writes into deleted ones without an error."""
        try:
            return _file_identities(self._path) == self._file_identities
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
    def _read_transaction(self) -> Iterator[None]:
        """Let several statements see one state of the file (a read transaction)."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def read_head(self) -> int:
        """Return the id of the last event, packed."""
        return int(self.db.execute("SELECT head FROM log").fetchone()[0])

    def append(
        self, batches: Sequence[AppendBatch], last_known_id: int
    ) -> tuple[list[AppendedIds | StaleFencingToken | IdempotencyKeyReused], list[Event], int]:
        """Insert batches inside a transaction.

        Returns of each its ids, or why nothing of it was written; the events that are new; and the head
        before. ``known`` is the last id that this process knows of: none up to it is given.
        """
        before = self._advance_head(last_known_id)
        head, now = before, self._clock() << PACKED_SEQ_BITS
        answers: list[AppendedIds | StaleFencingToken | IdempotencyKeyReused] = []
        events: list[Event] = []
        rows: list[tuple[int, int, bool, int, str | None, bytes]] = []
        keys: dict[tuple[int, str], tuple[int, str | None]] = {}
        for batch in batches:
            if batch.fence is not None and not self._is_latest_fence(batch.fence):
                answers.append(StaleFencingToken(f"the lease {batch.fence.lease!r} is another node's by now"))
                continue
            if any(
                draft.request_fingerprint is not None and self._has_key_conflict(draft, keys)
                for draft in batch.drafts
            ):
                answers.append(IdempotencyKeyReused())
                continue
            ids = AppendedIds()
            # What an append costs besides its row; so nothing is called here that need not be.
            for draft in batch.drafts:
                name, retention, payload = draft.channel, draft.retention, draft.payload
                known_channel = self._channel_cache.get(name)
                if known_channel is not None and known_channel[1] is retention:
                    channel = known_channel[0]
                else:
                    channel = self._channel_key(name, retention)
                head_after = now if now > head else head + 1
                if draft.deduplication_key is not None:
                    seen = self._find_first_use((channel, draft.deduplication_key), keys)
                    if seen is not None:
                        ids.append(unpack_id(seen[0]))
                        ids.duplicate_count += 1
                        continue
                    keys[channel, draft.deduplication_key] = head_after, draft.request_fingerprint
                head = head_after
                is_kept = retention.max_events > 0
                rows.append((head, channel, is_kept, draft.timestamp_ms, draft.type, payload))
                id = unpack_id(head)
                ids.append(id)
                events.append(Event(id, name, payload, draft.timestamp_ms, draft.type, is_kept))
            if batch.offset is not None and batch.offset.value == DELETED_OFFSET:
                self.db.execute("DELETE FROM cursors WHERE source = ?", (batch.offset.key,))
            elif batch.offset is not None:
                self.db.execute("REPLACE INTO cursors VALUES (?, ?)", (batch.offset.key, batch.offset.value))
            answers.append(ids)
        if rows:
            self._queue_for_sweep({event.channel for event in events})
            self.db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
            self.db.execute("UPDATE log SET head = ?", (head,))
        if keys:
            self.db.executemany(
                "INSERT INTO keys (channel, key, id, fingerprint) VALUES (?, ?, ?, ?)",
                ((*key, *first) for key, first in keys.items()),
            )
            self.db.execute(
                "DELETE FROM keys WHERE number <= (SELECT max(number) FROM keys) - ?",
                (MIN_DEDUPLICATION_KEYS,),
            )
        return answers, events, before

    def _advance_head(self, last_known_id: int) -> int:
        """Return the head, moved on to what is known if the file is another one, or went back."""
        head, dropped = self.db.execute("SELECT head, dropped FROM log").fetchone()
        if dropped != self._deleted_channels_floor:
            self._channel_cache.clear()  # another process deleted rows: their keys may be given to other channels
            self._deleted_channels_floor = dropped
        if head >= last_known_id:
            return int(head)
        # Nobody knows what it lacks.
        self.db.execute("UPDATE log SET start = ?, head = ?", (last_known_id, last_known_id))
        self.db.execute("UPDATE channels SET floor = max(floor, ?)", (last_known_id,))
        return last_known_id

    def _is_latest_fence(self, fence: FencingToken) -> bool:
        row = self.db.execute("SELECT token FROM leases WHERE name = ?", (fence.lease,)).fetchone()
        return row is not None and row[0] == fence.number

    def _find_first_use(
        self, key: tuple[int, str], new_keys: Mapping[tuple[int, str], tuple[int, str | None]]
    ) -> tuple[int, str | None] | None:
        """Return the id that a deduplication key was first given, and the fingerprint that it came with."""
        if key in new_keys:
            return new_keys[key]
        row: tuple[int, str | None] | None = self.db.execute(
            "SELECT id, fingerprint FROM keys WHERE channel = ? AND key = ?", key
        ).fetchone()
        return row

    def _has_key_conflict(
        self, draft: Draft, new_keys: Mapping[tuple[int, str], tuple[int, str | None]]
    ) -> bool:
        """Tell whether a draft's key came with another fingerprint before."""
        if draft.deduplication_key is None:
            return False
        seen = self._find_first_use(
            (self._channel_key(draft.channel, draft.retention), draft.deduplication_key), new_keys
        )
        return seen is not None and seen[1] not in (None, draft.request_fingerprint)

    def read_all_channels(self, after: int, limit: int) -> tuple[list[Event], int, int]:
        """Return for followers the first events after an id, of all channels, and the log's start and end."""
        with self._read_transaction():
            rows = self.db.execute(
                "SELECT e.id, c.name, e.payload, e.timestamp, e.type, e.kept FROM events e"
                " JOIN channels c ON c.key = e.channel WHERE e.id > ? ORDER BY e.id LIMIT ?",
                (after, limit),
            ).fetchall()
            start, head = self.db.execute("SELECT start, head FROM log").fetchone()
            return [_decode_event(row) for row in rows], int(start), int(head)

    def read(self, after: Mapping[str, int], until: int, limit: int, now: int) -> dict[str, HistoryPage]:
        """Return what `gateway.broker.base.Broker.read` promises."""
        with self._read_transaction():
            return {name: self._read_channel(name, id, until, limit, now) for name, id in after.items()}

    def _read_channel(self, name: str, after: int, until: int, limit: int, now: int) -> HistoryPage:
        key, floor, expired = self._channel_floor(name, now)
        rows = self.db.execute(
            "SELECT id, ?, payload, timestamp, type, kept FROM events INDEXED BY events_by_channel"
            " WHERE channel = ? AND id > ? AND id <= ? AND kept ORDER BY id LIMIT ?",
            (name, key, max(after, floor, expired), until, limit + 1),
        ).fetchall()
        events = [_decode_event(row) for row in rows[:limit]]
        return HistoryPage(events, unpack_id(max(after, floor)), has_more=len(rows) > limit)

    def read_recent_ids(self, spans: Sequence[HistorySpan], now: int) -> list[SpanIds]:
        """Return what `gateway.broker.base.BrokerConfig.read_recent_ids` promises."""
        answers: list[SpanIds] = []
        room = MAX_RECENT_IDS
        with self._read_transaction():
            for span in spans:
                key, floor, expired = self._channel_floor(span.channel, now)
                count = min(span.limit, room)
                before = MAX_PACKED_ID if span.before is None else pack_id(span.before)
                rows = self.db.execute(
                    "SELECT id FROM events INDEXED BY events_by_channel"
                    " WHERE channel = ? AND id >= ? AND id < ? AND kept ORDER BY id DESC LIMIT ?",
                    (key, pack_id(span.first), before, count),
                ).fetchall()
                ids = [row[0] for row in rows]
                room -= len(ids)
                answers.append(SpanIds(ids, max(floor, expired), len(ids) == count))
        return answers

    def read_offset(self, source: str) -> str | None:
        """Return a source's position."""
        row = self.db.execute("SELECT position FROM cursors WHERE source = ?", (source,)).fetchone()
        return None if row is None else str(row[0])

    def list_partitions(self, source: str) -> list[str]:
        """Return the parts of a source that have a position."""
        # What begins with "source/" lies before "source0": "0" is the character that follows "/".
        rows = self.db.execute(
            "SELECT source FROM cursors WHERE source >= ? AND source < ?", (f"{source}/", f"{source}0")
        )
        return [str(row[0]).removeprefix(f"{source}/") for row in rows]

    def acquire_lease(
        self, name: str, owner: str, boot: str, now: float, seconds: float
    ) -> FencingToken | None:
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
        return FencingToken(name, token)

    def release_lease(self, fence: FencingToken) -> None:
        """Let a lease expire, inside a transaction; not one that somebody else has by now."""
        self.db.execute(
            "UPDATE leases SET until = 0 WHERE name = ? AND token = ?", (fence.lease, fence.number)
        )

    def sweep(self, now: int, start: int, channels: int) -> tuple[int, bool]:
        """Delete some of what is no longer held, inside a transaction.

        Returns where the next sweep goes on, and whether there is more to delete already. Channels that
        were written to come first, then the others in turns.
        """
        room = (
            _SWEEP_ROWS
            - self.db.execute(
                "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE NOT kept AND id <= ? LIMIT ?)",
                ((now - MIN_RETENTION_MS) << PACKED_SEQ_BITS, _SWEEP_ROWS),
            ).rowcount
        )
        written = [self._channels_to_sweep.pop() for _ in range(min(channels, len(self._channels_to_sweep)))]
        rows = self.db.execute(
            "SELECT key, name FROM channels WHERE key > ? ORDER BY key LIMIT ?", (start, channels)
        ).fetchall()
        for name in {*written, *(name for _, name in rows)}:
            deleted, is_done = self._trim_channel(name, now, max(room, 0))
            room -= deleted
            if not is_done:
                self._queue_for_sweep({name})
        self._delete_idle_channels([key for key, _ in rows], now)
        return int(rows[-1][0]) if len(rows) == channels else 0, room <= 0

    def _queue_for_sweep(self, names: set[str]) -> None:
        """Let the sweep come by some channels soon; where too many wait for that, it comes in turns."""
        if len(self._channels_to_sweep) < MAX_CACHED_CHANNELS:
            self._channels_to_sweep |= names

    def _trim_channel(self, name: str, now: int, room: int) -> tuple[int, bool]:
        """Delete what followers had time to see of a channel; returns how much, and whether that was all."""
        key, floor, _ = self._channel_floor(name, now)
        until = min(floor, (now - MIN_RETENTION_MS) << PACKED_SEQ_BITS)
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

    def _delete_idle_channels(self, keys: Sequence[int], now: int) -> None:
        """Delete the rows in ``keys`` of channels that hold nothing and were idle for `IDLE_CHANNEL_TTL_MS`.

        A client that resumes with an older id receives a gap on any channel without a row.
        """
        old = (now - IDLE_CHANNEL_TTL_MS) << PACKED_SEQ_BITS
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
            self._channel_cache.pop(name, None)
        floor = max(floor for _, floor in dropped)
        self._deleted_channels_floor = self.db.execute(
            "UPDATE log SET dropped = max(dropped + 1, ?) RETURNING dropped", (floor,)
        ).fetchone()[0]

    def _prepare_schema(self) -> None:
        with self.transaction():
            application, version = _read_application_and_version(self.db)
            if (application, version) == (APPLICATION_ID, SCHEMA_VERSION):
                return
            if application == APPLICATION_ID and version in _MIGRATIONS:
                self._run_schema(";".join(_MIGRATIONS[each] for each in range(version, SCHEMA_VERSION)))
                return
            if why := explain_incompatibility(self.db):
                raise IncompatibleFile(why)
            self._run_schema(_SCHEMA + board.SCHEMA)
            start = self._clock() << PACKED_SEQ_BITS
            self.db.execute("INSERT INTO log (start, head) VALUES (?, ?)", (start, start))
            self.db.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _run_schema(self, schema: str) -> None:
        for statement in schema.split(";"):
            self.db.execute(statement)
        self.db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _channel_key(self, name: str, retention: Retention) -> int:
        known = self._channel_cache.get(name)
        if known is not None and known[1] == retention:
            return known[0]
        key = self.db.execute(
            "INSERT INTO channels (name, floor, events, age_ms) VALUES (?, ?, ?, ?) ON CONFLICT (name)"
            " DO UPDATE SET events = excluded.events, age_ms = excluded.age_ms RETURNING key",
            (name, self._floor_without_row(), retention.max_events, retention.max_age_ms),
        ).fetchone()[0]
        if len(self._channel_cache) >= MAX_CACHED_CHANNELS:
            self._channel_cache.clear()
        self._channel_cache[name] = int(key), retention
        return int(key)

    def _floor_without_row(self) -> int:
        """Return the floor of a channel that has no row: nothing was written to it, or long ago."""
        return int(self.db.execute("SELECT max(start, dropped) FROM log").fetchone()[0])

    def _channel_floor(self, name: str, now: int) -> tuple[int | None, int, int]:
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
        expired = ((now - age + 1) << PACKED_SEQ_BITS) - 1
        last = self.db.execute(
            "SELECT max(id) FROM events INDEXED BY events_by_channel WHERE channel = ? AND id <= ? AND kept",
            (key, expired),
        ).fetchone()[0]
        return key, max(floor, last or 0), expired


def _file_identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from all others. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _file_identities(path: Path) -> list[tuple[int, int]]:
    """Return the same of a file and of the two beside it, which are there while anybody has it open."""
    return [
        _file_identity(path),
        *(_file_identity(path.with_name(f"{path.name}{each}")) for each in ("-wal", "-shm")),
    ]


def _decode_event(row: tuple[int, str, bytes, int, str | None, int]) -> Event:
    id, channel, payload, timestamp, type_, kept = row
    return Event(unpack_id(id), channel, payload, timestamp, type_, bool(kept))
