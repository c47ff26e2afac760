"""Rules across the sections of a configuration.

They read the raw data and not the model, because the model of a file with one mistake does not
exist, and every mistake has to be told at once. So each check steps over whatever has the wrong shape;
the model reports that.
"""

from collections.abc import Iterator
from typing import Any

from gateway.config.loader.faults import Fault, nearest
from gateway.config.model.units import parse_place
from gateway.config.placeholders import Expression
from gateway.config.template import Template, fields_of
from gateway.config.validation.relations import relations


def check(data: Any) -> Iterator[Fault]:
    """Yield every fault that no single section can see."""
    root = _mapping(data)
    sources = _mapping(root.get("sources"))
    auth = _mapping(root.get("auth"))
    credentials = _mapping(root.get("cors")).get("credentials") in (True, "true")
    yield from relations(root)
    yield from _credentials(root.get("cors"), ("cors", "origins"), credentials)
    yield from _sources(sources)
    tls = _mapping(_mapping(root.get("server")).get("tls"))
    yield from _client_certificates(sources, has_authority=tls.get("client_ca") is not None)
    yield from _workers(_mapping(root.get("server")).get("workers"), _mapping(root.get("broker")).get("url"))
    yield from _admin(_mapping(root.get("server")))
    yield from _development(_mapping(root.get("server")))
    skeletons: dict[str, str] = {}
    for name, value in _mapping(root.get("channels")).items():
        channel = _mapping(value)
        path = ("channels", name)
        yield from _routes(name, channel, sources)
        yield from _access(name, channel.get("access"), auth)
        yield from _credentials(channel.get("cors"), (*path, "cors", "origins"), credentials)
        yield from _conflate(channel, path)
        if channel.get("critical") in (True, "true") and channel.get("stale_after") is None:
            yield Fault((*path, "critical"), "does nothing without stale_after, which says when it is stale")
        template = _template(name)
        if template is not None:
            other = skeletons.setdefault(template.skeleton, name)
            if other != name:
                yield Fault(path, f"takes the same names as {other!r}; remove one of them", on_key=True)


def _workers(workers: Any, url: Any) -> Iterator[Fault]:
    if workers not in (None, 1, "1") and url in (None, "memory://"):
        yield Fault(
            ("server", "workers"),
            "workers share their events through the log, and memory:// is one process's own;"
            " set broker.url: sqlite:////var/lib/sse-gateway/log.db, or a redis:// URL",
        )


def _client_certificates(sources: dict[str, Any], *, has_authority: bool) -> Iterator[Fault]:
    for name, value in sources.items():
        verify = _mapping(_mapping(value).get("verify"))
        if verify.get("client_certificate") is not None and not has_authority:
            yield Fault(
                ("sources", name, "verify", "client_certificate"),
                "nobody is asked for a certificate; set server.tls.client_ca to the PEM file of the authority"
                " that signs the senders'",
                on_key=True,
            )


def _development(server: dict[str, Any]) -> Iterator[Fault]:
    is_open = server.get("admin_token") is None and server.get("admin_open") in (True, "true")
    if is_open and server.get("development") in (True, "true"):
        yield Fault(
            ("server", "development"),
            "would let whoever reaches the admin port read every channel and send events; with admin_open it"
            ' needs admin_token: "${ADMIN_TOKEN}", or false',
        )


def _admin(server: dict[str, Any]) -> Iterator[Fault]:
    if server.get("admin_token") is not None or server.get("admin_open") in (True, "true"):
        return
    try:
        is_private = server.get("admin") is None or parse_place(server["admin"]).is_loopback
    except ValueError:
        return  # the model tells it
    if not is_private:
        yield Fault(
            ("server", "admin"),
            "would show metrics and status to whoever reaches it; listen on 127.0.0.1, or set"
            ' admin_token: "${ADMIN_TOKEN}", or admin_open: true where the network keeps strangers away',
        )


_PLACES = {
    "redis-pubsub": ("topic",),
    "redis-stream": ("topic", "id", "fields.…"),
    "webhook": ("topic", "key", "partition", "offset", "headers.…", "ce.…"),
    "kafka": ("topic", "key", "partition", "offset", "headers.…"),
}
"""What expressions may name, by type of source; and JSON pointers everywhere."""


def _sources(sources: dict[str, Any]) -> Iterator[Fault]:
    for name, value in sources.items():
        source = _mapping(value)
        kind = source.get("type")
        for key, text in _mapping(source.get("event")).items():
            yield from _places(text, kind, ("sources", name, "event", key))
        yield from _places(source.get("topic"), kind, ("sources", name, "topic"))


