"""The tables of ``sqlite://`` and the statements on them. Synchronous; a connection belongs to one thread.

Every method that writes runs inside `SqliteEventLog.transaction`, which takes SQLite's write lock first: what
it reads there (the head, floors, keys) stays true until it commits, for all processes on the file. Ids are
stored as one integer, milliseconds in the high bits, so that SQLite's row order is the log's order.
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
    AppendResult,
    HistoryPage,
    HistorySpan,
    SpanIds,
    has_key_conflict,
)
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

FILE_MODE = 0o600
"""Permissions of a new file: its owner alone. An existing file keeps its own."""
FOLDER_MODE = 0o700

APPLICATION_ID = 0x53534547  # "SSEG", in the file's header
SCHEMA_VERSION = 6

_BUSY_TIMEOUT_SECONDS = 5.0

MAX_CACHED_CHANNELS = 20_000
"""Channels whose row a connection remembers."""

MIN_RETENTION_MS = 10_000
"""How long (milliseconds) every event stays in the file for followers, even if its channel retains none."""

_SWEEP_ROWS = 4000
"""Rows that one sweep deletes: a pause of a few milliseconds."""

_SHARED_STORE_SCHEMA = """
CREATE TABLE notes (name TEXT PRIMARY KEY, value BLOB NOT NULL, until INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX notes_until ON notes (until);
CREATE TABLE seats (
    name TEXT NOT NULL, member TEXT NOT NULL, boot TEXT NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (name, member)
) WITHOUT ROWID;
CREATE INDEX seats_until ON seats (until);
"""

_SCHEMA = """
CREATE TABLE log (
    start INTEGER NOT NULL, head INTEGER NOT NULL,
    dropped INTEGER NOT NULL DEFAULT 0  -- floor of channels without a row, grows with each deletion
);
CREATE TABLE channels (
    key INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    floor INTEGER NOT NULL,  -- events up to here were deleted
    events INTEGER NOT NULL, age_ms INTEGER
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, channel INTEGER NOT NULL, kept INTEGER NOT NULL,
    timestamp INTEGER NOT NULL, type TEXT, payload BLOB NOT NULL
);
CREATE INDEX events_by_channel ON events (channel, id) WHERE kept;
CREATE INDEX events_live ON events (id) WHERE NOT kept;
CREATE TABLE keys (
    number INTEGER PRIMARY KEY AUTOINCREMENT, channel INTEGER NOT NULL, key TEXT NOT NULL,
    id INTEGER NOT NULL, fingerprint TEXT
);
CREATE UNIQUE INDEX keys_by_key ON keys (channel, key);
CREATE TABLE cursors (source TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE leases (
    name TEXT PRIMARY KEY, token INTEGER NOT NULL, owner TEXT NOT NULL,
    boot TEXT NOT NULL, until REAL NOT NULL
) WITHOUT ROWID;
"""

_MIGRATIONS = {
    3: _SHARED_STORE_SCHEMA,
    4: "ALTER TABLE log ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0",
    5: "ALTER TABLE keys ADD COLUMN fingerprint TEXT",
}
"""The statements that bring a file from each version to the next one."""

_Key = tuple[int, str | None]  # a channel's key, and a deduplication key
_FirstUse = tuple[int, str | None]  # the id and the request fingerprint of its first use


class IncompatibleFile(Exception):
    """The file is not a log that this version can use."""


def is_world_readable(file: Path) -> bool:
    """Return whether every user of the machine may read the file."""
    return bool(file.stat().st_mode & stat.S_IROTH)


def explain_incompatibility(database: sqlite3.Connection) -> str:
    """Return why this version cannot use a database as its log; empty if it can. Raises sqlite3.Error."""
    application, version = _read_application_and_version(database)
    if application == APPLICATION_ID:
        known = version == SCHEMA_VERSION or version in _MIGRATIONS
        return "" if known else f"is a log of version {version}; this gateway has version {SCHEMA_VERSION}"
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return "is a database of another program" if tables else ""


def _read_application_and_version(database: sqlite3.Connection) -> tuple[int, int]:
    application, version = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    return application, version


class SqliteEventLog:
    """One connection. Raises sqlite3.Error or OSError for an unusable file, or IncompatibleFile."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._path = path
        self._channel_cache: dict[str, tuple[int, Retention]] = {}
        self._deleted_channels_floor = 0
        self._channels_to_sweep: set[str] = set()
        _create_private_file(path)
        # Autocommit: `transaction` alone begins transactions.
        self.db = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self.db.execute("PRAGMA journal_mode = WAL")
            self.db.execute("PRAGMA synchronous = FULL")  # a commit is on disk before it returns
            self._prepare_schema()
            self._file_identities = _file_identities(path)
            self.file_identity = self._file_identities[0]
        except BaseException:
            self.db.close()
            raise

    @property
    def is_file_current(self) -> bool:
        """Whether the open files are those at the path: SQLite writes into deleted ones without an error."""
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
        """Run several statements on one snapshot of the file."""
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
    ) -> tuple[list[AppendResult], list[Event], int]:
        """Insert batches inside a transaction.

        Returns a result per batch, the new events, and the head before. All new ids are later than
        ``last_known_id``, the last one that this process has seen.
        """
        before = self._advance_head(last_known_id)
        head, now = before, self._clock() << PACKED_SEQ_BITS
        results: list[AppendResult] = []
        events: list[Event] = []
        rows: list[tuple[int, int, bool, int, str | None, bytes]] = []
        keys: dict[_Key, _FirstUse] = {}
        for batch in batches:
            if batch.fence is not None and not self._is_latest_fence(batch.fence):
                results.append(StaleFencingToken(f"another node holds the lease {batch.fence.lease!r} now"))
                continue
            if has_key_conflict(batch.drafts, lambda draft: self._find_first_use(draft, keys)):
                results.append(IdempotencyKeyReused())
                continue
            ids = AppendedIds()
            # Inlined, because it is most of an append's cost besides the row (benchmark row: append).
            for draft in batch.drafts:
                name, retention, payload = draft.channel, draft.retention, draft.payload
                known_channel = self._channel_cache.get(name)
                if known_channel is not None and known_channel[1] is retention:
                    channel = known_channel[0]
                else:
                    channel = self._channel_key(name, retention)
                head_after = now if now > head else head + 1
                if draft.deduplication_key is not None:
                    seen = self._find_first_use(draft, keys)
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
            results.append(ids)
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
        return results, events, before

    def _advance_head(self, last_known_id: int) -> int:
        """Return the head, advanced to ``last_known_id`` if the file was replaced or restored."""
        head, dropped = self.db.execute("SELECT head, dropped FROM log").fetchone()
        if dropped != self._deleted_channels_floor:
            self._channel_cache.clear()  # another process deleted rows; other channels may reuse their keys
            self._deleted_channels_floor = dropped
        if head >= last_known_id:
            return int(head)
        # It is unknown which events the file lacks.
        self.db.execute("UPDATE log SET start = ?, head = ?", (last_known_id, last_known_id))
        self.db.execute("UPDATE channels SET floor = max(floor, ?)", (last_known_id,))
        return last_known_id

    def _is_latest_fence(self, fence: FencingToken) -> bool:
        row = self.db.execute("SELECT token FROM leases WHERE name = ?", (fence.lease,)).fetchone()
        return row is not None and row[0] == fence.number

    def _find_first_use(self, draft: Draft, new_keys: Mapping[_Key, _FirstUse]) -> _FirstUse | None:
        key = self._channel_key(draft.channel, draft.retention), draft.deduplication_key
        query = "SELECT id, fingerprint FROM keys WHERE channel = ? AND key = ?"
        found: _FirstUse | None = new_keys.get(key) or self.db.execute(query, key).fetchone()
        return found

    def read_all_channels(self, after: int, limit: int) -> tuple[list[Event], int, int]:
        """Return the first events after an id, of all channels, and the log's start and head."""
        with self._read_transaction():
            rows = self.db.execute(
                "SELECT e.id, c.name, e.payload, e.timestamp, e.type, e.kept FROM events e"
                " JOIN channels c ON c.key = e.channel WHERE e.id > ? ORDER BY e.id LIMIT ?",
                (after, limit),
            ).fetchall()
            start, head = self.db.execute("SELECT start, head FROM log").fetchone()
            return [_decode_event(row) for row in rows], int(start), int(head)

    def read(self, after: Mapping[str, int], until: int, limit: int, now: int) -> dict[str, HistoryPage]:
        """Read history as in `gateway.broker.base.Broker.read`, with packed ids."""
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
        """Read ids as in `gateway.broker.base.Broker.read_recent_ids`."""
        found: list[SpanIds] = []
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
                found.append(SpanIds(ids, max(floor, expired), len(ids) == count))
        return found

    def read_offset(self, source: str) -> str | None:
        """Return the offset stored for a source."""
        row = self.db.execute("SELECT position FROM cursors WHERE source = ?", (source,)).fetchone()
        return None if row is None else str(row[0])

    def list_partitions(self, source: str) -> list[str]:
        """Return the partitions of a source that have an offset."""
        # Keys that begin with "source/" sort before "source0": "0" is the character after "/".
        rows = self.db.execute(
            "SELECT source FROM cursors WHERE source >= ? AND source < ?", (f"{source}/", f"{source}0")
        )
        return [str(row[0]).removeprefix(f"{source}/") for row in rows]

    def acquire_lease(
        self, name: str, owner: str, boot: str, now: float, seconds: float
    ) -> FencingToken | None:
        """Acquire or renew a lease inside a transaction; ``now``: seconds since this boot."""
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
        """Release a lease inside a transaction, unless another owner acquired it meanwhile."""
        self.db.execute(
            "UPDATE leases SET until = 0 WHERE name = ? AND token = ?", (fence.lease, fence.number)
        )

    def sweep(self, now: int, start: int, channels: int) -> tuple[int, bool]:
        """Delete some of the expired events, inside a transaction.

        Returns where the next sweep continues, and whether more can be deleted at once. Channels that
        were written to come first, then the others in turn.
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
        """Let the sweep visit channels soon; if too many are queued, it visits them in turn."""
        if len(self._channels_to_sweep) < MAX_CACHED_CHANNELS:
            self._channels_to_sweep |= names

    def _trim_channel(self, name: str, now: int, room: int) -> tuple[int, bool]:
        """Delete at most ``room`` expired events; returns how many, and whether that were all."""
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
        """Delete the rows of those channels that hold nothing and were idle for `IDLE_CHANNEL_TTL_MS`."""
        old = (now - IDLE_CHANNEL_TTL_MS) << PACKED_SEQ_BITS
        marks = ",".join("?" * len(keys))
        dropped = self.db.execute(
            f"DELETE FROM channels WHERE key IN ({marks}) AND floor <= ?"  # noqa: S608 -- only placeholders
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
            if reason := explain_incompatibility(self.db):
                raise IncompatibleFile(reason)
            self._run_schema(_SCHEMA + _SHARED_STORE_SCHEMA)
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
        """Return the floor of a channel without a row: it was not written to, or long ago."""
        return int(self.db.execute("SELECT max(start, dropped) FROM log").fetchone()[0])

    def _channel_floor(self, name: str, now: int) -> tuple[int | None, int, int]:
        """Return a channel's key, its floor, and the greatest id that has expired by age."""
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


def _create_private_file(path: Path) -> None:
    """Create the file if there is none, with `FILE_MODE` whatever the umask is; SQLite reports errors.

    SQLite creates ``-wal`` and ``-shm`` with the permissions of the file.
    """
    # Never open an existing one: closing a file drops the locks that the process holds on it (fcntl(2)).
    with suppress(OSError):
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE))


def _file_identities(path: Path) -> list[tuple[int, int]]:
    """Return device and inode of the file, and of the two beside it while it is open. Raises OSError."""
    stats = [path.with_name(f"{path.name}{suffix}").stat() for suffix in ("", "-wal", "-shm")]
    return [(each.st_dev, each.st_ino) for each in stats]


def _decode_event(row: tuple[int, str, bytes, int, str | None, int]) -> Event:
    id, channel, payload, timestamp, type_, kept = row
    return Event(unpack_id(id), channel, payload, timestamp, type_, bool(kept))
