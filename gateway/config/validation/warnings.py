"""What a configuration may say and an operator should be told. Pure.

A warning is a `ConfigIssue` with a code, which does not change: documents, filters of logs and people name it.
Each of them is about something that works, and is rarely meant.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import structlog

from gateway.config.loader.issues import ConfigIssue, ConfigPath, format_path
from gateway.config.model.auth import is_secure_url
from gateway.config.model.config import (
    AckConfig,
    AckSetting,
    ChannelConfig,
    ClaimsAccessConfig,
    Config,
    HistoryConfig,
)
from gateway.config.model.paths import folder_of_misread_sqlite_url
from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.sources import (
    KafkaConfig,
    RedisStreamConfig,
    SourceConfig,
    WebhookConfig,
    disabled_reason,
)
from gateway.config.template import Template

# Whom the gateway trusts upstream: what the file allows and an operator should be reminded of. Pure.


def connections_without_host_check(config: Config) -> Iterator[ConfigPath]:
    """Yield the keys of connections that take the certificate of any host, if its authority is trusted."""
    urls: dict[ConfigPath, str] = {("broker", "url"): config.broker.url.get_secret_value()}
    for name, source in config.sources.items():
        if isinstance(source, KafkaConfig):
            if source.tls is not None and not source.tls.check_hostname:
                yield "sources", name, "tls", "check_hostname"
        elif not isinstance(source, WebhookConfig):
            urls["sources", name, "url"] = source.url.get_secret_value()
    for key, url in urls.items():
        if url.startswith("rediss") and not RedisUrl.parse(url).is_hostname_checked:
            yield key


def insecure_urls(config: Config) -> Iterator[ConfigPath]:
    """Yield the keys of URLs whose answers decide who reads, and that anybody between could answer."""
    if config.auth is None:
        return
    issuers = config.auth.jwt or ()
    for index, jwt in enumerate(issuers):
        if jwt.jwks_url is not None and not is_secure_url(jwt.jwks_url):
            yield ("auth", "jwt", index, "jwks_url") if len(issuers) > 1 else ("auth", "jwt", "jwks_url")
    if config.auth.forward is not None and not is_secure_url(config.auth.forward.url):
        yield "auth", "forward", "url"


log = structlog.get_logger("gateway.config")

PROXY_IDLE_SECONDS = 60.0
"""After how long without a byte common proxies close: nginx, HAProxy's examples, AWS's balancers."""

KUBERNETES_GRACE_SECONDS = 30.0
"""``terminationGracePeriodSeconds`` of Kubernetes, where nobody sets it."""

LONG_MEMORY_HISTORY_SECONDS = 3600.0
"""Seconds of history that nobody expects to lose with a restart."""

MAX_ACKS_PER_SECOND = 1000.0
"""Answers to heartbeats a second, to one node, that are a load of their own."""

MAX_LOGGED_WARNINGS = 50
"""Warnings that are written to the log at once."""

SHORT_SILENCE_SECONDS = 10.0
"""Seconds of silence that are no outage."""


def unaccepted_warnings(config: Config, data: Any) -> list[ConfigIssue]:
    """Return the warnings that ``check.allow`` does not accept, and what it accepts without need.

    ``data`` is what the file says, with its references resolved and its paths as they are written.
    """
    found = [*find_warnings(config), *_spelling_warnings(data)]
    codes = {each.warning_code for each in found}
    allowed = config.check.allow
    return [each for each in found if each.warning_code not in allowed] + [
        ConfigIssue(
            ("check", "allow", index),
            f"accepts {code}, and nothing here is warned about so; remove it",
            warning_code="unused-allow",
        )
        for index, code in enumerate(allowed)
        if code not in codes or code in allowed[:index]
    ]


def _spelling_warnings(data: Any) -> Iterator[ConfigIssue]:
    """Warn of what only the file's own spelling shows."""
    broker = data.get("broker") if isinstance(data, dict) else None
    url = broker.get("url") if isinstance(broker, dict) else None
    first = folder_of_misread_sqlite_url(url) if isinstance(url, str) else None
    if first is not None and FilePath(first).is_dir():
        yield ConfigIssue(
            ("broker", "url"),
            f"looks absolute and is relative to this file, which has nothing to do with {first}; four slashes"
            f" begin an absolute path (sqlite:///{first}/…), and sqlite:///./… says that relative is meant",
            warning_code="log-looks-absolute",
        )


