"""Rules across the sections of a configuration.

They read the raw data and not the model, because the model of a file with one mistake does not
exist, and every mistake has to be told at once. So each check steps over whatever has the wrong shape;
the model reports that.
"""

from collections.abc import Iterator
from typing import Any

from gateway.config.loader.issues import ConfigIssue, suggest_nearest
from gateway.config.model.value_types import parse_listen_address
from gateway.config.placeholders import Expression
from gateway.config.template import Template, field_names
from gateway.config.validation.section_rules import check_sections


def check_rules(data: Any) -> Iterator[ConfigIssue]:
    """Yield every fault that no single section can see."""
    root = _as_mapping(data)
    sources = _as_mapping(root.get("sources"))
    auth = _as_mapping(root.get("auth"))
    credentials = _as_mapping(root.get("cors")).get("credentials") in (True, "true")
    yield from check_sections(root)
    yield from _check_credentials(root.get("cors"), ("cors", "origins"), credentials)
    yield from _check_sources(sources)
    tls = _as_mapping(_as_mapping(root.get("server")).get("tls"))
    yield from _check_client_certificates(sources, has_authority=tls.get("client_ca") is not None)
    yield from _check_workers(
        _as_mapping(root.get("server")).get("workers"), _as_mapping(root.get("broker")).get("url")
    )
    yield from _check_admin(_as_mapping(root.get("server")))
    yield from _check_development(_as_mapping(root.get("server")))
    skeletons: dict[str, str] = {}
    for name, value in _as_mapping(root.get("channels")).items():
        channel = _as_mapping(value)
        path = ("channels", name)
        yield from _check_routes(name, channel, sources)
        yield from _check_access(name, channel.get("access"), auth)
        yield from _check_credentials(channel.get("cors"), (*path, "cors", "origins"), credentials)
        yield from _check_conflate(channel, path)
        if channel.get("critical") in (True, "true") and channel.get("stale_after") is None:
            yield ConfigIssue(
                (*path, "critical"), "does nothing without stale_after, which says when it is stale"
            )
        template = _parse_template(name)
        if template is not None:
            other = skeletons.setdefault(template.skeleton, name)
            if other != name:
                yield ConfigIssue(
                    path, f"takes the same names as {other!r}; remove one of them", is_on_key=True
                )


def _check_workers(workers: Any, url: Any) -> Iterator[ConfigIssue]:
    if workers not in (None, 1, "1") and url in (None, "memory://"):
        yield ConfigIssue(
            ("server", "workers"),
            "workers share their events through the log, and memory:// is one process's own;"
            " set broker.url: sqlite:////var/lib/sse-gateway/log.db, or a redis:// URL",
        )


def _check_client_certificates(sources: dict[str, Any], *, has_authority: bool) -> Iterator[ConfigIssue]:
    for name, value in sources.items():
        verify = _as_mapping(_as_mapping(value).get("verify"))
        if verify.get("client_certificate") is not None and not has_authority:
            yield ConfigIssue(
                ("sources", name, "verify", "client_certificate"),
                "nobody is asked for a certificate; set server.tls.client_ca to the PEM file of the authority"
                " that signs the senders'",
                is_on_key=True,
            )


def _check_development(server: dict[str, Any]) -> Iterator[ConfigIssue]:
    is_open = server.get("admin_token") is None and server.get("admin_open") in (True, "true")
    if is_open and server.get("development") in (True, "true"):
        yield ConfigIssue(
            ("server", "development"),
            "would let whoever reaches the admin port read every channel and send events; with admin_open it"
            ' needs admin_token: "${ADMIN_TOKEN}", or false',
        )


def _check_admin(server: dict[str, Any]) -> Iterator[ConfigIssue]:
    if server.get("admin_token") is not None or server.get("admin_open") in (True, "true"):
        return
    try:
        is_private = server.get("admin") is None or parse_listen_address(server["admin"]).is_loopback
    except ValueError:
        return  # the model tells it
    if not is_private:
        yield ConfigIssue(
            ("server", "admin"),
            "would show metrics and status to whoever reaches it; listen on 127.0.0.1, or set"
            ' admin_token: "${ADMIN_TOKEN}", or admin_open: true where the network keeps strangers away',
        )


_PLACEHOLDERS_BY_SOURCE_TYPE = {
    "redis-pubsub": ("topic",),
    "redis-stream": ("topic", "id", "fields.…"),
    "webhook": ("topic", "key", "partition", "offset", "headers.…", "ce.…"),
    "kafka": ("topic", "key", "partition", "offset", "headers.…"),
}
"""What expressions may name, by type of source; and JSON pointers everywhere."""


def _check_sources(sources: dict[str, Any]) -> Iterator[ConfigIssue]:
    for name, value in sources.items():
        source = _as_mapping(value)
        kind = source.get("type")
        for key, text in _as_mapping(source.get("event")).items():
            yield from _check_placeholders(text, kind, ("sources", name, "event", key))
        yield from _check_placeholders(source.get("topic"), kind, ("sources", name, "topic"))


