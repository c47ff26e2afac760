"""What a configuration may say and an operator should be told. Pure.

A warning is a `Fault` with a code, which does not change: documents, filters of logs and people name it.
Each of them is about something that works, and is rarely meant.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import structlog

from gateway.config.loader.faults import Fault, Path, dotted
from gateway.config.model.auth import is_safe
from gateway.config.model.config import Ack, AckSetting, Channel, ClaimsAccess, Config, History
from gateway.config.model.paths import looks_absolute
from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.sources import Kafka, RedisStream, Source, Webhook, why_off
from gateway.config.template import Template

# Whom the gateway trusts upstream: what the file allows and an operator should be reminded of. Pure.


def unchecked_hosts(config: Config) -> Iterator[Path]:
    """Yield the keys of connections that take the certificate of any host, if its authority is trusted."""
    urls: dict[Path, str] = {("broker", "url"): config.broker.url.get_secret_value()}
    for name, source in config.sources.items():
        if isinstance(source, Kafka):
            if source.tls is not None and not source.tls.check_hostname:
                yield "sources", name, "tls", "check_hostname"
        elif not isinstance(source, Webhook):
            urls["sources", name, "url"] = source.url.get_secret_value()
    for key, url in urls.items():
        if url.startswith("rediss") and not RedisUrl.parse(url).checks_host:
            yield key


def unsafe_urls(config: Config) -> Iterator[Path]:
    """Yield the keys of URLs whose answers decide who reads, and that anybody between could answer."""
    if config.auth is None:
        return
    issuers = config.auth.jwt or ()
    for index, jwt in enumerate(issuers):
        if jwt.jwks_url is not None and not is_safe(jwt.jwks_url):
            yield ("auth", "jwt", index, "jwks_url") if len(issuers) > 1 else ("auth", "jwt", "jwks_url")
    if config.auth.forward is not None and not is_safe(config.auth.forward.url):
        yield "auth", "forward", "url"


log = structlog.get_logger("gateway.config")

PROXY_IDLE_SECONDS = 60.0
"""After how long without a byte common proxies close: nginx, HAProxy's examples, AWS's balancers."""

GRACE_SECONDS = 30.0
"""``terminationGracePeriodSeconds`` of Kubernetes, where nobody sets it."""

LONG_IN_MEMORY = 3600.0
"""Seconds of history that nobody expects to lose with a restart."""

MOST_ANSWERS = 1000.0
"""Answers to heartbeats a second, to one node, that are a load of their own."""

MOST_TOLD = 50
"""Warnings that are written to the log at once."""

SHORT_SILENCE = 10.0
"""Seconds of silence that are no outage."""


def told(config: Config, data: Any) -> list[Fault]:
    """Return the warnings that ``check.allow`` does not accept, and what it accepts without need.

    ``data`` is what the file says, with its references resolved and its paths as they are written.
    """
    found = [*warnings(config), *_written(data)]
    codes = {each.code for each in found}
    allowed = config.check.allow
    return [each for each in found if each.code not in allowed] + [
        Fault(
            ("check", "allow", index),
            f"accepts {code}, and nothing here is warned about so; remove it",
            code="unused-allow",
        )
        for index, code in enumerate(allowed)
        if code not in codes or code in allowed[:index]
    ]


def _written(data: Any) -> Iterator[Fault]:
    """Warn of what only the file's own spelling shows."""
    broker = data.get("broker") if isinstance(data, dict) else None
    url = broker.get("url") if isinstance(broker, dict) else None
    first = looks_absolute(url) if isinstance(url, str) else None
    if first is not None and FilePath(first).is_dir():
        yield Fault(
            ("broker", "url"),
            f"looks absolute and is relative to this file, which has nothing to do with {first}; four slashes"
            f" begin an absolute path (sqlite:///{first}/…), and sqlite:///./… says that relative is meant",
            code="log-looks-absolute",
        )


def warnings(config: Config) -> Iterator[Fault]:
    """Yield everything that is allowed, works, and is rarely meant, whether it is accepted or not."""
    yield from _server(config)
    yield from _timeouts(config)
    yield from _ack(config)
    yield from _auth(config)
    yield from _cors(config)
    for name, source in config.sources.items():
        yield from _source(name, source, config)
    for name, channel in config.channels.items():
        yield from _channel(name, channel, config)
    for path in unchecked_hosts(config):
        yield Fault(
            path,
            "takes the certificate of any host whose authority is trusted; check the host too",
            code="host-not-checked",
        )
    for path in unsafe_urls(config):
        yield Fault(
            path,
            "is http:// to another host: whoever is between can answer, and open every channel; use https",
            code="unsafe-url",
        )


