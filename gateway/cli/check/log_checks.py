"""The log, tried: ``broker.url``."""

import asyncio
import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.broker.redis.pool import close
from gateway.broker.redis.store import Store
from gateway.broker.sqlite.store import APPLICATION_ID, VERSION
from gateway.cli.check.messages import plain, redis_mend
from gateway.cli.doctor.finding import Finding, bad, ok, warn
from gateway.config.model.config import Broker, Config
from gateway.config.model.paths import SQLITE_URL
from gateway.config.model.redis_url import RedisUrl
from gateway.net.redis_target import Target

WHAT = "broker.url"

LEAST_BYTES = 256 * 2**20
"""Room on a disk below which a log may soon refuse posts."""

_WRITES = "redis.call('SET', KEYS[1], '1', 'PX', 1000) return redis.call('HLEN', KEYS[2])"
_OLDEST = {"cluster": (7, 0)}
_OLD = (6, 2)


def tries(config: Config) -> Iterator[tuple[str, Coroutine[Any, Any, Finding]]]:
    """Yield what there is to try."""
    url = config.broker.url.get_secret_value()
    file = re.fullmatch(SQLITE_URL, url)
    if file is not None:
        yield WHAT, asyncio.to_thread(_sqlite, Path(file[1]))
    elif url == "memory://":
        yield WHAT, _memory()
    else:
        yield WHAT, _redis(config.broker)


async def _memory() -> Finding:
    return ok(WHAT, "in memory: nothing to reach")


def _sqlite(path: Path) -> Finding:
    """Look whether the file, or the folder where it would be, can be written; nothing is made."""
    mend = "give the file to the user that the gateway runs as, on a local disk that can be written"
    folder = next(each for each in (path.parent, *path.absolute().parents) if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return bad(WHAT, f"{folder} is no folder that this user may write", mend)
    state = "is not there yet, and can be made"
    if path.exists():
        try:
            state = _state(path)
        except sqlite3.Error as error:
            return bad(WHAT, f"{path}: {error}", mend)
        if not state:
            return bad(
                WHAT, f"{path} is a file of something else", "name another file, or move that one away"
            )
    free = shutil.disk_usage(folder).free
    if free < LEAST_BYTES:
        return warn(WHAT, f"{path} {state}; only {free // 2**20} MiB are free there", "make room")
    return ok(WHAT, f"{path} {state}; {free / 2**30:.0f} GiB are free there")


def _state(path: Path) -> str:
    """Return what there is to say about a file; empty where it is not ours. Raises sqlite3.Error."""
    if not os.access(path, os.R_OK | os.W_OK):
        raise sqlite3.OperationalError("this user may not write it")
    database = sqlite3.connect(f"file:{path.absolute().as_posix()}?mode=rw", uri=True, timeout=2)
    try:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and tables:
            return ""
        if version > VERSION:
            return ""
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
    finally:
        database.close()
    return "is a log, and can be written" if tables else "is empty, and can be written"


async def _redis(broker: Broker) -> Finding:
    url = RedisUrl.parse(broker.url.get_secret_value())
    try:
        target = Target(url)
        node = secrets.token_hex(8)
        store = Store(broker.prefix, node, is_sharded=target.kind == "cluster")
        async with asyncio.timeout(2 * (broker.timeout + broker.pool.connect)):
            server = await target.locate(store.log_key, broker.pool.connect)
            return await _asked(server, store, target.kind, broker)
    except TimeoutError:
        return _bad(TimeoutError(f"no answer within {2 * (broker.timeout + broker.pool.connect):g} s"), url)
    except (RedisError, OSError, ValueError) as error:
        return _bad(error, url)


def _bad(error: Exception, url: RedisUrl) -> Finding:
    text = plain(error)
    return bad(WHAT, text, redis_mend(text, tls=url.server.startswith("rediss")))


async def _asked(server: Any, store: Store, kind: str, broker: Broker) -> Finding:
    options = {
        **server,
        "socket_timeout": broker.timeout,
        "socket_connect_timeout": broker.pool.connect,
        "retry": Retry(NoBackoff(), 0),
    }
    client = Redis(connection_pool=ConnectionPool(**options))
    pubsub = client.pubsub()
    try:
        await client.ping()
        # What following and appending need: both channels, scripts, and keys below the prefix.
        await store.subscribe(pubsub)
        await store.send_canary(client, 1)
        await client.eval(_WRITES, 2, f"{store.base}check:{secrets.token_hex(4)}", store.log_key)
        return await _told(client, kind, broker)
    finally:
        # Closing writes to a server that may be frozen.
        closing = asyncio.wait_for(close(pubsub, client), broker.timeout)
        await asyncio.gather(closing, return_exceptions=True)


async def _told(client: Redis, kind: str, broker: Broker) -> Finding:
    """Return what the server says of itself, where it may be asked."""
    try:
        info = await client.info()
    except RedisError:
        return ok(WHAT, f"reached; keys {broker.prefix}:… can be written")
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info.get('redis_version')}"
    version = tuple(
        int(part) for part in str(info.get("redis_version", "0")).split(".")[:2] if part.isdigit()
    )
    oldest = _OLDEST.get(kind, _OLD)
    if version < oldest:
        return bad(WHAT, f"{name} is too old", f"the log needs Redis {oldest[0]}.{oldest[1]}, or a Valkey")
    policy, limit = info.get("maxmemory_policy"), int(info.get("maxmemory") or 0)
    if limit and policy not in (None, "noeviction"):
        return warn(
            WHAT,
            f"{name} reached, and with maxmemory-policy {policy} it drops history when it is full",
            "set maxmemory-policy noeviction: posts are then refused with a 503 until there is room",
        )
    return ok(WHAT, f"{name} reached; keys {broker.prefix}:… can be written")