def find_warnings(config: Config) -> Iterator[ConfigIssue]:
    """Yield everything that is allowed, works, and is rarely meant, whether it is accepted or not."""
    yield from _server_warnings(config)
    yield from _timeout_warnings(config)
    yield from _ack_warnings(config)
    yield from _auth_warnings(config)
    yield from _cors_warnings(config)
    for name, source in config.sources.items():
        yield from _source_warnings(name, source, config)
    for name, channel in config.channels.items():
        yield from _channel_warnings(name, channel, config)
    for path in connections_without_host_check(config):
        yield ConfigIssue(
            path,
            "takes the certificate of any host whose authority is trusted; check the host too",
            warning_code="host-not-checked",
        )
    for path in insecure_urls(config):
        yield ConfigIssue(
            path,
            "is http:// to another host: whoever is between can answer, and open every channel; use https",
            warning_code="unsafe-url",
        )


def log_warnings(found: Sequence[ConfigIssue]) -> None:
    """Write each warning to the log, once for a start or a reload."""
    for each in found[:MAX_LOGGED_WARNINGS]:
        log.warning("config_warning", code=each.warning_code, key=format_path(each.path), note=each.message)
    if len(found) > MAX_LOGGED_WARNINGS:
        log.warning(
            "config_warnings_truncated",
            number=len(found) - MAX_LOGGED_WARNINGS,
            note="sse-gateway check tells all",
        )


def _server_warnings(config: Config) -> Iterator[ConfigIssue]:
    if config.server.admin_open and not config.server.admin.is_loopback:
        yield ConfigIssue(
            ("server", "admin_open"),
            "whoever reaches the admin port may read metrics and status, and end streams;"
            " set admin_token, unless the network keeps strangers away",
            warning_code="open-admin",
        )


def _timeout_warnings(config: Config) -> Iterator[ConfigIssue]:
    timeouts = config.timeouts
    if timeouts.heartbeat >= PROXY_IDLE_SECONDS:
        yield ConfigIssue(
            ("timeouts", "heartbeat"),
            f"common proxies end a stream that is silent for {PROXY_IDLE_SECONDS:g} s; 15s or 30s is safe",
            warning_code="heartbeat-over-proxy",
        )
    if timeouts.heartbeat >= timeouts.connection:
        yield ConfigIssue(
            ("timeouts", "connection"),
            "streams end before their first heartbeat, so a quiet one never shows that it lives",
            warning_code="connection-under-heartbeat",
        )
    if timeouts.pre_drain + timeouts.drain > KUBERNETES_GRACE_SECONDS:
        yield ConfigIssue(
            ("timeouts", "drain"),
            f"with pre_drain, the last stream may end after {timeouts.pre_drain + timeouts.drain:g} s, and"
            f" Kubernetes kills after {KUBERNETES_GRACE_SECONDS:g} s unless terminationGracePeriodSeconds is higher",
            warning_code="drain-over-grace",
        )


