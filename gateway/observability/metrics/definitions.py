"""The table of all metrics: the one place that defines them.

The docs are made of it, and tests hold the dashboard, the alerts and the code against it. ``note`` is what
an operator should know beyond the help text; only the docs show it. `registry` makes the live
values, and gauges are bound to whoever knows them. No label is ever an address, a user or an id of a
client; ``channel`` is always the declared name, and a list of reasons is a list of words in the code.
"""

from typing import Literal

import msgspec

from gateway.observability.metrics.exposition import MergeRule
from gateway.observability.task_supervisor import TASK_NAMES

METRIC_PREFIX = "sse_gateway_"


class MetricDefinition(msgspec.Struct, frozen=True):
    """One metric, by its full name."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help_text: str
    note: str = ""
    labels: tuple[str, ...] = ()
    label_values: tuple[str, ...] = ()
    """All that its one label can be, where that is a list in the code: they are there at 0 from the start."""
    merge_rule: MergeRule = "sum"
    """How the gauges of several workers become one."""
    buckets: tuple[float, ...] = ()


def _counter(
    name: str, text: str, note: str = "", *, labels: tuple[str, ...] = (), label_values: tuple[str, ...] = ()
) -> MetricDefinition:
    return MetricDefinition(METRIC_PREFIX + name, "counter", text, note, labels, label_values)


def _gauge(
    name: str, text: str, note: str = "", *, labels: tuple[str, ...] = (), merge_rule: MergeRule = "sum"
) -> MetricDefinition:
    return MetricDefinition(METRIC_PREFIX + name, "gauge", text, note, labels, merge_rule=merge_rule)


def _histogram(name: str, text: str, note: str = "", *, buckets: tuple[float, ...]) -> MetricDefinition:
    return MetricDefinition(METRIC_PREFIX + name, "histogram", text, note, buckets=buckets)


STREAMS = (
    _gauge("active_connections", "Streams open now", "What autoscaling reads."),
    _gauge(
        "connections_limit",
        "Streams that may be open: limits.connections of every worker",
        'Beyond it clients are told to come back: `refused_total{reason="overloaded"}`.',
    ),
    _gauge("channel_connections", "Streams open now, by channel", labels=("channel",)),
    _counter("connections_total", "Streams opened"),
    _counter(
        "disconnects_total",
        "Streams ended, by reason",
        "The reasons are in [operations.md](operations.md#why-streams-ended-and-why-some-were-refused).",
        labels=("reason",),
        label_values=(
            *("client_closed", "client_lost", "write_timeout", "slow_client", "max_age", "token_expired"),
            *(
                "revoked",
                "reconfigured",
                "replaced",
                "draining",
                "drain_timeout",
                "killed",
                "unexpected_input",
            ),
            "unacknowledged",
            "internal_error",
        ),
    ),
    _counter(
        "refused_total",
        "Subscriptions refused, by reason",
        "The reasons are the codes of [http.md](http.md#statuses).",
        labels=("reason",),
        label_values=(
            *("no_channel", "too_many_channels", "bad_query", "unknown_channel", "origin_refused"),
            *("cors_refused", "missing_token", "invalid_token", "channel_forbidden", "auth_refused"),
            *("auth_unavailable", "unavailable", "overloaded", "connect_rate", "draining"),
            *("user_limit", "address_limit", "address_rate", "cross_origin"),
        ),
    ),
    _counter(
        "client_timeout_disconnects_total",
        "Quiet streams that their clients ended before a heartbeat, again and again at the same age",
        "Their read timeout is shorter than the heartbeat. `client_read_timeout_too_short` in the log names the address "
        "and the age; [clients.md](clients.md) has the settings.",
    ),
    _counter(
        "large_event_disconnects_total",
        "Resumed streams that their clients ended at the same large event, again and again",
        "Their buffer is smaller than the event. `client_buffer_too_small` in the log names its id and size.",
    ),
    _counter(
        "acks_missed_total",
        "Heartbeats that clients should have answered, and did not in time",
        "Only where `ack` is on. After `ack.retry_limit` in a row a stream ends: "
        '`disconnects_total{reason="unacknowledged"}`.',
    ),
    _counter(
        "acks_total",
        "Answers to heartbeats, by result",
        "`local`: for a stream of this node; `forwarded`: for another node's stream, sent through the "
        "log; `late`: for none that is known; `refused`: not taken, such as a nonce that nobody made.",
        labels=("result",),
        label_values=("local", "forwarded", "late", "refused"),
    ),
    _histogram(
        "connection_seconds",
        "Age of streams when they ended",
        "Many that end at one age, such as 60 s, are cut by a proxy: `sse-gateway doctor` finds it.",
        buckets=(1, 10, 60, 300, 900, 1800, 3600, 7200),
    ),
    _gauge(
        "lagging_streams",
        "Streams that are behind the newest event",
        "Resuming ones for a moment, slow clients for longer; see "
        "[slow clients](operations.md#slow-clients).",
    ),
    _gauge(
        "lag_seconds",
        "How far the stream that is furthest behind the newest event is behind it",
        merge_rule="max",
    ),
)

EVENTS = (
    _counter("events_received_total", "Records that sources yielded", labels=("source",)),
    _counter(
        "events_rejected_total",
        "Records and posts that can never become events, by reason",
        "A line in the log (`rejected`, `webhook_refused`) has the cause. A series is there from its first"
        " rejection on. Without a source: posts to one that the file does not declare.",
        labels=("source", "reason"),
    ),
    _counter(
        "webhook_throttled_total",
        "Posts that were answered 429",
        "The source's `rate`: senders try again.",
        labels=("source",),
    ),
    _counter(
        "webhook_unavailable_total",
        "Posts that were answered 5xx, by reason",
        "Senders try again. A line in the log (`webhook_refused`) has the cause.",
        labels=("source", "reason"),
    ),
    _counter(
        "events_duplicate_total",
        "Events that were sent again, and not made again",
        "The sender is answered as the first time. A line in the log (`duplicates_dropped`) says so.",
        labels=("source",),
    ),
    _counter(
        "events_published_total",
        "Events that this node appended to the log",
        "Summed over all nodes: what all of them together appended, each event once.",
        labels=("channel",),
    ),
    _counter(
        "events_delivered_total", "Events written to streams, counted once per stream", labels=("channel",)
    ),
    _counter("bytes_sent_total", "Bytes written to streams, framing included"),
    _histogram(
        "delivery_lag_seconds",
        "From an event's id to the write to the socket; one sample per slice of a fan-out",
        "Clocks of nodes that differ show here: the id has the time of the node that appended.",
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    ),
    _counter("replayed_events_total", "Events written from history, to resuming or slow streams"),
    _counter(
        "conflated_events_total",
        "Events that slow streams did not get, as a newer one of the same key followed",
    ),
    _counter(
        "gaps_total",
        "Gaps told, by reason",
        "`source_interrupted`: an upstream lost records, one for each channel. To single streams: `expired`: "
        "away for longer than the history reaches; `unknown_id`: their id is not this log's; "
        "`no_resume_point`: a named client came back without one; `slow_client`.",
        labels=("reason",),
        label_values=("source_interrupted", "expired", "unknown_id", "no_resume_point", "slow_client"),
    ),
    _gauge(
        "channel_stale",
        "1 while the channel has been silent for longer than its stale_after",
        "Only channels that have a `stale_after`.",
        labels=("channel",),
        merge_rule="max",
    ),
)

SOURCES = (
    _gauge(
        "source_up",
        "1 while the source delivers, 0 while it does not",
        "A source that is switched off (an empty url) has no series.",
        labels=("source",),
        merge_rule="max",
    ),
    _gauge(
        "source_leader",
        "1 on the node that reads the source for all of them",
        "Only sources that one node reads; the sum over all nodes is 1 but for seconds.",
        labels=("source",),
        merge_rule="max",
    ),
    _gauge(
        "source_last_event_timestamp_seconds",
        "Unix time of a source's last record",
        labels=("source",),
        merge_rule="max",
    ),
    _gauge(
        "source_lag_records",
        "Records that wait upstream; on the node that reads, where the source can tell",
        labels=("source",),
    ),
    _gauge(
        "source_stale",
        "1 while the source has been silent for longer than its stale_after; where it is read",
        "Only sources that have a `stale_after`; of a webhook, every node hears its own posts alone.",
        labels=("source",),
        merge_rule="min",  # each worker hears the posts of its own connections only
    ),
)

BROKER = (
    _gauge("broker_up", "1 while the event log can be reached", merge_rule="min"),
    _histogram(
        "broker_append_seconds",
        "Duration of one append to the broker",
        "Failed ones are among them.",
        buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5),
    ),
    _gauge("broker_connections", "Connections to Redis that serve a call just now"),
    _gauge("broker_connections_open", "Connections to Redis, idle ones too"),
)

HEALTH = (
    _gauge(
        "ready",
        "1 while new clients may come here: what /readyz says",
        "The body of `/readyz` says which part is not.",
        merge_rule="max",  # the others take the clients of a worker that is not
    ),
    _gauge("draining", "1 while the node shuts down", merge_rule="max"),
    _gauge(
        "loop_lag_seconds",
        "How late the event loop was at worst in the last 15 to 30 seconds",
        merge_rule="max",
    ),
    _gauge(
        "canary_seconds",
        "The last canary event's way through broker and hub; of one that is late: how long it is away",
        merge_rule="max",
    ),
    _counter("canary_failures_total", "Canary events that did not come back through broker and hub in time"),
    _counter(
        "background_failures_total",
        "Unexpected exceptions in background tasks, by task",
        "Each is a fault of the gateway: `background_task_failed` in the log has the traceback. The task was "
        "started again.",
        labels=("task",),
        label_values=TASK_NAMES,
    ),
    _gauge(
        "config_last_reload_successful",
        "1 if the last reload of the configuration was taken up, or there was none",
        "0: the old one goes on; `/status` has file, line and column of the fault.",
        merge_rule="min",
    ),
    _gauge(
        "config_last_reload_success_timestamp_seconds",
        "When the configuration in use was loaded (unix seconds)",
        merge_rule="min",
    ),
    _counter(
        "config_reloads_total",
        "Reloads of the configuration, by result",
        labels=("result",),
        label_values=("ok", "unchanged", "failed"),
    ),
    _gauge("workers", "Processes that serve streams"),
    _counter("worker_restarts_total", "Workers that were started again after their death"),
    _counter("log_lines_dropped_total", "Log lines lost because the reader was too slow"),
    _gauge("build_info", "Always 1; the label tells the version", labels=("version",), merge_rule="max"),
)

AUTH = (
    _counter(
        "jwks_fetches_total",
        "Fetches of issuers' keys, by result",
        labels=("result",),
        label_values=("ok", "failed"),
    ),
    _counter(
        "forward_auth_total",
        "Requests to the forward auth endpoint, by result",
        "`unavailable`: it could not be reached, or its response was invalid.",
        labels=("result",),
        label_values=("allowed", "denied", "unavailable"),
    ),
)

TLS = (
    _gauge(
        "tls_certificate_expiry_timestamp_seconds",
        "When the certificate of the public port ends (unix seconds)",
        "Only where `server.tls` is set.",
        merge_rule="min",
    ),
    _counter(
        "tls_reloads_total",
        "Changes of the certificate's files, by result",
        labels=("result",),
        label_values=("ok", "failed"),
    ),
    _counter(
        "tls_handshake_failures_total",
        "TLS handshakes that failed, by reason",
        "Scanners make some; a jump in `protocol` may be clients that do not trust the certificate. "
        "`too_many_unfinished`: one address has so many unfinished ones that others took their places.",
        labels=("reason",),
        label_values=("client_certificate", "plain_http", "protocol", "too_many_unfinished"),
    ),
)

PROCESS = (
    MetricDefinition(
        "process_cpu_seconds_total",
        "counter",
        "User and system CPU time",
        "With workers the sum of all of them and their parent; one process fills one core.",
    ),
    MetricDefinition(
        "process_resident_memory_bytes", "gauge", "Memory that is in RAM", "With workers the sum."
    ),
    MetricDefinition("process_open_fds", "gauge", "Open file descriptors", "With workers the sum."),
    MetricDefinition(
        "process_max_fds", "gauge", "File descriptors that may be open", "With workers the sum."
    ),
    MetricDefinition(
        "process_start_time_seconds",
        "gauge",
        "When the process began (unix seconds)",
        "With workers the first of them, their parent.",
        merge_rule="min",
    ),
    _gauge(
        "descriptor_usage_ratio",
        "Share of its file descriptors that a process has open; of workers the highest",
        "At 1 nobody can connect, and no upstream be reached. The last 128 are kept from streams.",
        merge_rule="max",
    ),
)

DEFINITIONS = (*STREAMS, *EVENTS, *SOURCES, *BROKER, *HEALTH, *AUTH, *TLS, *PROCESS)
DEFINITIONS_BY_NAME = {defined.name: defined for defined in DEFINITIONS}
