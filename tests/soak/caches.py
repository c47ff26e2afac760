"""The gateway's containers: the caches, each with its bound, and all others, each with why it needs none.

`tests.test_caches` floods every cache, and finds every container of the source that is in neither list: who adds
one adds a row here. The soak looks whether they stay within their bounds.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import NamedTuple


class Cache(NamedTuple):
    """One cache. Its bound is a constant of its module."""

    module: str
    bound: str
    """The constant: how many entries."""
    container: str = ""
    """The attribute that holds the entries, as `containers.sizes` names it; empty where none is in this process."""
    each: int = 0
    """Bytes that an entry takes at the most, with its key, and with keys and values as long as can be."""
    bytes: str = ""
    """The constant that bounds all entries together, where their own length does not: ``each`` is 0 then."""
    holds: str = ""
    """What an entry is, for the report."""

    def limit(self) -> int:
        """Return how many entries it may hold."""
        return int(getattr(import_module(self.module), self.bound))


CACHES = (
    Cache("gateway.auth.forward", "REMEMBERED", "gateway.auth.forward.ForwardAuth._answers",
          bytes="REMEMBERED_BYTES", holds="answers of the endpoint"),
    Cache("gateway.auth.revocation", "REMEMBERED", "gateway.auth.revocation.Revocations._recent", 34_000,
          holds="revocations, which an operator sends"),
    Cache("gateway.auth.tickets", "REMEMBERED", "gateway.auth.tickets.Tickets._known",
          bytes="REMEMBERED_BYTES", holds="tickets"),
    Cache("gateway.auth.jwt", "ALIKE", "gateway.auth.jwt.Tokens._claims", 22_000, holds="sets of claims"),
    Cache("gateway.auth.jwt", "FAILED", "gateway.auth.jwt.Tokens._failed", 700, holds="refused tokens"),
    Cache("gateway.auth.jwt", "REMEMBERED", "gateway.auth.jwt.Tokens._verified",
          bytes="REMEMBERED_BYTES", holds="verified tokens"),
    Cache("gateway.broker.base", "DEDUPLICATION_KEYS"),
    Cache("gateway.broker.memory", "DEDUPLICATION_KEYS", "gateway.broker.memory.MemoryBroker._keys", 550,
          holds="idempotency keys, `memory://` only"),
    Cache("gateway.broker.memory", "NAMES", "gateway.broker.memory.MemoryBoard._seats", 900,
          holds="users with streams or tickets, `memory://` only"),
    Cache("gateway.broker.memory", "NOTES", "gateway.broker.memory.MemoryBoard._notes",
          bytes="NOTES_BYTES", holds="tickets of the log, `memory://` only"),
    Cache("gateway.broker.redis.store", "DEDUPLICATION_KEYS"),
    Cache("gateway.broker.sqlite.store", "CHANNELS", "gateway.broker.sqlite.store.Store._channels", 1800,
          holds="rows of channels, `sqlite://` only"),
    Cache("gateway.broker.sqlite.store", "CHANNELS", "gateway.broker.sqlite.store.Store._written", 2300,
          holds="channels that were written to lately, `sqlite://` only"),
    Cache("gateway.broker.sqlite.store", "DEDUPLICATION_KEYS"),
    Cache("gateway.config.catalog", "CACHE", "gateway.config.catalog.Catalog._cache", 1700, holds="names of channels"),
    Cache("gateway.core.history", "EMPTY_CHANNELS", "gateway.core.history.History._floors", 1700,
          holds="channels whose history is empty, `memory://` only"),
    Cache("gateway.hub.conflation", "MAX_KEYS", "gateway.hub.conflation.Newest._channels", 2100,
          holds="keys of channels that conflate"),
    Cache("gateway.hub.recent_ids", "TAILS", "gateway.hub.recent_ids.RecentIds._tails", 1800,
          holds="channels asked for with `last=`, without their ids (`TAIL_IDS`)"),
    Cache("gateway.http.cors", "ANSWERS", "gateway.http.cors.CorsPolicy._answers", 5000,
          holds="origins with the channels that they ask for"),
    Cache("gateway.http.cors", "ANSWERS", "gateway.http.cors.CorsPolicy._answers_any", 3000, holds="origins"),
    Cache("gateway.http.cors", "ANSWERS", "gateway.http.cors.CorsPolicy._pages", 1500, holds="origins of streams"),
    Cache("gateway.http.responses", "HEADS", "gateway.http.responses._lines", 6000, holds="heads of answers"),
    Cache("gateway.streams.quotas.addresses", "REMEMBERED", "gateway.streams.quotas.addresses.Proxies.trusts", 500,
          holds="addresses that are proxies', or are not"),
    Cache("gateway.streams.quotas.addresses", "REMEMBERED", "gateway.streams.quotas.addresses.unit", 700,
          holds="addresses and their networks"),
    Cache("gateway.streams.quotas.limits", "ANNOUNCED", "gateway.streams.quotas.limits.Limits._latest", 700, holds="`client=` names"),
    Cache("gateway.streams.quotas.limits", "SERVED", "gateway.streams.quotas.limits.Limits._served", 700,
          holds="`client=` names whose stream ended"),
    Cache("gateway.streams.quotas.peers", "IDLE", "gateway.streams.quotas.peers.Peers._peers", 1200,
          holds="addresses without a connection"),
    Cache("gateway.streams.quotas.users", "LEAVING", "gateway.streams.quotas.users.Users._leaving", 700,
          holds="streams that left, while the log is away"),
    Cache("gateway.observability.recent_errors", "KEPT", "gateway.observability.recent_errors.Refusals._known", 13_000, holds="refusals for people"),
    Cache("gateway.observability.log_throttle", "THINGS", "gateway.observability.log_throttle.Seldom._told", 2000, holds="log lines that are held back"),
    Cache("gateway.sources.redis.pubsub", "REMEMBERED", "gateway.sources.redis.pubsub.Topics._owner", 1600,
          holds="topics of pub/sub, for each source"),
    Cache("gateway.sources.router", "CACHE", "gateway.sources.router._Routes.cache", 4000,
          holds="topics, for each source"),
    Cache("gateway.sources.redis.recent_messages", "MARKERS", "gateway.sources.redis.recent_messages.Tail._markers", 500, holds="markers of pub/sub"),
    Cache("gateway.streams.acks.forwarder", "TOLD", "gateway.streams.acks.forwarder.Elsewhere._told", 500,
          holds="answers that other nodes know of"),
    Cache("gateway.streams.acks.forwarder", "UNTOLD", "gateway.streams.acks.forwarder.Elsewhere._untold", 500,
          holds="answers for other nodes"),
    Cache("gateway.streams.acks.nonces", "KNOWN", "gateway.streams.acks.nonces.Nonces._known", 500,
          holds="keys of nonces, which nodes make"),
    Cache("gateway.streams.reconnects", "REMEMBERED", "gateway.streams.reconnects.Reconnects._quiet", 600,
          holds="addresses whose quiet streams end early"),
    Cache("gateway.streams.reconnects", "REMEMBERED", "gateway.streams.reconnects.Reconnects._stuck", 700,
          holds="addresses and large events that their streams end at"),
    Cache("gateway.webhooks.signatures", "REPLAYS", "gateway.webhooks.signatures.Replays._seen", 1300,
          holds="signed messages"),
)  # fmt: skip
"""Those that hold what clients, senders, upstreams or other nodes choose, for longer than they are there."""

OTHERS: Mapping[str, tuple[str, ...]] = {
    "what the file declares, by its names": (
        "gateway.auth.authenticator.Authenticator._tasks",
        "gateway.auth.jwt.Tokens._by_name",
        "gateway.config.catalog.Catalog._fixed",
        "gateway.config.catalog.Catalog._templates",
        "gateway.config.catalog.Catalog.declared",
        "gateway.http.cors.CorsPolicy._by_channel",
        "gateway.hub.hub.Hub._delivered",
        "gateway.hub.hub.Hub._watched",
        "gateway.hub.hub.Hub.heard",
        "gateway.server.components.Node.published",
        "gateway.net.redis_target.Target._sentinel",
        "gateway.server.reload.ConfigFile._files",
        "gateway.sources.redis.pubsub.Topics.patterns",
        "gateway.sources.redis.stream.RedisStreamSource._places",
        "gateway.sources.router._Routes.exact",
        "gateway.sources.router._Routes.patterns",
        "gateway.sources.manager.Upstreams._made",
        "gateway.sources.manager.Upstreams._successions",
        "gateway.sources.manager.Upstreams.off",
        "gateway.sources.manager.Upstreams.supervisors",
        "gateway.sources.manager.Upstreams.webhooks",
        "gateway.streams.acks.tracker.Acks._rules",
        "gateway.streams.registry.Streams.listeners",
        "gateway.webhooks.signatures.Basic._users",
        "gateway.webhooks.signatures.Generic._keys",
        "gateway.webhooks.signatures.GitHub._keys",
        "gateway.webhooks.signatures.Standard._keys",
        "gateway.webhooks.signatures.Stripe._keys",
        "gateway.webhooks.signatures.Tokens._tokens",
    ),
    "words of the code: routes, headers, kinds, reasons (`test_labels_are_words_of_the_code`)": (
        "gateway.http.routes.acks.Acknowledge.results",
        "gateway.http.cors._Adapter._methods",
        "gateway.http.cors._Adapter._of_any",
        "gateway.http.protocol.Protocol._headers",
        "gateway.http.listener.Listener._bound",
        "gateway.http.listener.Listener._options",
        "gateway.http.listener.Listener._servers",
        "gateway.http.listener.Listener.ports",
        "gateway.hub.control_channel.Notices._handlers",
        "gateway.observability.metrics.exposition.Family.samples",
        "gateway.observability.metrics.registry._Bound.readers",
        "gateway.sources.base.SourceState.rejected",
        "gateway.sources.publisher.Publisher._told",
        "gateway.streams.registry.Streams._ended",
        "gateway.server.workers.merge.Totals._retired",
        "gateway.server.workers.worker.Worker._probing",
        "gateway.server.workers.worker.Worker._said",
        "gateway.observability.background.Background._logged",
        "gateway.observability.background.Background._times",
        "gateway.observability.background.Background._vital",
        "gateway.server.workers.worker.Worker.families",
    ),
    "one for each worker": (
        "gateway.server.workers.parent.Parent._restarts",
        "gateway.server.workers.parent.Parent._workers",
    ),
    "one for each stream, of which there are `limits.connections`": (
        "gateway.hub.audience.Audience._new",
        "gateway.hub.audience.Audience.members",
        "gateway.hub.hub.Hub._audiences",
        "gateway.hub.hub.Hub._work",
        "gateway.hub.subscription._live",
        "gateway.streams.quotas.limits.Limits.clients",
        "gateway.streams.quotas.users.Users._members",
        "gateway.streams.acks.tracker.Acks._asked",
        "gateway.streams.acks.tracker.Acks._slots",
        "gateway.streams.registry.Streams.open",
        "gateway.streams.registry.Streams.slots",
        "gateway.streams.reconnects.Reconnects._large",
        "gateway.streams.short_heartbeats.ShortHeartbeats._slots",
        "gateway.streams.registry.Streams.stalled",
    ),
    "one for each channel of a stream, of which it has `limits.channels_per_stream`": (
        "gateway.hub.hub.Channel._audiences",
        "gateway.hub.hub.Hub._channels",
        "gateway.hub.replay.Opening.told",
        "gateway.hub.replay.Reader.told",
        "gateway.streams.connection.Connection.told",
    ),
    "one for each connection or request that is under way": (
        "gateway.auth.tickets.Tickets._returning",
        "gateway.auth.forward.Turns._of_one",
        "gateway.http.bodies.Bodies._held_by",
        "gateway.http.bodies.Bodies._idle",
        "gateway.http.listener.Listener._fronts",
        "gateway.http.tls.acceptor.Greeting._addresses",
        "gateway.http.tls.acceptor.Greeting._queue",
        "gateway.http.tls.acceptor.Greeting._shaking",
        "gateway.http.tls.acceptor._Address.shaking",
        "gateway.http.tls.acceptor._Address.waiting",
        "gateway.http.listener.Listener._handlers",
        "gateway.http.listener.Listener._last",
        "gateway.streams.quotas.users.Users._asking",
        "gateway.streams.revocation_bus.Ending._untold",
    ),
    "one for each question under way, `gateway.auth.forward.WAITING`": (
        "gateway.auth.forward.ForwardAuth._asking",
    ),
    "one for each append that somebody waits for": (
        "gateway.broker.redis.broker.RedisBroker._waiting",
        "gateway.broker.sqlite.broker.SqliteBroker._gathered",
        "gateway.broker.sqlite.broker.SqliteBroker._queue",
    ),
    "tasks, connections and files of ours": (
        "gateway.broker.redis.broker.RedisBroker._tasks",
        "gateway.broker.redis.pool.PlainPool._taken",
        "gateway.broker.redis.pool.Pool._released",
        "gateway.broker.sqlite.broker.SqliteBroker._stores",
        "gateway.hub.control_channel.Notices._reading",
        "gateway.hub.replay.Replay._tasks",
        "gateway.server.reload.Reload._tasks",
        "gateway.sources.supervisor.Supervisor._tasks",
        "gateway.server.workers.child.Obedience._reloading",
    ),
    "lines of the log, `gateway.observability.logging.QUEUE_LINES`": (
        "gateway.observability.logging.Writer._queue",
    ),
    "events, within `limits.history_bytes`": (
        "gateway.core.history.History._expiry",
        "gateway.core.history.History._logs",
        "gateway.core.history.History._order",
        "gateway.core.history._Log.items",
    ),
    "events on their way to an audience, within `gateway.hub.audience.MAX_PENDING`": (
        "gateway.hub.audience.Audience._frames",
        "gateway.hub.audience.Audience._pending",
        "gateway.hub.audience.Frame.counts",
    ),
    "events that were read for replay, within `gateway.hub.history_cache.HELD_BYTES`; questions under way": (
        "gateway.hub.history_cache.Reads._flying",
        "gateway.hub.history_cache.Reads._shelves",
        "gateway.hub.history_cache.Reads._tasks",
        "gateway.hub.history_cache.Reads._wants",
        "gateway.hub.history_cache._Shelf.entries",
    ),
    "channels that requests for `last=` wait for, `gateway.hub.recent_ids.WAITING`": (
        "gateway.hub.recent_ids.RecentIds._turns",
        "gateway.hub.recent_ids.RecentIds._wants",
    ),
    "records for a takeover, within `gateway.sources.redis.recent_messages.KEPT_BYTES`": (
        "gateway.sources.redis.recent_messages.Tail._records",
    ),
    "one for each partition of Kafka that is read; Kafka bounds their names": (
        "gateway.sources.kafka._Reading._committed",
        "gateway.sources.kafka._Reading.places",
    ),
    "one for each stream of Redis that is read, `gateway.sources.redis.stream_reader.STREAMS`; patterns match short names": (
        "gateway.broker.memory.MemoryBroker._cursors",
        "gateway.sources.redis.stream_reader.StreamReader._earlier",
        "gateway.sources.redis.stream_reader.StreamReader._looks",
        "gateway.sources.redis.stream_reader.StreamReader._places",
        "gateway.sources.redis.stream_reader.StreamReader._refused",
        "gateway.sources.redis.stream_reader.StreamReader._waiting",
    ),
    "part of one message, and gone with it": (
        "gateway.auth.forward._Said.channels",
        "gateway.sources.router._Way.matches",
        "gateway.sources.router._Way.named",
        "gateway.webhooks.formats.cloud_batches._Invocation.records",
        "gateway.webhooks.formats.cloud_batches._KafkaRecord.headers",
        "gateway.webhooks.formats.cloud_batches._Message.BrokerProperties",
        "gateway.webhooks.formats.cloud_batches._Message.UserProperties",
        "gateway.webhooks.formats.rest_proxy._Record.headers",
        "gateway.webhooks.formats.rest_proxy._RecordV3.headers",
    ),
}
"""All other containers, by why nobody outside can make them grow without a bound."""