def _places(text: Any, kind: Any, path: tuple[str | int, ...]) -> Iterator[Fault]:
    """Check an expression's names against what that type of source gives."""
    known = _PLACES.get(kind) if isinstance(kind, str) else None
    try:
        names = Expression(text).names if isinstance(text, str) and known else ()
    except ValueError:
        return  # the model tells it
    for place in names:
        group, dot, _ = place.partition(".")
        if (f"{group}.…" if dot else place) not in (known or ()):
            listed = ", ".join(f"{{{each}}}" for each in known or ())
            yield Fault(path, f"a {kind} source has no {{{place}}}; it has {listed} and {{/json/pointer}}")


def _routes(name: str, channel: dict[str, Any], sources: dict[str, Any]) -> Iterator[Fault]:
    fields = set(fields_of(name))
    for index, item in enumerate(_list(channel.get("from"))):
        route = _mapping(item)
        path = ("channels", name, "from", index)
        source, topic = route.get("source"), route.get("topic")
        if isinstance(source, str) and source not in sources:
            yield Fault((*path, "source"), f"no source is named {source!r}; {nearest(source, sources)}")
        template = _template(topic, glob=True)
        if template is None:
            continue
        given = set(_mapping(route.get("fields")))
        for field, text in _mapping(route.get("fields")).items():
            kind = _mapping(sources.get(source)).get("type") if isinstance(source, str) else None
            yield from _places(text, kind, (*path, "fields", field))
        for field in sorted(given - fields):
            yield Fault(
                (*path, "fields", field), f"the channel {name!r} has no field {{{field}}}", on_key=True
            )
        for field in sorted(given.intersection(template.fields)):
            yield Fault(
                (*path, "fields", field), f"the topic captures {{{field}}} already; give it once", on_key=True
            )
        missing = sorted(fields.difference(template.fields, given))
        if missing:
            yield Fault(
                (*path, "topic"),
                f"does not capture {{{'}, {'.join(missing)}}} of the channel {name!r}; "
                f"put it where the topic holds it, such as {_example(name)},"
                f" or name it under fields: {{{missing[0]}: '{{key}}'}}",
            )
        for extra in sorted(set(template.fields) - fields):
            yield Fault(
                (*path, "topic"),
                f"captures {{{extra}}}, which the channel {name!r} does not have; write '*' for any text",
            )


def _access(name: str, access: Any, auth: dict[str, Any]) -> Iterator[Fault]:
    path = ("channels", name, "access")
    if (access == "token" or isinstance(access, dict)) and auth.get("jwt") is None:
        yield Fault(path, "needs tokens, and there is no auth.jwt section that says how to check them")
    if access == "forward" and auth.get("forward") is None:
        yield Fault(path, "asks an endpoint of yours, and there is no auth.forward section that names it")
    for claim, value in _mapping(_mapping(access).get("claims")).items():
        for field in fields_of(value) if isinstance(value, str) else ():
            if field not in fields_of(name):
                known = ", ".join(f"{{{known}}}" for known in fields_of(name)) or "none"
                yield Fault(
                    (*path, "claims", claim), f"the channel has no field {{{field}}}; its fields: {known}"
                )


def _conflate(channel: dict[str, Any], path: tuple[str | int, ...]) -> Iterator[Fault]:
    text = _mapping(channel.get("slow_client")).get("conflate")
    try:
        names = Expression(text).names if isinstance(text, str) else ()
    except ValueError:
        return  # the model tells it
    where = (*path, "slow_client", "conflate")
    for place in names:
        yield Fault(
            where, f"a key has no {{{place}}}; it is made of JSON pointers into the payload, as {{/symbol}}"
        )
    if isinstance(text, str) and channel.get("payload") == "text":
        yield Fault(where, "a key is found in JSON, and this channel's payload is text")


def _credentials(cors: Any, path: tuple[str, ...], credentials: bool) -> Iterator[Fault]:
    # Browsers refuse a literal '*' with credentials; echoing every origin would hand each site the
    # user's cookies.
    if credentials and "*" in _list(_mapping(cors).get("origins")):
        yield Fault(
            path, "'*' with cors.credentials would let every site read as your users; list the origins"
        )


def _example(name: str) -> str:
    return name.replace(".", ":")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _template(text: Any, *, glob: bool = False) -> Template | None:
    try:
        return Template(text, glob=glob) if isinstance(text, str) else None
    except ValueError:
        return None
