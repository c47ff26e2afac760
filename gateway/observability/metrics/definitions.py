"""Defines all metrics in one table.

The docs are generated from it, and tests compare it to the dashboard, the alerts and the code. ``note`` has
details for the docs only. No label is an address, a user or a client's id; ``channel`` is always the declared
name, and reasons are fixed words.
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
    """All values of its only label, if they are known: their series exist from the start, at 0."""
    merge_rule: MergeRule = "sum"
    """How the gauges of several workers are merged."""
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
        'Beyond it clients are asked to reconnect later: `refused_total{reason="overloaded"}`.',
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
        "Quiet streams that their clients closed before a heartbeat, repeatedly at the same age",
        "Their read timeout is shorter than the heartbeat. `client_read_timeout_too_short` in the log names "
        "the address and the age; [clients.md](clients.md) has the settings.",
    ),
    _counter(
        "large_event_disconnects_total",
        "Resumed streams that their clients closed repeatedly at the same large event",
        "Their buffer is smaller than the event. `client_buffer_too_small` in the log names its id and size.",
    ),
    _counter(
        "acks_missed_total",
        "Heartbeats that clients did not acknowledge in time",
        "Only where `ack` is on. After `ack.retry_limit` in a row a stream ends: "
        '`disconnects_total{reason="unacknowledged"}`.',
    ),
    _counter(
        "acks_total",
        "Acknowledgements of heartbeats, by result",
        "`local`: for a stream of this node; `forwarded`: for another node's stream, sent through the "
        "log; `late`: for no open heartbeat; `refused`: rejected, such as one with an invalid nonce.",
        labels=("result",),
        label_values=("local", "forwarded", "late", "refused"),
    ),
    _histogram(
        "connection_seconds",
        "Age of streams when they ended",
        "Many that end at the same age, such as 60 s, are cut by a proxy: `sse-gateway doctor` finds it.",
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
        "Lag of the stream that is furthest behind the newest event",
        merge_rule="max",
    ),
)

EVENTS = (
    _counter("events_received_total", "Records that sources yielded", labels=("source",)),
    _counter(
        "events_rejected_total",
        "Records and posts that can never become events, by reason",
        "A log line (`rejected`, `webhook_refused`) has the cause. A series exists from its first"
        " rejection on. Without a source: posts to one that the file does not declare.",
        labels=("source", "reason"),
    ),
    _counter(
        "webhook_throttled_total",
        "Posts that were answered 429",
        "The source's `rate` was exceeded; senders retry.",
        labels=("source",),
    ),
    _counter(
        "webhook_unavailable_total",
        "Posts that were answered 5xx, by reason",
        "Senders retry. A log line (`webhook_refused`) has the cause.",
        labels=("source", "reason"),
    ),
    _counter(
        "events_duplicate_total",
        "Events that were received again, and not appended again",
        "The sender gets the same response as the first time. `duplicates_dropped` in the log reports them.",
        labels=("source",),
    ),
    _counter(
        "events_published_total",
        "Events that this node appended to the log",
        "The sum over all nodes counts each event once.",
        labels=("channel",),
    ),
    _counter(
        "events_delivered_total", "Events written to streams, counted once per stream", labels=("channel",)
    ),
    _counter("bytes_sent_total", "Bytes written to streams, framing included"),
    _histogram(
        "delivery_lag_seconds",
        "From an event's id to the write to the socket; one sample per slice of a fan-out",
        "Includes clock differences between nodes: the id has the time of the node that appended.",
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    ),
    _counter("replayed_events_total", "Events written from history, to resuming or slow streams"),
    _counter(
        "conflated_events_total",
        "Events that slow streams skipped for a newer one with the same key",
    ),
    _counter(
        "gaps_total",
        "Gaps reported to streams, by reason",
        "`source_interrupted`: an upstream lost records, one for each channel. To single streams: `expired`: "
        "disconnected for longer than the history reaches; `unknown_id`: their id is not of this log; "
        "`no_resume_point`: a named client reconnected without one; `slow_client`.",
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
        "A disabled source (an empty url) has no series.",
        labels=("source",),
        merge_rule="max",
    ),
    _gauge(
        "source_leader",
        "1 on the node that reads the source for all of them",
        "Only exclusive sources; the sum over all nodes is 1, except for seconds during a takeover.",
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
        "Unread records upstream; on the node that reads, for sources that know it",
        labels=("source",),
    ),
    _gauge(
        "source_stale",
        "1 while the source has been silent for longer than its stale_after, on the node that reads it",
        "Only sources that have a `stale_after`; for a webhook, each node counts its own posts only.",
        labels=("source",),
        merge_rule="min",  # each worker gets the posts of its own connections only
    ),
)

BROKER = (
    _gauge("broker_up", "1 while the event log is available", merge_rule="min"),
    _histogram(
        "broker_append_seconds",
        "Duration of one append to the broker",
        "Includes failed appends.",
        buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5),
    ),
    _gauge("broker_connections", "Connections to Redis in use"),
    _gauge("broker_connections_open", "Open connections to Redis, including idle ones"),
)

HEALTH = (
    _gauge(
        "ready",
        "1 while the node accepts new clients: the result of /readyz",
        "The body of `/readyz` names the component that is not ready.",
        merge_rule="max",  # other workers take the clients of one that is not ready
    ),
    _gauge("draining", "1 during a shutdown", merge_rule="max"),
    _gauge(
        "loop_lag_seconds",
        "Worst lag of the event loop in the last 15 to 30 seconds",
        merge_rule="max",
    ),
    _gauge(
        "canary_seconds",
        "Time of the last canary event through broker and hub; for one that is late, its age so far",
        merge_rule="max",
    ),
    _counter("canary_failures_total", "Canary events that did not arrive through broker and hub in time"),
    _counter(
        "background_failures_total",
        "Unexpected exceptions in background tasks, by task",
        "Each is a bug of the gateway: `background_task_failed` in the log has the traceback. The task was "
        "restarted.",
        labels=("task",),
        label_values=TASK_NAMES,
    ),
    _gauge(
        "config_last_reload_successful",
        "1 if the last reload of the configuration succeeded, or there was none",
        "0: the old configuration stays in use; `/status` has file, line and column of the error.",
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
    _counter("worker_restarts_total", "Workers that were restarted after a crash"),
    _counter("log_lines_dropped_total", "Log lines dropped because the reader was too slow"),
    _gauge("build_info", "Always 1; the label has the version", labels=("version",), merge_rule="max"),
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
        "When the certificate of the public port expires (unix seconds)",
        "Only where `server.tls` is set.",
        merge_rule="min",
    ),
    _counter(
        "tls_reloads_total",
        "Reloads of the certificate files, by result",
        labels=("result",),
        label_values=("ok", "failed"),
    ),
    _counter(
        "tls_handshake_failures_total",
        "TLS handshakes that failed, by reason",
        "Scanners cause some; a jump in `protocol` may be clients that do not trust the certificate. "
        "`too_many_unfinished`: an address had so many unfinished handshakes that some were dropped.",
        labels=("reason",),
        label_values=("client_certificate", "plain_http", "protocol", "too_many_unfinished"),
    ),
)

PROCESS = (
    MetricDefinition(
        "process_cpu_seconds_total",
        "counter",
        "User and system CPU time",
        "With workers the sum of all of them and their parent; a process uses at most one core.",
    ),
    MetricDefinition("process_resident_memory_bytes", "gauge", "Resident memory", "With workers the sum."),
    MetricDefinition("process_open_fds", "gauge", "Open file descriptors", "With workers the sum."),
    MetricDefinition("process_max_fds", "gauge", "Limit of open file descriptors", "With workers the sum."),
    MetricDefinition(
        "process_start_time_seconds",
        "gauge",
        "When the process started (unix seconds)",
        "With workers that of their parent.",
        merge_rule="min",
    ),
    _gauge(
        "descriptor_usage_ratio",
        "Open file descriptors as a share of the limit; the highest of all workers",
        "At 1 neither clients nor upstreams can connect. Streams cannot use the last 128.",
        merge_rule="max",
    ),
)

DEFINITIONS = (*STREAMS, *EVENTS, *SOURCES, *BROKER, *HEALTH, *AUTH, *TLS, *PROCESS)
DEFINITIONS_BY_NAME = {defined.name: defined for defined in DEFINITIONS}
