"""The SQLite broker: the contract, durability, several processes, and failures of the file."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.broker.base import IDLE_CHANNEL_TTL_MS
from gateway.broker.sqlite.broker import SqliteBroker
from gateway.core.clock import unix_ms
from gateway.core.errors import StartupError, Unavailable
from gateway.core.event import EventId, Retention
from tests.broker.contract import FAR, ZERO, Clock, Follower, SharedContract, draft, read
from tests.support.gateway import eventually
from tests.support.needs import need_root


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def broker(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteBroker]:
    broker = SqliteBroker(tmp_path / "log.db", clock=clock)
    await broker.start()
    yield broker
    await broker.close()


@pytest.fixture
async def other(tmp_path: Path, broker: SqliteBroker, clock: Clock) -> AsyncIterator[SqliteBroker]:
    other = SqliteBroker(tmp_path / "log.db", clock=clock)
    await other.start()
    yield other
    await other.close()


class TestSqliteBroker(SharedContract):
    """The contract of every broker."""


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


async def test_nobody_else_may_read_the_log(tmp_path: Path, clock: Clock) -> None:
    """Under the usual umask every user of the machine could read the events of all channels."""
    path = tmp_path / "var" / "log.db"
    with umask(0o022):
        broker = SqliteBroker(path, clock=clock)
        await broker.start()
        await broker.append([draft("c")])
        found = modes(path.parent)
        await broker.close()
    assert found == {"log.db": 0o600, "log.db-wal": 0o600, "log.db-shm": 0o600}
    assert modes(tmp_path) == {"var": 0o700}


async def test_a_shared_file_keeps_its_permissions(tmp_path: Path, clock: Clock) -> None:
    """A file that the operator shares between users would lose its permissions."""
    path = tmp_path / "log.db"
    path.touch()
    path.chmod(0o660)
    with umask(0o022), capture_logs() as logs:
        broker = SqliteBroker(path, clock=clock)
        await broker.start()
        await broker.append([draft("c")])
        found = modes(tmp_path)
        await broker.close()
    assert found == {"log.db": 0o660, "log.db-wal": 0o660, "log.db-shm": 0o660}
    assert not logs


async def test_a_file_that_all_can_read_is_reported(tmp_path: Path, clock: Clock) -> None:
    """An operator would not learn that every user can read the log."""
    path = tmp_path / "log.db"
    path.touch()
    path.chmod(0o644)
    with capture_logs() as logs:
        broker = SqliteBroker(path, clock=clock)
        await broker.start()
        await broker.close()
    assert [line["event"] for line in logs] == ["log_file_world_readable"]
    assert modes(tmp_path)["log.db"] == 0o644


async def test_the_log_survives_a_restart(tmp_path: Path, clock: Clock) -> None:
    """A restart would lose events, deduplication keys or offsets, or repeat ids after the clock was set back."""
    first = SqliteBroker(tmp_path / "log.db", clock=clock)
    await first.start()
    ids = await first.append([draft("c", retention=Retention(2), key=f"k{number}") for number in range(4)])
    await first.close()
    clock.now -= 10_000
    second = SqliteBroker(tmp_path / "log.db", clock=clock)
    await second.start()
    assert second.head == ids[-1]
    assert await read(second, "c", ids[0]) == (ids[2:], ids[1])
    assert await second.append([draft("c", key="k1")]) == [ids[1]]
    assert (await second.append([draft("c")]))[0] > ids[-1]
    await second.close()


async def test_a_kill_9_loses_no_acknowledged_event(tmp_path: Path) -> None:
    """Guarantee 4: an event that was acknowledged would be lost in a crash."""
    script = """
import asyncio, sys
from pathlib import Path
from gateway.core.clock import unix_ms
from gateway.broker.base import IDLE_CHANNEL_TTL_MS
from gateway.broker.sqlite.broker import SqliteBroker
from tests.broker.contract import draft

async def main():
    broker = SqliteBroker(Path(sys.argv[1]), clock=unix_ms)
    await broker.start()
    number = 0
    while True:
        ids = await asyncio.gather(*(broker.append([draft("c")]) for _ in range(20)))
        print("\\n".join(str(id) for (id,) in ids), flush=True)

