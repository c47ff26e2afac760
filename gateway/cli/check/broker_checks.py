"""Tries the log: ``broker.url``."""

import asyncio
import re
import secrets
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.broker.redis.event_log import RedisEventLog
from gateway.broker.redis.pool import close_clients
from gateway.cli.check.local_checks import sqlite_problem
from gateway.cli.check.messages import describe_upstream_error, suggest_redis_fix
from gateway.cli.finding import Finding, bad, ok, warn
from gateway.config.model.config import BrokerConfig
from gateway.config.model.paths import SQLITE_URL
from gateway.config.model.redis_url import RedisUrl
from gateway.net.redis_locator import RedisLocator

SETTING = "broker.url"

MIN_FREE_BYTES = 256 * 2**20
"""Free disk space below which the log may soon reject posts."""

_WRITE_SCRIPT = "redis.call('SET', KEYS[1], '1', 'PX', 1000) return redis.call('HLEN', KEYS[2])"
_MIN_VERSION_BY_KIND = {"cluster": (7, 0)}
_MIN_VERSION = (6, 2)


async def check_broker(broker: BrokerConfig) -> Finding:
    """Return whether the log can be used. Cancelling is safe."""
    url = broker.url.get_secret_value()
    file = re.fullmatch(SQLITE_URL, url)
    if file is not None:
        return await asyncio.to_thread(_check_sqlite, Path(file[1]))
    return ok(SETTING, "in memory: nothing to reach") if url == "memory://" else await _check_redis(broker)


def _check_sqlite(path: Path) -> Finding:
    """Check that a file can be written, or created. Creates nothing."""
    problem, state = sqlite_problem(path), "does not exist yet, and can be created"
    if not problem and path.exists():
        state = "can be written"
        try:
            with closing(
                sqlite3.connect(f"file:{quote(path.as_posix())}?mode=rw", uri=True, timeout=2)
            ) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            problem = str(error)
    if problem:
        fix = "name a log of sse-gateway, or a new file, on a local disk where this user may write"
        return bad(SETTING, f"{path} cannot be used: {problem}", fix)
    folder = next(each for each in path.absolute().parents if each.exists())
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        return warn(SETTING, f"{path} {state}; only {free // 2**20} MiB are free there", "free disk space")
    return ok(SETTING, f"{path} {state}; {free / 2**30:.0f} GiB are free there")


async def _check_redis(broker: BrokerConfig) -> Finding:
    url = RedisUrl.parse(broker.url.get_secret_value())
    seconds = 2 * (broker.timeout + broker.pool.connect)
    try:
        target = RedisLocator(url)
        node = secrets.token_hex(8)
        store = RedisEventLog(broker.prefix, node, is_sharded=target.kind == "cluster")
        async with asyncio.timeout(seconds):
            server = await target.locate(store.log_key, broker.pool.connect)
            return await _check_commands(server, store, target.kind, broker)
    except TimeoutError:
        text = f"no answer within {seconds:g} s"
    except (RedisError, OSError, ValueError) as error:
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
        # All that following and appending need: both channels, scripts, and keys below the prefix.
        await store.subscribe(pubsub)
        await store.publish_canary(client, 1)
        await client.eval(_WRITE_SCRIPT, 2, f"{store.key_prefix}check:{secrets.token_hex(4)}", store.log_key)
        return await _check_server_info(client, kind, broker)
    finally:
        # Closing writes to the server, which may not respond.
        closing = asyncio.wait_for(close_clients(pubsub, client), broker.timeout)
        await asyncio.gather(closing, return_exceptions=True)


async def _check_server_info(client: Redis, kind: str, broker: BrokerConfig) -> Finding:
    """Check version and eviction policy, if the user may run INFO."""
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
        found = f"{name} is too old"
        return bad(SETTING, found, f"the log requires Redis {oldest[0]}.{oldest[1]} or newer, or Valkey")
    policy, limit = info.get("maxmemory_policy"), int(info.get("maxmemory") or 0)
    if limit and policy not in (None, "noeviction"):
        found = f"{name} reached, but with maxmemory-policy {policy} it evicts history when memory is full"
        fix = "set maxmemory-policy noeviction: posts then return 503 until memory is free"
        return warn(SETTING, found, fix)
    return ok(SETTING, f"{name} reached; keys {broker.prefix}:… can be written")