def tell(found: Sequence[Fault]) -> None:
    """Write each warning to the log, once for a start or a reload."""
    for each in found[:MOST_TOLD]:
        log.warning("config_warning", code=each.code, key=dotted(each.path), note=each.message)
    if len(found) > MOST_TOLD:
        log.warning(
            "config_warnings_left_out", number=len(found) - MOST_TOLD, note="sse-gateway check tells all"
        )


def _server(config: Config) -> Iterator[Fault]:
    if config.server.admin_open and not config.server.admin.is_loopback:
        yield Fault(
            ("server", "admin_open"),
            "whoever reaches the admin port may read metrics and status, and end streams;"
            " set admin_token, unless the network keeps strangers away",
            code="open-admin",
        )


def _timeouts(config: Config) -> Iterator[Fault]:
    timeouts = config.timeouts
    if timeouts.heartbeat >= PROXY_IDLE_SECONDS:
        yield Fault(
            ("timeouts", "heartbeat"),
            f"common proxies end a stream that is silent for {PROXY_IDLE_SECONDS:g} s; 15s or 30s is safe",
            code="heartbeat-over-proxy",
        )
    if timeouts.heartbeat >= timeouts.connection:
        yield Fault(
            ("timeouts", "connection"),
            "streams end before their first heartbeat, so a quiet one never shows that it lives",
            code="connection-under-heartbeat",
        )
    if timeouts.pre_drain + timeouts.drain > GRACE_SECONDS:
        yield Fault(
            ("timeouts", "drain"),
            f"with pre_drain, the last stream may end after {timeouts.pre_drain + timeouts.drain:g} s, and"
            f" Kubernetes kills after {GRACE_SECONDS:g} s unless terminationGracePeriodSeconds is higher",
            code="drain-over-grace",
        )


def _ack(config: Config) -> Iterator[Fault]:
    """Warn where acknowledgement is written: once for all channels that share it."""
    written: list[tuple[Path, AckSetting | None]] = [(("ack",), config.ack)]
    written += [(("channels", name, "ack"), channel.ack) for name, channel in config.channels.items()]
    for path, ack in written:
        if not isinstance(ack, Ack):
            continue
        often = config.limits.connections / ack.interval
        if often > MOST_ANSWERS:
            yield Fault(
                (*path, "interval"),
                f"{config.limits.connections} streams (limits.connections) answer {often:,.0f} times a"
                " second, each with a request of its own; 30s is often enough",
                code="ack-often",
            )
        if ack.timeout < SHORT_SILENCE:
            yield Fault(
                (*path, "timeout"),
                "a phone that changes networks, or a page on a busy machine, takes longer and loses its"
                " stream; 60s is safe",
                code="ack-impatient",
            )
        if ack.patience >= config.timeouts.connection:
            yield Fault(
                path,
                f"a client that never answers is closed after {ack.patience:g} s (interval times retry_limit,"
                " and timeout), and streams end before that by timeouts.connection",
                on_key=True,
                code="ack-over-connection",
            )


def _auth(config: Config) -> Iterator[Fault]:
    auth = config.auth
    if auth is None:
        return
    rules = [channel.access for channel in config.channels.values()]
    if auth.jwt is not None and not any(rule == "token" or isinstance(rule, ClaimsAccess) for rule in rules):
        yield Fault(
            ("auth", "jwt"),
            "no channel asks for a token; write access: token, or {claims: …}, where one is needed",
            on_key=True,
            code="unused-auth",
        )
    if auth.forward is not None and "forward" not in rules:
        yield Fault(("auth", "forward"), "no channel has access: forward", on_key=True, code="unused-auth")
    issuers = auth.jwt or ()
    for index, jwt in enumerate(issuers):
        if jwt.secret is None and jwt.audience is None:
            path: Path = ("auth", "jwt", index) if len(issuers) > 1 else ("auth", "jwt")
            yield Fault(
                path,
                "has no audience, so a token that the issuer made for any other application opens streams"
                " here; set audience to what aud holds in tokens for this gateway",
                on_key=True,
                code="any-audience",
            )
    if auth.query is not None:
        yield Fault(
            ("auth", "query"),
            "tokens in URLs end up in the logs of proxies; auth.tickets are for that: they end after minutes",
            code="token-in-query",
        )
    if auth.forward is not None and auth.forward.on_outage == "open":
        yield Fault(
            ("auth", "forward", "on_outage"),
            "while the endpoint is away everybody reads every channel with access: forward",
            code="open-on-outage",
        )
    origins = [*config.cors.origins, *(each for one in config.channels.values() for each in _own(one))]
    if auth.cookie is not None and origins and not config.cors.credentials:
        yield Fault(
            ("auth", "cookie"),
            "pages of other origins (cors.origins) cannot send it: browsers need cors.credentials: true",
            code="cookie-without-credentials",
        )