asyncio.run(main())
"""
    path = tmp_path / "log.db"
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    answered = [child.stdout.readline().strip() for _ in range(500)]
    child.kill()
    answered += [line for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    child.wait()
    broker = SqliteBroker(path, clock=unix_ms)
    await broker.start()
    found: set[str] = set()
    after, more = ZERO, True
    while more:
        page = (await broker.read({"c": after}, FAR, 500))["c"]
        found |= {str(event.id) for event in page.events}
        more = page.has_more
        after = page.events[-1].id if page.events else after
    # The channel keeps 1,000; what was answered before those is allowed to be gone.
    kept = [id.strip() for id in answered][-500:]
    assert set(kept) <= found
    await broker.close()


@pytest.mark.parametrize("content", ["foreign", "garbage", "newer"])
async def test_a_file_that_is_no_log_is_one_clear_line(tmp_path: Path, content: str) -> None:
    """The gateway would write into another program's database."""
    path = tmp_path / "log.db"
    if content == "garbage":
        path.write_bytes(b"not a database, but long enough to have a header of one" * 10)
    else:
        broker = SqliteBroker(path, clock=unix_ms)
        if content == "newer":
            await broker.start()
            await broker.close()
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99" if content == "newer" else "CREATE TABLE theirs (x)")
        database.commit()
        database.close()
    with pytest.raises(StartupError, match=r"log.db \(broker.url\) cannot be used: "):
        await SqliteBroker(path, clock=unix_ms).start()


@asynccontextmanager
async def started(path: Path) -> AsyncIterator[SqliteBroker]:
    broker = SqliteBroker(path, clock=unix_ms)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


@contextmanager
def disk(path: Path, size: str, *more: str) -> Iterator[Path]:
    """Mount a file system of a limited size."""
    need_root()
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", *more, "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


async def assert_log_works(broker: SqliteBroker, follower: Follower) -> None:
    """Assert that the next append works and is delivered."""
    (id,) = await broker.append([draft("c")])
    assert broker.is_up
    await eventually(lambda: follower.events[-1].id == id)


async def test_a_locked_file_is_unavailable_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's lock would stop the log for good."""
    monkeypatch.setattr("gateway.broker.sqlite.event_log._BUSY_TIMEOUT_SECONDS", 0.2)
    path = tmp_path / "log.db"
    async with started(path) as broker:
        follower = Follower(broker)
        await broker.append([draft("c")])
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="cannot be written: database is locked"):
            await broker.append([draft("c")])
        assert not broker.is_up
        blocker.execute("ROLLBACK")
        blocker.close()
        await assert_log_works(broker, follower)


async def test_appends_that_wait_for_a_slow_disk_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow commit would reject appends, or let any number of them fill the memory."""
    monkeypatch.setattr("gateway.broker.batcher.MAX_WAITING", 300)
    path = tmp_path / "log.db"
    async with started(path) as broker:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        waiting = []
        for _ in range(300):
            waiting.append(asyncio.create_task(broker.append([draft("c")])))
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # one iteration of the loop each, so that they arrive one by one
        with pytest.raises(Unavailable, match="300 appends are waiting"):
            await broker.append([draft("c")])
        blocker.execute("ROLLBACK")
        blocker.close()
        assert len({ids[0] for ids in await asyncio.gather(*waiting)}) == 300
        await broker.append([draft("c")])


@pytest.mark.extended
async def test_a_full_disk_is_unavailable_and_passes(tmp_path: Path) -> None:
    """A full disk would store half of a batch, or stop the log for good."""
    with disk(tmp_path / "disk", "1m") as folder:
        async with started(folder / "log.db") as broker:
            follower = Follower(broker)
            await broker.append([draft("c")])
            ballast = folder / "ballast"
            with pytest.raises(OSError, match="No space"), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            whole = 1
            with pytest.raises(Unavailable, match=r"written: (database or disk is full|disk I/O error)"):
                while True:
                    await broker.append([draft("c", bytes(5000)), draft("c", bytes(5000))])
                    whole += 2
            ids, _ = await read(broker, "c", limit=1000)
            assert len(ids) == whole
            ballast.unlink()
            await assert_log_works(broker, follower)


async def test_a_broken_file_is_unavailable_until_it_is_taken_away(tmp_path: Path) -> None:
    """A corrupt file would crash the gateway, or stop the log after it was moved away."""
    path = tmp_path / "log.db"
    async with started(path) as broker:
        follower = Follower(broker)
        old = await broker.append([draft("c", bytes(3000)) for _ in range(50)])
        await follower.until(50)
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
        with pytest.raises(Unavailable, match=r"cannot be written: (file is not|database disk image)"):
            while True:
                await broker.append([draft("c", bytes(3000))])
        assert not broker.is_up
        for name in ("log.db", "log.db-wal", "log.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        await assert_log_works(broker, follower)
        assert (await read(broker, "c", old[0]))[1] is not None
        assert (await read(broker, "c", broker.head)) == ([], None)


@pytest.mark.extended
async def test_a_read_only_disk_ends_the_start(tmp_path: Path) -> None:
    """The gateway would start and then reject every post."""
    with disk(tmp_path / "disk", "1m") as folder:
        async with started(folder / "log.db"):
            pass
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(StartupError, match=r"log.db \(broker.url\) cannot be used: .*is read-only"):
            await SqliteBroker(folder / "log.db", clock=unix_ms).start()


async def removed(folder: Path) -> None:
    """Remove a folder while a log may write to it."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("what", ["folder", "files"])
