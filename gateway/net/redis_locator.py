"""Finds the servers of a Redis URL: one server, the master that Sentinel names, or the nodes of a cluster.

All keys of a log share a hash tag, so a log is on one server at a time in every kind of deployment; only
finding that server differs. A source may read keys of all nodes.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError

from gateway.config.model.redis_url import RedisUrl
from gateway.net.tls_errors import describe_certificate_error, humanize_tls_error

_GATEWAY_SET_OPTIONS = (
    "max_connections",
    "timeout",
    "decode_responses",
    "socket_timeout",
    "retry_on_timeout",
)
"""URL options of redis-py that are ignored: `broker.pool` and the broker set them."""

_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class RedisTopology:
    """The servers of a deployment; ``server_index`` returns the index of the server that has a key."""

    servers: Sequence[Mapping[str, Any]]
    server_index: Callable[[bytes], int]
    is_cluster: bool


class RedisLocator:
    """Finds the servers of a URL. Raises ValueError for options that redis-py does not know."""

    def __init__(self, url: RedisUrl) -> None:
        self._url = url
        options: dict[str, Any] = dict(parse_url(url.server_url))
        self._sentinel_options = {
            name[9:]: options.pop(name) for name in _SENTINEL_OPTIONS if name in options
        }
        options |= default_user_options(options)
        self._sentinel_options |= default_user_options(self._sentinel_options)
        for name in _GATEWAY_SET_OPTIONS:
            options.pop(name, None)
        if url.kind != "single":
            del options["host"], options["port"]
        self._options = options

    @property
    def kind(self) -> str:
        """``single``, ``sentinel`` or ``cluster``."""
        return self._url.kind

    async def locate(self, key: str, timeout_seconds: float) -> Mapping[str, Any]:
        """Return redis-py's connection options for the server that has ``key`` now.

        ``timeout_seconds`` is for each request on the way. Raises RedisError or TimeoutError. Cancelling is
        safe.
        """
        if self.kind == "single":
            return self._options
        find = self._find_sentinel_master if self.kind == "sentinel" else self._find_cluster_node
        with _restore_lost_cancellation():
            host, port = await find(key, timeout_seconds)
        return {**self._options, "host": host, "port": port}

    async def locate_all(self, timeout_seconds: float) -> "RedisTopology":
        """Return all servers that have keys now. Raises like `locate`."""
        if self.kind != "cluster":
            return RedisTopology([await self.locate("", timeout_seconds)], lambda _: 0, is_cluster=False)
        cluster = self._cluster_client(timeout_seconds)
        try:
            with _restore_lost_cancellation(), _map_cluster_errors():
                await cluster.initialize()
            nodes = [(str(node.host), int(node.port)) for node in cluster.get_primaries()]
            slots = {
                slot: nodes.index((str(owners[0].host), int(owners[0].port)))
                for slot, owners in cluster.nodes_manager.slots_cache.items()
            }
        finally:
            await cluster.aclose()
        servers = [{**self._options, "host": host, "port": port} for host, port in nodes]
        return RedisTopology(servers, lambda key: slots[key_slot(key)], is_cluster=True)

    async def _find_sentinel_master(self, key: str, seconds: float) -> tuple[str, int]:
        tls = {
            name: value for name, value in _client_options(self._options).items() if name.startswith("ssl")
        }
        options = {**tls, **self._sentinel_options, **single_attempt_options(seconds, seconds)}
        sentinel = Sentinel(list(self._url.nodes), sentinel_kwargs=options)  # type: ignore[no-untyped-call]
        try:
            host, port = await sentinel.discover_master(self._url.master_name)
            return str(host), int(port)
        except MasterNotFoundError:  # its own message has 3,000 characters, and differs each time
            text = f"no Sentinel names a master of {self._url.master_name!r}"
            why = await _certificate_error_suffix(sentinel.sentinels[0]) if tls else ""
            raise RedisConnectionError(text + why) from None
        finally:
            for client in sentinel.sentinels:
                await client.aclose()

    async def _find_cluster_node(self, key: str, seconds: float) -> tuple[str, int]:
        cluster = self._cluster_client(seconds)
        try:
            with _map_cluster_errors():
                await cluster.initialize()
            node = cluster.get_node_from_key(key)
            if node is None:
                raise ValueError("no node of the cluster owns the log's slot")
            return str(node.host), int(node.port)
        finally:
            await cluster.aclose()

    def _cluster_client(self, seconds: float) -> RedisCluster:
        return RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in self._url.nodes],
            **{**_client_options(self._options), **single_attempt_options(seconds, seconds)},
        )


def default_user_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the option ``username`` for a password without a user, the same with RESP2 and RESP3.

    With RESP3's HELLO, redis-py uses ``default`` itself. With RESP2 it would send the password alone, which a
    server without a password rejects, though it accepts any password of the user ``default``.
    """
    return {"username": "default"} if options.get("password") and not options.get("username") else {}


def single_attempt_options(connect_seconds: float, read_seconds: float | None = None) -> dict[str, Any]:
    """Return options of a connection that fails at once where redis-py would retry silently.

    Without ``read_seconds`` reads have no deadline of their own: the caller sets one for each call.
    """
    return {
        "socket_timeout": read_seconds,
        "socket_connect_timeout": connect_seconds,
        "retry": Retry(NoBackoff(), 0),
    }


def describe_redis_error(error: BaseException, timeout_seconds: float) -> str:
    """Return why an exchange with Redis failed, in one line. ``timeout_seconds`` is the deadline it had."""
    if isinstance(error, TimeoutError):
        return f"Redis gave no answer within {timeout_seconds:g} s"
    return f"Redis: {humanize_tls_error(str(error)) or type(error).__name__}"


def validate_url_options(url: RedisUrl) -> None:
    """Raise ValueError if redis-py does not know or accept the options of a URL."""
    options = dict(RedisLocator(url)._options)
    made = options.pop("connection_class", Connection)
    try:
        made(**options)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        raise ValueError(
            f"has the unknown option {unknown[1]!r}; remove it, or check its spelling"
            if unknown
            else "has options that contradict each other"
        ) from None


async def _certificate_error_suffix(client: Redis) -> str:
    """Return why a server's certificate is rejected, if it is; Sentinel's client does not report it."""
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        why = describe_certificate_error(str(error))
        return f": {why}" if why else ""
    return ""


@contextmanager
def _map_cluster_errors() -> Iterator[None]:
    """Raise errors of the first connection to a cluster as ConnectionError: they are no RedisError."""
    try:
        yield
    except RedisClusterException as error:
        raise RedisConnectionError(str(error)) from None


@contextmanager
def _restore_lost_cancellation() -> Iterator[None]:
    """Raise a cancellation that redis-py swallowed or replaced by another error while it connected.

    Otherwise the cancelled task continues, and its caller waits for a timeout.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


def _client_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return connection options as clients accept them: TLS as a flag instead of a class."""
    rest = {name: value for name, value in options.items() if name != "connection_class"}
    return rest | ({"ssl": True} if "connection_class" in options else {})
