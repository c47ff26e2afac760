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
    Cache("gateway.auth.forward", "MAX_CACHED_DECISIONS", "gateway.auth.forward.ForwardAuth._decisions",
          bytes="MAX_CACHED_BYTES", holds="answers of the endpoint"),
    Cache("gateway.auth.revocation", "MAX_RECENT_REVOCATIONS", "gateway.auth.revocation.RecentRevocations._recent", 34_000,
          holds="revocations, which an operator sends"),
    Cache("gateway.auth.tickets", "MAX_CACHED_TICKETS", "gateway.auth.tickets.TicketStore._cache",
          bytes="MAX_CACHED_BYTES", holds="tickets"),
    Cache("gateway.auth.jwt", "MAX_SHARED_CLAIMS", "gateway.auth.jwt.TokenVerifier._interned_claims", 22_000, holds="sets of claims"),
    Cache("gateway.auth.jwt", "MAX_CACHED_FAILURES", "gateway.auth.jwt.TokenVerifier._failures", 700, holds="refused tokens"),
    Cache("gateway.auth.jwt", "MAX_CACHED_TOKENS", "gateway.auth.jwt.TokenVerifier._verified",
          bytes="MAX_CACHED_BYTES", holds="verified tokens"),
    Cache("gateway.broker.base", "MIN_DEDUPLICATION_KEYS"),
    Cache("gateway.broker.memory", "MIN_DEDUPLICATION_KEYS", "gateway.broker.memory.MemoryBroker._deduplication_keys", 550,
          holds="idempotency keys, `memory://` only"),
    Cache("gateway.broker.memory_shared_store", "MAX_QUOTA_NAMES", "gateway.broker.memory_shared_store.MemorySharedStore._slots", 900,
          holds="users with streams or tickets, `memory://` only"),
    Cache("gateway.broker.memory_shared_store", "MAX_ENTRIES", "gateway.broker.memory_shared_store.MemorySharedStore._entries",
          bytes="MAX_ENTRIES_BYTES", holds="tickets of the log, `memory://` only"),
    Cache("gateway.broker.redis.event_log", "MIN_DEDUPLICATION_KEYS"),
    Cache("gateway.broker.sqlite.event_log", "MAX_CACHED_CHANNELS", "gateway.broker.sqlite.event_log.SqliteEventLog._channel_cache", 1800,
          holds="rows of channels, `sqlite://` only"),
    Cache("gateway.broker.sqlite.event_log", "MAX_CACHED_CHANNELS", "gateway.broker.sqlite.event_log.SqliteEventLog._channels_to_sweep", 2300,
          holds="channels that were written to lately, `sqlite://` only"),
    Cache("gateway.broker.sqlite.event_log", "MIN_DEDUPLICATION_KEYS"),
    Cache("gateway.config.channel_catalog", "MAX_CACHED_NAMES", "gateway.config.channel_catalog.ChannelCatalog._resolved_instances", 1700, holds="names of channels"),
    Cache("gateway.core.history", "MAX_EMPTY_CHANNELS", "gateway.core.history.History._empty_channel_floors", 1700,
          holds="channels whose history is empty, `memory://` only"),
    Cache("gateway.hub.conflation", "MAX_KEYS", "gateway.hub.conflation.ConflationIndex._channels", 2100,
          holds="keys of channels that conflate"),
    Cache("gateway.hub.recent_ids", "MAX_TAILS", "gateway.hub.recent_ids.RecentIds._tails", 1800,
          holds="channels asked for with `last=`, without their ids (`TAIL_IDS`)"),
    Cache("gateway.http.cors", "CACHED_DECISIONS", "gateway.http.cors.CorsPolicy._cached_refusing_rule", 5000,
          holds="origins with the channels that they ask for"),
    Cache("gateway.http.cors", "CACHED_DECISIONS", "gateway.http.cors.CorsPolicy._interned_origins", 1500, holds="origins of streams"),
    Cache("gateway.http.responses", "HEAD_CACHE_ENTRIES", "gateway.http.responses._encode_head_lines", 6000, holds="heads of answers"),
    Cache("gateway.streams.quotas.client_address", "MAX_CACHED_ADDRESSES", "gateway.streams.quotas.client_address.TrustedProxies.is_trusted", 500,
          holds="addresses that are proxies', or are not"),
    Cache("gateway.streams.quotas.client_address", "MAX_CACHED_ADDRESSES", "gateway.streams.quotas.client_address.address_key", 700,
          holds="addresses and their networks"),
    Cache("gateway.streams.quotas.client_limits", "MAX_ANNOUNCED_CLIENTS", "gateway.streams.quotas.client_limits.ClientLimits._newest_stream", 700, holds="`client=` names"),
    Cache("gateway.streams.quotas.client_limits", "MAX_RECENT_CLIENTS", "gateway.streams.quotas.client_limits.ClientLimits._recently_served", 700,
          holds="`client=` names whose stream ended"),
    Cache("gateway.streams.quotas.address_quotas", "CLEANUP_THRESHOLD", "gateway.streams.quotas.address_quotas.AddressQuotas._usages", 1200,
          holds="addresses without a connection"),
    Cache("gateway.streams.quotas.user_quotas", "MAX_PENDING_RELEASES", "gateway.streams.quotas.user_quotas.UserQuotas._pending_releases", 700,
          holds="streams that left, while the log is away"),
    Cache("gateway.observability.recent_errors", "MAX_ERRORS", "gateway.observability.recent_errors.RecentErrors._errors_by_cause", 13_000, holds="refusals for people"),
    Cache("gateway.observability.log_throttle", "MAX_THROTTLED_KEYS", "gateway.observability.log_throttle.LogThrottle._last_logged", 2000, holds="log lines that are held back"),
    Cache("gateway.sources.redis.pubsub", "MAX_CACHED_TOPICS", "gateway.sources.redis.pubsub.TopicSet._cached_owner", 1600,
          holds="topics of pub/sub, for each source"),
    Cache("gateway.sources.router", "MAX_CACHED_TOPICS", "gateway.sources.router._SourceRoutes.cache", 4000,
          holds="topics, for each source"),
    Cache("gateway.sources.redis.recent_messages", "MAX_MARKERS", "gateway.sources.redis.recent_messages.RecentMessages._markers", 500, holds="markers of pub/sub"),
    Cache("gateway.streams.acks.forwarder", "MAX_FORWARDED", "gateway.streams.acks.forwarder.AckForwarder._forwarded", 500,
          holds="answers that other nodes know of"),
    Cache("gateway.streams.acks.forwarder", "MAX_PENDING", "gateway.streams.acks.forwarder.AckForwarder._pending", 500,
          holds="answers for other nodes"),
    Cache("gateway.streams.acks.nonces", "MAX_KNOWN_KEYS", "gateway.streams.acks.nonces.NonceSigner._known_keys", 500,
          holds="keys of nonces, which nodes make"),
    Cache("gateway.streams.reconnect_loops", "MAX_TRACKED_ADDRESSES", "gateway.streams.reconnect_loops.ReconnectLoopDetector._quiet_closes", 600,
          holds="addresses whose quiet streams end early"),
    Cache("gateway.streams.reconnect_loops", "MAX_TRACKED_ADDRESSES", "gateway.streams.reconnect_loops.ReconnectLoopDetector._closes_by_event", 700,
          holds="addresses and large events that their streams end at"),
    Cache("gateway.webhooks.idempotency", "MAX_REMEMBERED_MESSAGES", "gateway.webhooks.idempotency.IdempotencyCache._messages", 1300,
          holds="signed messages"),
)  # fmt: skip
"""Those that hold what clients, senders, upstreams or other nodes choose, for longer than they are there."""