def _check_placeholders(text: Any, kind: Any, path: tuple[str | int, ...]) -> Iterator[ConfigIssue]:
    """Check an expression's names against what that type of source gives."""
    known = _PLACEHOLDERS_BY_SOURCE_TYPE.get(kind) if isinstance(kind, str) else None
    try:
        names = Expression(text).placeholder_names if isinstance(text, str) and known else ()
    except ValueError:
        return  # the model tells it
    for place in names:
        group, dot, _ = place.partition(".")
        if (f"{group}.…" if dot else place) not in (known or ()):
            listed = ", ".join(f"{{{each}}}" for each in known or ())
            yield ConfigIssue(
                path, f"a {kind} source has no {{{place}}}; it has {listed} and {{/json/pointer}}"
            )


def _check_routes(name: str, channel: dict[str, Any], sources: dict[str, Any]) -> Iterator[ConfigIssue]:
    fields = set(field_names(name))
    for index, item in enumerate(_as_list(channel.get("from"))):
        route = _as_mapping(item)
        path = ("channels", name, "from", index)
        source, topic = route.get("source"), route.get("topic")
        if isinstance(source, str) and source not in sources:
            yield ConfigIssue(
                (*path, "source"), f"no source is named {source!r}; {suggest_nearest(source, sources)}"
            )
        template = _parse_template(topic, glob=True)
        if template is None:
            continue
        given = set(_as_mapping(route.get("fields")))
        for field, text in _as_mapping(route.get("fields")).items():
            kind = _as_mapping(sources.get(source)).get("type") if isinstance(source, str) else None
            yield from _check_placeholders(text, kind, (*path, "fields", field))
        for field in sorted(given - fields):
            yield ConfigIssue(
                (*path, "fields", field), f"the channel {name!r} has no field {{{field}}}", is_on_key=True
            )
        for field in sorted(given.intersection(template.fields)):
            yield ConfigIssue(
                (*path, "fields", field),
                f"the topic captures {{{field}}} already; give it once",
                is_on_key=True,
            )
        missing = sorted(fields.difference(template.fields, given))
        if missing:
            yield ConfigIssue(
                (*path, "topic"),
                f"does not capture {{{'}, {'.join(missing)}}} of the channel {name!r}; "
                f"put it where the topic holds it, such as {_example_topic(name)},"
                f" or name it under fields: {{{missing[0]}: '{{key}}'}}",
            )
        for extra in sorted(set(template.fields) - fields):
            yield ConfigIssue(
                (*path, "topic"),
                f"captures {{{extra}}}, which the channel {name!r} does not have; write '*' for any text",
            )


def _check_access(name: str, access: Any, auth: dict[str, Any]) -> Iterator[ConfigIssue]:
    path = ("channels", name, "access")
    if (access == "token" or isinstance(access, dict)) and auth.get("jwt") is None:
        yield ConfigIssue(path, "needs tokens, and there is no auth.jwt section that says how to check them")
    if access == "forward" and auth.get("forward") is None:
        yield ConfigIssue(
            path, "asks an endpoint of yours, and there is no auth.forward section that names it"
        )
    for claim, value in _as_mapping(_as_mapping(access).get("claims")).items():
        for field in field_names(value) if isinstance(value, str) else ():
            if field not in field_names(name):
                known = ", ".join(f"{{{known}}}" for known in field_names(name)) or "none"
                yield ConfigIssue(
                    (*path, "claims", claim), f"the channel has no field {{{field}}}; its fields: {known}"
                )


def _check_conflate(channel: dict[str, Any], path: tuple[str | int, ...]) -> Iterator[ConfigIssue]:
    text = _as_mapping(channel.get("slow_client")).get("conflate")
    try:
        names = Expression(text).placeholder_names if isinstance(text, str) else ()
    except ValueError:
        return  # the model tells it
    where = (*path, "slow_client", "conflate")
    for place in names:
        yield ConfigIssue(
            where, f"a key has no {{{place}}}; it is made of JSON pointers into the payload, as {{/symbol}}"
        )
    if isinstance(text, str) and channel.get("payload") == "text":
        yield ConfigIssue(where, "a key is found in JSON, and this channel's payload is text")


def _check_credentials(cors: Any, path: tuple[str, ...], credentials: bool) -> Iterator[ConfigIssue]:
    # Browsers refuse a literal '*' with credentials; echoing every origin would hand each site the
    # user's cookies.
    if credentials and "*" in _as_list(_as_mapping(cors).get("origins")):
        yield ConfigIssue(
            path, "'*' with cors.credentials would let every site read as your users; list the origins"
        )


def _example_topic(name: str) -> str:
    return name.replace(".", ":")


def _as_mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _parse_template(text: Any, *, glob: bool = False) -> Template | None:
    try:
        return Template(text, glob=glob) if isinstance(text, str) else None
    except ValueError:
        return None
