"""Warnings about valid but suspicious settings. Pure.

Each has a code from `WARNING_CODES`, which is stable: ``check.allow``, log filters and the docs use it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from types import MappingProxyType
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
from gateway.config.validation.raw_data import as_mapping

log = structlog.get_logger("gateway.config")

NO_RENAMED_KEYS: Mapping[ConfigPath, str] = MappingProxyType({})
"""Nothing renamed."""

PROXY_IDLE_SECONDS = 60.0
"""Idle timeout of common proxies, in seconds: nginx, HAProxy's examples, AWS's load balancers."""

KUBERNETES_GRACE_SECONDS = 30.0
"""Default of Kubernetes for ``terminationGracePeriodSeconds``."""

LONG_MEMORY_HISTORY_SECONDS = 3600.0
"""Seconds of history from which on its loss at a restart is probably not intended."""

MAX_ACKS_PER_SECOND = 1000.0
"""Acks per second and node from which on they are a considerable load."""

MAX_LOGGED_WARNINGS = 50
"""Warnings that are logged at a start or a reload."""

SHORT_SILENCE_SECONDS = 10.0
"""Seconds of silence that a healthy peer may have."""


def unaccepted_warnings(
    config: Config, data: Any, renamed_keys: Mapping[ConfigPath, str] = NO_RENAMED_KEYS
) -> list[ConfigIssue]:
    """Return the warnings that ``check.allow`` does not accept, and its entries that accept nothing.

    ``data`` is the raw data with references resolved and paths as written; ``renamed_keys`` has the old name
    of each key that the file uses, by its path.
    """
    found = [*find_warnings(config), *_spelling_warnings(data, renamed_keys)]
    codes = {each.warning_code for each in found}
    allowed = config.check.allow
    return [each for each in found if each.warning_code not in allowed] + [
        ConfigIssue(
            ("check", "allow", index),
            f"accepts {code}, and there is no such warning here; remove it",
            warning_code="unused-allow",
        )
        for index, code in enumerate(allowed)
        if code not in codes or code in allowed[:index]
    ]


def _spelling_warnings(data: Any, renamed_keys: Mapping[ConfigPath, str]) -> Iterator[ConfigIssue]:
    """Warn about what the model does not show: old names of keys, and paths as written."""
    for path, old in renamed_keys.items():
        yield ConfigIssue(
            path,
            f"the file uses the old name {old!r}, which works until 1.0; rename the key to {path[-1]!r}",
            is_on_key=True,
            warning_code="renamed-key",
        )
    url = as_mapping(as_mapping(data).get("broker")).get("url")
    first = folder_of_misread_sqlite_url(url) if isinstance(url, str) else None
    if first is not None and FilePath(first).is_dir():
        yield ConfigIssue(
            ("broker", "url"),
            f"looks like a path in {first} and is relative to this file; write sqlite:///{first}/… (four"
            " slashes) for an absolute path, or sqlite:///./… for a relative one",
            warning_code="log-looks-absolute",
        )


def find_warnings(config: Config) -> Iterator[ConfigIssue]:
    """Yield every warning about a configuration, accepted or not."""
    yield from _server_warnings(config)
    yield from _timeout_warnings(config)
    yield from _ack_warnings(config)
    yield from _auth_warnings(config)
    yield from _cors_warnings(config)
    for name, source in config.sources.items():
        yield from _source_warnings(name, source, config)
    for name, channel in config.channels.items():
        yield from _channel_warnings(name, channel, config)
    for path in _connections_without_host_check(config):
        yield ConfigIssue(
            path,
            "accepts a trusted CA's certificate for any host; check the host name too",
            warning_code="host-not-checked",
        )


def log_warnings(found: Sequence[ConfigIssue]) -> None:
    """Log warnings, once for a start or a reload."""
    for each in found[:MAX_LOGGED_WARNINGS]:
        log.warning("config_warning", code=each.warning_code, key=format_path(each.path), note=each.message)
    if len(found) > MAX_LOGGED_WARNINGS:
        log.warning(
            "config_warnings_truncated",
            number=len(found) - MAX_LOGGED_WARNINGS,
            note="sse-gateway check reports all of them",
        )


def _server_warnings(config: Config) -> Iterator[ConfigIssue]:
    if config.server.admin_open and not config.server.admin.is_loopback:
        yield ConfigIssue(
            ("server", "admin_open"),
            "everybody who reaches the admin port may read metrics and status, and close streams;"
            " set admin_token, unless the network is private",
            warning_code="open-admin",
        )


def _timeout_warnings(config: Config) -> Iterator[ConfigIssue]:
    timeouts = config.timeouts
    if timeouts.heartbeat >= PROXY_IDLE_SECONDS:
        yield ConfigIssue(
            ("timeouts", "heartbeat"),
            f"common proxies close a stream after {PROXY_IDLE_SECONDS:g} s of silence; 15s or 30s is safe",
            warning_code="heartbeat-over-proxy",
        )
    if timeouts.heartbeat >= timeouts.connection:
        yield ConfigIssue(
            ("timeouts", "connection"),
            "streams end before their first heartbeat; set it longer than timeouts.heartbeat",
            warning_code="connection-under-heartbeat",
        )
    if timeouts.pre_drain + timeouts.drain > KUBERNETES_GRACE_SECONDS:
        yield ConfigIssue(
            ("timeouts", "drain"),
            f"including pre_drain, streams may last for {timeouts.pre_drain + timeouts.drain:g} s, and"
            f" Kubernetes kills after {KUBERNETES_GRACE_SECONDS:g} s; raise terminationGracePeriodSeconds",
            warning_code="drain-over-grace",
        )


def _ack_warnings(config: Config) -> Iterator[ConfigIssue]:
    """Warn where acks are configured: once for all channels that share the setting."""
    written: list[tuple[ConfigPath, AckSetting | None]] = [(("ack",), config.ack)]
    written += [(("channels", name, "ack"), channel.ack) for name, channel in config.channels.items()]
    for path, ack in written:
        if not isinstance(ack, AckConfig):
            continue
        often = config.limits.connections / ack.interval
        if often > MAX_ACKS_PER_SECOND:
            yield ConfigIssue(
                (*path, "interval"),
                f"{config.limits.connections} streams (limits.connections) send {often:,.0f} ack requests per"
                " second; 30s is often enough",
                warning_code="ack-often",
            )
        if ack.timeout < SHORT_SILENCE_SECONDS:
            yield ConfigIssue(
                (*path, "timeout"),
                "a phone that changes networks, or a page on a busy machine, may take longer and lose its"
                " stream; 60s is safe",
                warning_code="ack-impatient",
            )
        if ack.max_silence_seconds >= config.timeouts.connection:
            yield ConfigIssue(
                path,
                f"a client without acks is closed after {ack.max_silence_seconds:g} s (retry_limit intervals"
                " and timeout), and timeouts.connection ends streams before that; lower one of the three",
                is_on_key=True,
                warning_code="ack-over-connection",
            )


def _auth_warnings(config: Config) -> Iterator[ConfigIssue]:
    auth = config.auth
    if auth is None:
        return
    rules = [channel.access for channel in config.channels.values()]
    is_token_needed = any(rule == "token" or isinstance(rule, ClaimsAccessConfig) for rule in rules)
    if auth.jwt is not None and not is_token_needed:
        yield ConfigIssue(
            ("auth", "jwt"),
            "no channel requires a token; set access: token, or {claims: …}, or remove this section",
            is_on_key=True,
            warning_code="unused-auth",
        )
    if auth.forward is not None and "forward" not in rules:
        yield ConfigIssue(
            ("auth", "forward"),
            "no channel has access: forward; set it, or remove this section",
            is_on_key=True,
            warning_code="unused-auth",
        )
    for index, jwt in enumerate(auth.jwt or ()):
        path = ("auth", "jwt", index) if len(auth.jwt or ()) > 1 else ("auth", "jwt")
        yield from _insecure_url_warning((*path, "jwks_url"), jwt.jwks_url)
        if jwt.secret is None and jwt.audience is None:
            yield ConfigIssue(
                path,
                "has no audience, so the issuer's tokens for other applications open streams here too;"
                " set audience to the aud claim of tokens for this gateway",
                is_on_key=True,
                warning_code="any-audience",
            )
    if auth.query is not None:
        yield ConfigIssue(
            ("auth", "query"),
            "tokens in URLs end up in the logs of proxies; use auth.tickets, which expire after minutes",
            warning_code="token-in-query",
        )
    if auth.forward is not None:
        yield from _insecure_url_warning(("auth", "forward", "url"), auth.forward.url)
    if auth.forward is not None and auth.forward.on_outage == "open":
        yield ConfigIssue(
            ("auth", "forward", "on_outage"),
            "while the endpoint is unavailable, everybody may read all channels with access: forward",
            warning_code="open-on-outage",
        )
    has_origins = config.cors.origins or any(map(_channel_origins, config.channels.values()))
    if auth.cookie is not None and has_origins and not config.cors.credentials:
        yield ConfigIssue(
            ("auth", "cookie"),
            "pages of other origins (cors.origins) cannot send the cookie without cors.credentials: true",
            warning_code="cookie-without-credentials",
        )


def _insecure_url_warning(path: ConfigPath, url: str | None) -> Iterator[ConfigIssue]:
    if url is not None and not is_secure_url(url):
        yield ConfigIssue(
            path,
            "is http:// to another host: responses forged on the way could open every channel; use https",
            warning_code="unsafe-url",
        )


def _connections_without_host_check(config: Config) -> Iterator[ConfigPath]:
    """Yield the keys of TLS connections that do not check the host name in the certificate."""
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


def _channel_origins(channel: ChannelConfig) -> list[str]:
    return channel.cors.origins if channel.cors is not None else []


def _cors_warnings(config: Config) -> Iterator[ConfigIssue]:
    # The global list is reported once, for the first channel that uses it.
    is_reported = False
    for name, channel in config.channels.items():
        is_global = channel.cors is None
        origins = config.cors.origins if channel.cors is None else channel.cors.origins
        if channel.access == "public" or "*" not in origins or (is_global and is_reported):
            continue
        is_reported = is_reported or is_global
        yield ConfigIssue(
            ("cors", "origins") if is_global else ("channels", name, "cors", "origins"),
            f"'*' lets the pages of every site request {name!r}, which is not public; list your origins",
            warning_code="any-origin",
        )


def _source_warnings(name: str, source: SourceConfig, config: Config) -> Iterator[ConfigIssue]:
    path: ConfigPath = ("sources", name)
    if not any(route.source == name for channel in config.channels.values() for route in channel.from_):
        yield ConfigIssue(
            path,
            "no channel has a route from it; add one to a channel's from, or remove the source",
            True,
            warning_code="unread-source",
        )
    if isinstance(source, WebhookConfig):
        if source.verify.none and not config.server.listen.is_loopback:
            yield ConfigIssue(
                (*path, "verify", "none"),
                f"everybody who reaches {config.server.listen} may send events to your users;"
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
            "memory:// loses the source's offsets at a restart: records that arrive meanwhile are missed, or"
            " repeated with start: oldest; set broker.url to sqlite:///… or redis://…",
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
            "all its sources are disabled (empty url or brokers), so it never gets an event",
            is_on_key=True,
            warning_code="channel-without-source",
        )
    seen = set()
    for index, route in enumerate(channel.from_):
        if (route.source, route.topic) in seen:
            yield ConfigIssue(
                (*path, "from", index),
                "repeats the source and topic of an earlier route; remove one",
                warning_code="route-twice",
            )
        seen.add((route.source, route.topic))
    if channel.access == "public" and Template(name).fields:
        fields = ", ".join(f"{{{field}}}" for field in Template(name).fields)
        yield ConfigIssue(
            (*path, "access"),
            f"anybody may read it for any {fields}; if each belongs to one user, write"
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
            f"clients reconnect after about {config.timeouts.retry:g} s (timeouts.retry), so many will get"
            " a gap; keep a minute or more, or set history: none",
            warning_code="history-under-retry",
        )
    if _is_in_memory(config) and (age is None or age > LONG_MEMORY_HISTORY_SECONDS):
        yield ConfigIssue(
            (*path, "age"),
            "memory:// loses the history at a restart; set broker.url to sqlite:///… or redis://…",
            warning_code="history-in-memory",
        )


def _critical_staleness_warning(path: ConfigPath, seconds: float) -> ConfigIssue:
    return ConfigIssue(
        path,
        f"with critical, {seconds:g} s of silence makes every node unready, so load balancers stop traffic",
        warning_code="critical-at-once",
    )


def _is_in_memory(config: Config) -> bool:
    return config.broker.url.get_secret_value() == "memory://"