def _own(channel: Channel) -> list[str]:
    return channel.cors.origins if channel.cors is not None else []


def _cors(config: Config) -> Iterator[Fault]:
    guarded = [name for name, channel in config.channels.items() if channel.access != "public"]
    shared = [name for name in guarded if config.channels[name].cors is None]
    if "*" in config.cors.origins and shared:
        yield _any_origin(("cors", "origins"), shared[0])
    for name in guarded:
        if "*" in _own(config.channels[name]):
            yield _any_origin(("channels", name, "cors", "origins"), name)


def _any_origin(path: Path, name: str) -> Fault:
    return Fault(
        path,
        f"'*' lets the pages of every site ask for {name!r}, which is not public; list your origins",
        code="any-origin",
    )


def _source(name: str, source: Source, config: Config) -> Iterator[Fault]:
    path: Path = ("sources", name)
    if not any(route.source == name for channel in config.channels.values() for route in channel.from_):
        yield Fault(
            path,
            "no channel reads from it; name it in a channel's from, or remove it",
            True,
            code="unread-source",
        )
    if isinstance(source, Webhook):
        if source.verify.none and not config.server.listen.is_loopback:
            yield Fault(
                (*path, "verify", "none"),
                f"whoever reaches {config.server.listen} may send events to your users;"
                ' set verify: {bearer: ["${WEBHOOK_TOKEN}"]}, or a signature',
                code="open-webhook",
            )
    elif isinstance(source, (RedisStream, Kafka)) and _is_in_memory(config) and not why_off(source):
        yield Fault(
            path,
            "is read exactly once into the log, and memory:// forgets at a restart how far that was:"
            " what comes meanwhile is missed, or with start: oldest repeated; set broker.url",
            True,
            code="place-in-memory",
        )
    if source.critical and source.stale_after is not None and source.stale_after < SHORT_SILENCE:
        yield _flapping((*path, "stale_after"), source.stale_after)


def _channel(name: str, channel: Channel, config: Config) -> Iterator[Fault]:
    path: Path = ("channels", name)
    if all(why_off(config.sources[route.source]) for route in channel.from_):
        yield Fault(
            (*path, "from"),
            "every source of it is off (its url or brokers are empty), so it stays silent",
            on_key=True,
            code="channel-without-source",
        )
    seen = set()
    for index, route in enumerate(channel.from_):
        if (route.source, route.topic) in seen:
            yield Fault(
                (*path, "from", index),
                "is there twice: source and topic are those of an earlier line; remove one",
                code="route-twice",
            )
        seen.add((route.source, route.topic))
    if channel.access == "public" and Template(name).fields:
        fields = ", ".join(f"{{{field}}}" for field in Template(name).fields)
        yield Fault(
            (*path, "access"),
            f"anybody may read it for any {fields}; if each is one user's, write"
            f' access: {{claims: {{sub: "{{{Template(name).fields[-1]}}}"}}}}',
            code="public-template",
        )
    if isinstance(channel.history, History):
        yield from _history(channel.history, (*path, "history"), config)
    if channel.critical and channel.stale_after is not None and channel.stale_after < SHORT_SILENCE:
        yield _flapping((*path, "stale_after"), channel.stale_after)


def _history(history: History, path: Path, config: Config) -> Iterator[Fault]:
    age = history.age
    if age is not None and age < 2 * config.timeouts.retry:
        yield Fault(
            (*path, "age"),
            f"clients come back after about {config.timeouts.retry:g} s (timeouts.retry), so many will find"
            " a gap; keep a minute or more, or write history: none",
            code="history-under-retry",
        )
    if _is_in_memory(config) and (age is None or age > LONG_IN_MEMORY):
        yield Fault(
            (*path, "age"),
            "memory:// forgets it all at a restart; set broker.url to sqlite:///… or redis://…",
            code="history-in-memory",
        )


def _flapping(path: Path, seconds: float) -> Fault:
    return Fault(
        path,
        f"with critical, {seconds:g} s of silence makes every node unready, and balancers stop all traffic",
        code="critical-at-once",
    )


def _is_in_memory(config: Config) -> bool:
    return config.broker.url.get_secret_value() == "memory://"
