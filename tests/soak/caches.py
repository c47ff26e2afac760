"""The gateway's caches that are bounded by a number of entries: where the bound is, and what it bounds."""

from importlib import import_module
from typing import NamedTuple


class Cache(NamedTuple):
    """One cache. Its bound is a constant of its module."""

    module: str
    bound: str
    container: str = ""
    """The attribute that holds the entries, as `containers.sizes` names it; empty where none is in this process."""
    holds: str = ""
    """What an entry is, for the report."""

    def limit(self) -> int:
        """Return how many entries it may hold."""
        return int(getattr(import_module(self.module), self.bound))


CACHES = (
    Cache("gateway.auth.tickets", "REMEMBERED", "gateway.auth.tickets.Tickets._known", "tickets"),
    Cache("gateway.auth.tokens", "ALIKE", "gateway.auth.tokens.Tokens._claims", "sets of claims"),
    Cache("gateway.auth.tokens", "FAILED", "gateway.auth.tokens.Tokens._failed", "refused tokens"),
    Cache("gateway.auth.tokens", "REMEMBERED", "gateway.auth.tokens.Tokens._verified", "verified tokens"),
    Cache("gateway.broker.base", "DEDUPLICATION_KEYS"),
    Cache(
        "gateway.broker.memory", "DEDUPLICATION_KEYS", "gateway.broker.memory.MemoryBroker._keys",
        "idempotency keys, `memory://` only",
    ),
    Cache(
        "gateway.broker.memory_board", "NAMES", "gateway.broker.memory_board.MemoryBoard._seats",
        "users with streams or tickets, `memory://` only",
    ),
    Cache(
        "gateway.broker.memory_board", "NOTES", "gateway.broker.memory_board.MemoryBoard._notes",
        "tickets of the log, `memory://` only",
    ),
    Cache("gateway.broker.redis_store", "DEDUPLICATION_KEYS"),
    Cache(
        "gateway.broker.sqlite_store", "CHANNELS", "gateway.broker.sqlite_store.Store._channels",
        "rows of channels, `sqlite://` only",
    ),
    Cache("gateway.broker.sqlite_store", "DEDUPLICATION_KEYS"),
    Cache("gateway.config.catalog", "CACHE", "gateway.config.catalog.Catalog._cache", "names of channels"),
    Cache(
        "gateway.history", "EMPTY_CHANNELS", "gateway.history.History._floors",
        "channels whose history is empty, `memory://` only",
    ),
    Cache("gateway.hub.recent_ids", "TAILS", "gateway.hub.recent_ids.RecentIds._tails", "channels asked for with `last=`"),
    Cache("gateway.limits.limits", "ANNOUNCED", "gateway.limits.limits.Limits._latest", "`client=` names"),
    Cache("gateway.limits.peers", "IDLE", "gateway.limits.peers.Peers._peers", "addresses without a connection"),
    Cache("gateway.seldom", "THINGS"),
    Cache("gateway.sources.router", "CACHE", "gateway.sources.router._Routes.cache", "topics, for each source"),
    Cache("gateway.sources.tail", "MARKERS", "gateway.sources.tail.Tail._markers", "markers of pub/sub"),
    Cache(
        "gateway.stream.reconnects", "REMEMBERED", "gateway.stream.reconnects.Reconnects._quiet",
        "addresses whose quiet streams ended",
    ),
    Cache(
        "gateway.stream.reconnects", "REMEMBERED", "gateway.stream.reconnects.Reconnects._stuck",
        "addresses and large events at which streams ended",
    ),
    Cache("gateway.webhooks.signatures", "REPLAYS", "gateway.webhooks.signatures.Replays._seen", "signed messages"),
)  # fmt: skip
"""Those that are no `functools.lru_cache`."""