def _ack_warnings(config: Config) -> Iterator[ConfigIssue]:
    """Warn where acknowledgement is written: once for all channels that share it."""
    written: list[tuple[ConfigPath, AckSetting | None]] = [(("ack",), config.ack)]
    written += [(("channels", name, "ack"), channel.ack) for name, channel in config.channels.items()]
    for path, ack in written:
        if not isinstance(ack, AckConfig):
            continue
        often = config.limits.connections / ack.interval
        if often > MAX_ACKS_PER_SECOND:
            yield ConfigIssue(
                (*path, "interval"),
                f"{config.limits.connections} streams (limits.connections) answer {often:,.0f} times a"
                " second, each with a request of its own; 30s is often enough",
                warning_code="ack-often",
            )
        if ack.timeout < SHORT_SILENCE_SECONDS:
            yield ConfigIssue(
                (*path, "timeout"),
                "a phone that changes networks, or a page on a busy machine, takes longer and loses its"
                " stream; 60s is safe",
                warning_code="ack-impatient",
            )
        if ack.max_silence_seconds >= config.timeouts.connection:
            yield ConfigIssue(
                path,
                f"a client that never answers is closed after {ack.max_silence_seconds:g} s (interval times retry_limit,"
                " and timeout), and streams end before that by timeouts.connection",
                is_on_key=True,
                warning_code="ack-over-connection",
            )


def _auth_warnings(config: Config) -> Iterator[ConfigIssue]:
    auth = config.auth
    if auth is None:
        return
    rules = [channel.access for channel in config.channels.values()]
    if auth.jwt is not None and not any(
        rule == "token" or isinstance(rule, ClaimsAccessConfig) for rule in rules
    ):
        yield ConfigIssue(
            ("auth", "jwt"),
            "no channel asks for a token; write access: token, or {claims: …}, where one is needed",
            is_on_key=True,
            warning_code="unused-auth",
        )
    if auth.forward is not None and "forward" not in rules:
        yield ConfigIssue(
            ("auth", "forward"), "no channel has access: forward", is_on_key=True, warning_code="unused-auth"
        )
    issuers = auth.jwt or ()
    for index, jwt in enumerate(issuers):
        if jwt.secret is None and jwt.audience is None:
            path: ConfigPath = ("auth", "jwt", index) if len(issuers) > 1 else ("auth", "jwt")
            yield ConfigIssue(
                path,
                "has no audience, so a token that the issuer made for any other application opens streams"
                " here; set audience to what aud holds in tokens for this gateway",
                is_on_key=True,
                warning_code="any-audience",
            )
    if auth.query is not None:
        yield ConfigIssue(
            ("auth", "query"),
            "tokens in URLs end up in the logs of proxies; auth.tickets are for that: they end after minutes",
            warning_code="token-in-query",
        )
    if auth.forward is not None and auth.forward.on_outage == "open":
        yield ConfigIssue(
            ("auth", "forward", "on_outage"),
            "while the endpoint is away everybody reads every channel with access: forward",
            warning_code="open-on-outage",
        )
    origins = [
        *config.cors.origins,
        *(each for one in config.channels.values() for each in _channel_origins(one)),
    ]
    if auth.cookie is not None and origins and not config.cors.credentials:
        yield ConfigIssue(
            ("auth", "cookie"),
            "pages of other origins (cors.origins) cannot send it: browsers need cors.credentials: true",
            warning_code="cookie-without-credentials",
        )


def _channel_origins(channel: ChannelConfig) -> list[str]:
    return channel.cors.origins if channel.cors is not None else []


def _cors_warnings(config: Config) -> Iterator[ConfigIssue]:
    guarded = [name for name, channel in config.channels.items() if channel.access != "public"]
    shared = [name for name in guarded if config.channels[name].cors is None]
    if "*" in config.cors.origins and shared:
        yield _any_origin_warning(("cors", "origins"), shared[0])
    for name in guarded:
        if "*" in _channel_origins(config.channels[name]):
            yield _any_origin_warning(("channels", name, "cors", "origins"), name)


def _any_origin_warning(path: ConfigPath, name: str) -> ConfigIssue:
    return ConfigIssue(
        path,
        f"'*' lets the pages of every site ask for {name!r}, which is not public; list your origins",
        warning_code="any-origin",
    )