async def test_a_log_whose_files_are_removed_goes_on_with_new_ones(tmp_path: Path, what: str) -> None:
    """SQLite writes on into a deleted file: acknowledged events would be lost at the next restart."""
    folder = tmp_path / "data"
    async with started(folder / "log.db") as one, started(folder / "log.db") as other:
        followers = [Follower(one), Follower(other)]
        (old,) = await one.append([draft("c")])
        for follower in followers:
            await follower.until(1)
        if what == "folder":
            await removed(folder)
        for file in folder.glob("*") if what == "files" else ():
            file.unlink()
        ids = [await broker.append([draft("c")]) for broker in (one, other, one)]
        for follower, broker in zip(followers, (one, other), strict=True):
            assert [event.id for event in (await follower.until(4))[1:]] == [id for (id,) in ids]
            assert follower.lost, "what the removed file held, and others may have written to it, is lost"
            assert old < follower.lost[0] < ids[0][0]
            assert (await read(broker, "c", old))[1] is not None
    async with started(folder / "log.db") as later:
        assert (await read(later, "c"))[0] == [id for (id,) in ids]


@pytest.mark.parametrize("end", ["-wal", "-shm"])
async def test_no_acknowledged_event_is_lost_with_a_removed_file(tmp_path: Path, end: str) -> None:
    """Guarantee 4: an acknowledged event would be lost if another program deletes -wal or -shm."""
    path = tmp_path / "log.db"
    answered: list[EventId] = []
    async with started(path) as broker:
        await broker.append([draft("c")])
        Path(f"{path}{end}").unlink()
        for _ in range(20):
            with suppress(Unavailable):
                answered += await broker.append([draft("c")])
        assert answered or "log cannot be" in broker.last_error
    async with started(path) as later:
        assert set(answered) <= set((await read(later, "c", limit=100))[0])


async def test_a_folder_that_cannot_be_made_again_is_unavailable_until_it_can(tmp_path: Path) -> None:
    """Appends would hang, or not work again once the folder can be created."""
    folder = tmp_path / "data"
    async with started(folder / "log.db") as broker:
        follower = Follower(broker)
        await broker.append([draft("c")])
        await removed(folder)
        folder.write_text("a file in its place")
        with pytest.raises(Unavailable, match=r"cannot be written: .*data"):
            while True:
                await broker.append([draft("c")])
        assert not broker.is_up
        assert "data" in broker.last_error
        folder.unlink()
        await assert_log_works(broker, follower)


@pytest.mark.parametrize("kind", ["file", "file above"])
async def test_a_path_that_cannot_be_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    """The operator would see a traceback instead of the wrong key."""
    (tmp_path / "taken").write_text("")
    path = tmp_path / "taken" / ("log.db" if kind == "file" else "more/log.db")
    with pytest.raises(StartupError, match=r"log.db \(broker.url\) cannot be used: "):
        await SqliteBroker(path, clock=unix_ms).start()


async def test_without_sockets_other_processes_follow_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without free descriptors or abstract sockets the gateway would not start."""

    def refused(self: object, address: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("socket.socket.bind", refused)
        one, other = (SqliteBroker(tmp_path / "log.db", clock=unix_ms) for _ in range(2))
        await one.start()
        await other.start()
    try:
        follower = Follower(other)
        await one.append([draft("c")])
        await follower.until(1)
    finally:
        await one.close()
        await other.close()


async def test_processes_wake_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of another process would wait for the next poll."""
    monkeypatch.setattr("gateway.broker.sqlite.follower.POLL_SECONDS", 3600.0)
    async with started(tmp_path / "log.db") as one, started(tmp_path / "log.db") as other:
        follower = Follower(other)
        await other.append([draft("c")])  # with it, its name is in the file
        await one.append([draft("c")])
        await follower.until(2)


