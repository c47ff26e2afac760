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

from gateway.broker.redis.event_log import RedisEventLog
from gateway.broker.redis.pool import close_clients
from gateway.broker.sqlite.event_log import APPLICATION_ID, SCHEMA_VERSION
from gateway.cli.check.messages import describe_upstream_error, suggest_redis_fix
from gateway.cli.finding import Finding, bad, ok, warn
from gateway.config.model.config import BrokerConfig, Config
from gateway.config.model.paths import SQLITE_URL
from gateway.config.model.redis_url import RedisUrl
from gateway.net.redis_locator import RedisLocator

SETTING = "broker.url"

MIN_FREE_BYTES = 256 * 2**20
"""Room on a disk below which a log may soon refuse posts."""

_WRITE_SCRIPT = "redis.call('SET', KEYS[1], '1', 'PX', 1000) return redis.call('HLEN', KEYS[2])"
_MIN_VERSION_BY_KIND = {"cluster": (7, 0)}
_MIN_VERSION = (6, 2)


def pending_checks(config: Config) -> Iterator[tuple[str, Coroutine[Any, Any, Finding]]]:
    """Yield what there is to try."""
    url = config.broker.url.get_secret_value()
    file = re.fullmatch(SQLITE_URL, url)
    if file is not None:
        yield SETTING, asyncio.to_thread(_check_sqlite, Path(file[1]))
    elif url == "memory://":
        yield SETTING, _check_memory()
    else:
        yield SETTING, _check_redis(config.broker)


async def _check_memory() -> Finding:
    return ok(SETTING, "in memory: nothing to reach")


def _check_sqlite(path: Path) -> Finding:
    """Look whether the file, or the folder where it would be, can be written; nothing is made."""
    mend = "give the file to the user that the gateway runs as, on a local disk that can be written"
    folder = next(each for each in (path.parent, *path.absolute().parents) if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return bad(SETTING, f"{folder} is no folder that this user may write", mend)
    state = "is not there yet, and can be made"
    if path.exists():
        try:
            state = _describe_sqlite(path)
        except sqlite3.Error as error:
            return bad(SETTING, f"{path}: {error}", mend)
        if not state:
            return bad(
                SETTING, f"{path} is a file of something else", "name another file, or move that one away"
            )
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        return warn(SETTING, f"{path} {state}; only {free // 2**20} MiB are free there", "make room")
    return ok(SETTING, f"{path} {state}; {free / 2**30:.0f} GiB are free there")


def _describe_sqlite(path: Path) -> str:
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
        if version > SCHEMA_VERSION:
            return ""
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
    finally:
        database.close()
    return "is a log, and can be written" if tables else "is empty, and can be written"


async def _check_redis(broker: BrokerConfig) -> Finding:
    url = RedisUrl.parse(broker.url.get_secret_value())
    try:
        target = RedisLocator(url)
        node = secrets.token_hex(8)
        store = RedisEventLog(broker.prefix, node, is_sharded=target.kind == "cluster")
        async with asyncio.timeout(2 * (broker.timeout + broker.pool.connect)):
            server = await target.locate(store.log_key, broker.pool.connect)
            return await _check_commands(server, store, target.kind, broker)
    except TimeoutError:
        return _redis_failure(
            TimeoutError(f"no answer within {2 * (broker.timeout + broker.pool.connect):g} s"), url
        )
    except (RedisError, OSError, ValueError) as error:
        return _redis_failure(error, url)


def _redis_failure(error: Exception, url: RedisUrl) -> Finding:
    text = describe_upstream_error(error)
    return bad(SETTING, text, suggest_redis_fix(text, is_tls=url.server_url.startswith("rediss")))


async def _check_commands(server: Any, store: RedisEventLog, kind: str, broker: BrokerConfig) -> Finding:
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
        await store.publish_canary(client, 1)
        await client.eval(_WRITE_SCRIPT, 2, f"{store.key_prefix}check:{secrets.token_hex(4)}", store.log_key)
        return await _check_server_info(client, kind, broker)
    finally:
        # Closing writes to a server that may be frozen.
        closing = asyncio.wait_for(close_clients(pubsub, client), broker.timeout)
        await asyncio.gather(closing, return_exceptions=True)


async def _check_server_info(client: Redis, kind: str, broker: BrokerConfig) -> Finding:
    """Return what the server says of itself, where it may be asked."""
    try:
        info = await client.info()
    except RedisError:
        return ok(SETTING, f"reached; keys {broker.prefix}:… can be written")
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info.get('redis_version')}"
    version = tuple(
        int(part) for part in str(info.get("redis_version", "0")).split(".")[:2] if part.isdigit()
    )
    oldest = _MIN_VERSION_BY_KIND.get(kind, _MIN_VERSION)
    if version < oldest:
        return bad(SETTING, f"{name} is too old", f"the log needs Redis {oldest[0]}.{oldest[1]}, or a Valkey")
    policy, limit = info.get("maxmemory_policy"), int(info.get("maxmemory") or 0)
    if limit and policy not in (None, "noeviction"):
        return warn(
            SETTING,
            f"{name} reached, and with maxmemory-policy {policy} it drops history when it is full",
            "set maxmemory-policy noeviction: posts are then refused with a 503 until there is room",
        )
    return ok(SETTING, f"{name} reached; keys {broker.prefix}:… can be written")