def _source_warnings(name: str, source: SourceConfig, config: Config) -> Iterator[ConfigIssue]:
    path: ConfigPath = ("sources", name)
    if not any(route.source == name for channel in config.channels.values() for route in channel.from_):
        yield ConfigIssue(
            path,
            "no channel reads from it; name it in a channel's from, or remove it",
            True,
            warning_code="unread-source",
        )
    if isinstance(source, WebhookConfig):
        if source.verify.none and not config.server.listen.is_loopback:
            yield ConfigIssue(
                (*path, "verify", "none"),
                f"whoever reaches {config.server.listen} may send events to your users;"
                ' set verify: {bearer: ["${WEBHOOK_TOKEN}"]}, or a signature',
                warning_code="open-webhook",
            )
    elif (
        isinstance(source, (RedisStreamConfig, KafkaConfig))
        and _is_in_memory(config)
        and not disabled_reason(source)
    ):
        yield ConfigIssue(
            path,
            "is read exactly once into the log, and memory:// forgets at a restart how far that was:"
            " what comes meanwhile is missed, or with start: oldest repeated; set broker.url",
            True,
            warning_code="place-in-memory",
        )
    if source.critical and source.stale_after is not None and source.stale_after < SHORT_SILENCE_SECONDS:
        yield _critical_staleness_warning((*path, "stale_after"), source.stale_after)


def _channel_warnings(name: str, channel: ChannelConfig, config: Config) -> Iterator[ConfigIssue]:
    path: ConfigPath = ("channels", name)
    if all(disabled_reason(config.sources[route.source]) for route in channel.from_):
        yield ConfigIssue(
            (*path, "from"),
            "every source of it is off (its url or brokers are empty), so it stays silent",
            is_on_key=True,
            warning_code="channel-without-source",
        )
    seen = set()
    for index, route in enumerate(channel.from_):
        if (route.source, route.topic) in seen:
            yield ConfigIssue(
                (*path, "from", index),
                "is there twice: source and topic are those of an earlier line; remove one",
                warning_code="route-twice",
            )
        seen.add((route.source, route.topic))
    if channel.access == "public" and Template(name).fields:
        fields = ", ".join(f"{{{field}}}" for field in Template(name).fields)
        yield ConfigIssue(
            (*path, "access"),
            f"anybody may read it for any {fields}; if each is one user's, write"
            f' access: {{claims: {{sub: "{{{Template(name).fields[-1]}}}"}}}}',
            warning_code="public-template",
        )
    if isinstance(channel.history, HistoryConfig):
        yield from _history_warnings(channel.history, (*path, "history"), config)
    if channel.critical and channel.stale_after is not None and channel.stale_after < SHORT_SILENCE_SECONDS:
        yield _critical_staleness_warning((*path, "stale_after"), channel.stale_after)


def _history_warnings(history: HistoryConfig, path: ConfigPath, config: Config) -> Iterator[ConfigIssue]:
    age = history.age
    if age is not None and age < 2 * config.timeouts.retry:
        yield ConfigIssue(
            (*path, "age"),
            f"clients come back after about {config.timeouts.retry:g} s (timeouts.retry), so many will find"
            " a gap; keep a minute or more, or write history: none",
            warning_code="history-under-retry",
        )
    if _is_in_memory(config) and (age is None or age > LONG_MEMORY_HISTORY_SECONDS):
        yield ConfigIssue(
            (*path, "age"),
            "memory:// forgets it all at a restart; set broker.url to sqlite:///… or redis://…",
            warning_code="history-in-memory",
        )


def _critical_staleness_warning(path: ConfigPath, seconds: float) -> ConfigIssue:
    return ConfigIssue(
        path,
        f"with critical, {seconds:g} s of silence makes every node unready, and balancers stop all traffic",
        warning_code="critical-at-once",
    )


def _is_in_memory(config: Config) -> bool:
    return config.broker.url.get_secret_value() == "memory://"