async def test_a_restored_log_goes_on_after_the_last_known_id(tmp_path: Path, clock: Clock) -> None:
    """A restored backup would repeat ids, or hide the events that it lacks."""
    path = tmp_path / "log.db"
    broker = SqliteBroker(path, clock=clock)
    await broker.start()
    follower = Follower(broker)
    (old,) = await broker.append([draft("c")])
    clock.now -= 3_600_000
    with sqlite3.connect(path) as database:
        database.execute("UPDATE log SET head = ?", ((clock.now - 5) << 20,))
        database.execute("DELETE FROM events")
    database.close()
    (new,) = await broker.append([draft("c")])
    assert new > old
    assert (await follower.until(2))[1].id == new
    assert (await read(broker, "d", EventId(old.ms - 1, 0)))[1] is not None
    await broker.close()


async def test_old_events_are_deleted_without_an_append(tmp_path: Path, clock: Clock) -> None:
    """Expired events would fill the disk while nothing is appended."""
    broker = SqliteBroker(tmp_path / "log.db", clock=clock)
    await broker.start()
    keep = Retention(1000, max_age_ms=1000)
    await broker.append(
        [draft("c", retention=keep) for _ in range(50)] + [draft("d", retention=Retention(0))]
    )
    clock.now += 60_000
    database = sqlite3.connect(tmp_path / "log.db")

    def is_empty() -> bool:
        return bool(database.execute("SELECT count(*) FROM events").fetchone()[0] == 0)

    await eventually(is_empty)
    assert (await read(broker, "c", EventId(1, 0)))[1] is not None
    await broker.close()
    assert database.execute("SELECT * FROM seats").fetchall() == [], "nor does a process leave its name"
    database.close()


def names(path: Path) -> set[str]:
    """Return the channels that have a row in a log's file."""
    database = sqlite3.connect(path)
    try:
        return {name for (name,) in database.execute("SELECT name FROM channels")}
    finally:
        database.close()


async def test_idle_channels_leave_no_row(
    broker: SqliteBroker, other: SqliteBroker, tmp_path: Path, clock: Clock
) -> None:
    """A channel per user would make the file grow for ever."""
    keep, path = Retention(1000, max_age_ms=1000), tmp_path / "log.db"
    follower = Follower(other)
    ((first,), *_) = [await broker.append([draft(name, retention=keep)]) for name in ("u.1", "u.2", "u.3")]
    await other.append([draft("u.2", retention=keep)])  # it remembers the rows of u.2 and u.3
    await other.append([draft("u.3", retention=keep)])
    await broker.append([draft("kept"), draft("keyed", retention=keep, key="k")])
    clock.now += IDLE_CHANNEL_TTL_MS // 2
    ((last,),) = [await broker.append([draft("u.3", retention=keep)])]
    clock.now += IDLE_CHANNEL_TTL_MS // 2 + 60_000
    await eventually(lambda: names(path) == {"u.3", "kept", "keyed"})
    # A row that is made anew may have the key of an old one; the other process must not go by what it remembers.
    for number in range(4, 8):
        await broker.append([draft(f"u.{number}", b"theirs", retention=keep)])
    (again,) = await other.append([draft("u.2", b"own", retention=keep)])
    assert await read(other, "u.2", last) == ([again], None)
    await eventually(lambda: follower.events[-1].id == again)
    assert (follower.events[-1].channel, follower.events[-1].payload) == ("u.2", b"own")
    for name in ("u.1", "u.2", "never"):
        assert (await read(other, name, EventId(first.ms - 1, 0)))[1] is not None, "a day ago: a gap"
    assert (await read(broker, "never", last))[1] is None


async def test_a_log_of_an_older_version_is_migrated(tmp_path: Path) -> None:
    """An upgrade would lose the history."""
    path = tmp_path / "log.db"
    async with started(path) as broker:
        (id,) = await broker.append([draft("c")])
    for version in (3, 4, 5):
        database = sqlite3.connect(path)
        database.execute("ALTER TABLE keys DROP COLUMN fingerprint")
        if version < 5:
            database.execute("ALTER TABLE log DROP COLUMN dropped")
        for table in ("notes", "seats") if version == 3 else ():
            database.execute(f"DROP TABLE {table}")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
        database.close()
        async with started(path) as broker:
            assert (await read(broker, "c"))[0] == [id]
            await broker.shared_store.put("n", b"1", 60)