OTHERS: Mapping[str, tuple[str, ...]] = {
    "what the file declares, by its names": (
        "gateway.auth.authenticator.Authenticator._refresh_tasks",
        "gateway.auth.jwt.TokenVerifier._issuers_by_name",
        "gateway.config.channel_catalog.ChannelCatalog._fixed_channels",
        "gateway.config.channel_catalog.ChannelCatalog._templates",
        "gateway.config.channel_catalog.ChannelCatalog.declared",
        "gateway.http.cors.CorsPolicy._origins_by_channel",
        "gateway.hub.hub.Hub._delivered_counters",
        "gateway.hub.hub.Hub._stale_after_channels",
        "gateway.hub.hub.Hub.last_event_at",
        "gateway.sources.context.EventAppender._published_counter",
        "gateway.net.redis_locator.RedisLocator._sentinel_options",
        "gateway.server.reload.ConfigFile._watched_files",
        "gateway.sources.redis.pubsub.TopicSet.patterns",
        "gateway.sources.kafka.KafkaSource._consumer_options",
        "gateway.sources.redis.stream.RedisStreamSource._field_placeholders",
        "gateway.sources.router._SourceRoutes.exact",
        "gateway.sources.router._SourceRoutes.patterns",
        "gateway.sources.manager.SourceManager._inputs",
        "gateway.sources.manager.SourceManager._replacements",
        "gateway.sources.manager.SourceManager.disabled",
        "gateway.sources.manager.SourceManager.supervisors",
        "gateway.sources.manager.SourceManager.webhooks",
        "gateway.streams.acks.tracker.AckTracker._rules",
        "gateway.streams.registry.StreamRegistry.streams_per_channel",
        "gateway.webhooks.credentials.BasicAuthVerifier._users",
        "gateway.webhooks.signatures.StandardWebhooksVerifier._keys",
        "gateway.webhooks.credentials.BearerVerifier._tokens",
    ),
    "words of the code: routes, headers, kinds, reasons (`test_labels_are_words_of_the_code`)": (
        "gateway.http.routes.acks.AckHandler.result_counter",
        "gateway.http.cors.PreflightHandler._methods_by_path",
        "gateway.http.cors.PreflightHandler._any_channel_paths",
        "gateway.http.aiohttp_protocol.AiohttpProtocol._headers",
        "gateway.http.listener.Listener._sockets_by_address",
        "gateway.http.listener.Listener._options",
        "gateway.http.listener.Listener._servers",
        "gateway.http.listener.Listener.ports",
        "gateway.hub.control_channel.ControlChannel._handlers",
        "gateway.observability.metrics.exposition.MetricFamily.samples",
        "gateway.observability.metrics.registry._ReaderCollector.readers",
        "gateway.sources.base.SourceState.rejected",
        "gateway.streams.registry.StreamRegistry._disconnect_counter",
        "gateway.server.workers.merge.MetricTotals._retired",
        "gateway.server.workers.worker_handle.WorkerHandle._probe_tasks",
        "gateway.server.workers.worker_handle.WorkerHandle._probe_cache",
        "gateway.observability.task_supervisor.TaskSupervisor._last_logged",
        "gateway.observability.task_supervisor.TaskSupervisor._failures_since_logged",
        "gateway.observability.task_supervisor.TaskSupervisor._vital_tasks",
        "gateway.server.workers.worker_handle.WorkerHandle.last_families",
    ),
    "one for each worker": (
        "gateway.server.workers.parent.Parent._restarts",
        "gateway.server.workers.parent.Parent._workers",
    ),
    "one for each stream, of which there are `limits.connections`": (
        "gateway.hub.audience.Audience._members_without_fd",
        "gateway.hub.audience.Audience.members",
        "gateway.hub.hub.Hub._audiences",
        "gateway.hub.hub.Hub._work_queue",
        "gateway.hub.subscription._interned",
        "gateway.streams.quotas.client_limits.ClientLimits.quotas_by_client",
        "gateway.streams.quotas.user_quotas.UserQuotas._members",
        "gateway.streams.acks.tracker.AckTracker._states",
        "gateway.streams.bucket_sweep.BucketSweep._bucket_of",
        "gateway.streams.bucket_sweep.BucketSweep._buckets",
        "gateway.streams.reconnect_loops.ReconnectLoopDetector._large_first_events",
        "gateway.streams.heartbeat.HeartbeatSweep.stalled",
    ),
    "one for each channel of a stream, of which it has `limits.channels_per_stream`": (
        "gateway.hub.hub.WatchedChannel._audiences",
        "gateway.hub.hub.Hub._channels",
        "gateway.hub.replay.StreamStart.reported_gaps",
        "gateway.hub.replay.ReplayStream.reported_gaps",
        "gateway.streams.connection.StreamConnection.reported_gaps",
    ),
    "one for each connection or request that is under way": (
        "gateway.auth.tickets.TicketStore._release_tasks",
        "gateway.auth.forward.FairSemaphore._per_client",
        "gateway.http.bodies.BodyReader._reserved_bytes_by_client",
        "gateway.http.bodies.BodyReader._idle_timeouts",
        "gateway.http.listener.Listener._fast_path_deadlines",
        "gateway.http.tls.acceptor.TlsAcceptor._addresses",
        "gateway.http.tls.acceptor.TlsAcceptor._waiting_addresses",
        "gateway.http.tls.acceptor.TlsAcceptor._handshakes",
        "gateway.http.tls.acceptor._ClientAddress.handshakes",
        "gateway.http.tls.acceptor._ClientAddress.waiting",
        "gateway.http.listener.Listener._aiohttp_deadlines",
        "gateway.http.listener.Listener._queued_accepts",
        "gateway.streams.quotas.user_quotas.UserQuotas._pending_reservations",
        "gateway.streams.revocation_bus.RevocationBus._pending",
    ),
    "one for each question under way, `gateway.auth.forward.WAITING`": (
        "gateway.auth.forward.ForwardAuth._in_flight",
    ),
    "one for each append that somebody waits for": (
        "gateway.broker.batcher.Batcher._pending",
        "gateway.broker.sqlite.writer.SqliteWriter._queued",
    ),
    "tasks, connections and files of ours": (
        "gateway.broker.redis.broker.RedisBroker._tasks",
        "gateway.broker.redis.pool.PublicApiPool._borrowed",
        "gateway.broker.redis.pool.RedisPool._released_at",
        "gateway.broker.sqlite.connections.SqliteConnections._open_logs",
        "gateway.hub.control_channel.ControlChannel._read_tasks",
        "gateway.hub.replay.Replay._fetch_tasks",
        "gateway.server.reload.Reloader._tasks",
        "gateway.sources.supervisor.Supervisor._tasks",
        "gateway.server.workers.child.ControlLoop._reload_tasks",
    ),
    "lines of the log, `gateway.observability.logging.QUEUE_LINES`": (
        "gateway.observability.logging.LogWriter._queue",
    ),
    "events, within `limits.history_bytes`": (
        "gateway.core.history.History._expiry_heap",
        "gateway.core.history.History._channels",
        "gateway.core.history.History._channel_and_size_by_id",
        "gateway.core.history._ChannelHistory.items",
    ),
    "events on their way to an audience, within `gateway.hub.audience.MAX_PENDING`": (
        "gateway.hub.audience.Audience._frames",
        "gateway.hub.audience.Audience._pending",
        "gateway.hub.audience.Frame.counts_by_channel",
    ),
    "events that were read for replay, within `gateway.hub.history_cache.HELD_BYTES`; questions under way": (
        "gateway.hub.history_cache.HistoryCache._in_flight",
        "gateway.hub.history_cache.HistoryCache._ranges",
        "gateway.hub.history_cache.HistoryCache._tasks",
        "gateway.hub.history_cache.HistoryCache._pending",
        "gateway.hub.history_cache._CachedRange.events",
    ),
    "channels that requests for `last=` wait for, `gateway.hub.recent_ids.WAITING`": (
        "gateway.hub.recent_ids.RecentIds._queues_by_address",
        "gateway.hub.recent_ids.RecentIds._pending",
    ),
    "records for a takeover, within `gateway.sources.redis.recent_messages.KEPT_BYTES`": (
        "gateway.sources.redis.recent_messages.RecentMessages._records",
    ),
    "one for each partition of Kafka that is read; Kafka bounds their names": (
        "gateway.sources.kafka._PartitionReader._committed_offsets",
        "gateway.sources.kafka._PartitionReader.offsets",
    ),
    "one for each stream of Redis that is read, `gateway.sources.redis.stream_reader.STREAMS`; patterns match short names": (
        "gateway.broker.memory.MemoryBroker._offsets",
        "gateway.sources.redis.stream_reader.StreamReader._previous_offsets",
        "gateway.sources.redis.stream_reader.StreamReader._inspection_queue",
        "gateway.sources.redis.stream_reader.StreamReader._offsets",
        "gateway.sources.redis.stream_reader.StreamReader._non_stream_keys",
        "gateway.sources.redis.stream_reader.StreamReader._lag_by_key",
    ),
    "part of one message, and gone with it": (
        "gateway.auth.forward._DecisionBody.channels",
        "gateway.sources.router._TopicRoutes.matches",
        "gateway.sources.router._TopicRoutes.field_routes",
        "gateway.webhooks.formats.cloud_batches._LambdaInvocation.records",
        "gateway.webhooks.formats.cloud_batches._KafkaRecord.headers",
        "gateway.webhooks.formats.cloud_batches._EventHubsMessage.BrokerProperties",
        "gateway.webhooks.formats.cloud_batches._EventHubsMessage.UserProperties",
        "gateway.webhooks.formats.rest_proxy._RecordV2.headers",
        "gateway.webhooks.formats.rest_proxy._RecordV3.headers",
    ),
}
"""All other containers, by why nobody outside can make them grow without a bound."""
