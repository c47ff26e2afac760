"""Rules across the sections of a configuration.

They read the raw data and not the model, because the model of a file with one mistake does not
exist, and every mistake has to be told at once. So each check steps over whatever has the wrong shape;
the model reports that.
"""

from collections.abc import Iterator
from typing import Any

from gateway.config.faults import Fault, nearest
from gateway.config.template import Template, fields_of


def check(data: Any) -> Iterator[Fault]:
    """Yield every fault that no single section can see."""
    root = _mapping(data)
    sources = _mapping(root.get("sources"))
    has_jwt = "jwt" in _mapping(root.get("auth"))
    credentials = _mapping(root.get("cors")).get("credentials") in (True, "true")
    yield from _credentials(root.get("cors"), ("cors", "origins"), credentials)
    skeletons: dict[str, str] = {}
    for name, value in _mapping(root.get("channels")).items():
        channel = _mapping(value)
        path = ("channels", name)
        yield from _routes(name, channel, sources)
        yield from _access(name, channel.get("access"), has_jwt)
        yield from _credentials(channel.get("cors"), (*path, "cors", "origins"), credentials)
        template = _template(name)
        if template is not None:
            other = skeletons.setdefault(template.skeleton, name)
            if other != name:
                yield Fault(path, f"takes the same names as {other!r}; remove one of them", on_key=True)


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
        missing = sorted(fields.difference(template.fields))
        if missing:
            yield Fault(
                (*path, "topic"),
                f"does not capture {{{'}, {'.join(missing)}}} of the channel {name!r}; "
                f"put it where the topic holds it, such as {_example(name)}",
            )
        for extra in sorted(set(template.fields) - fields):
            yield Fault(
                (*path, "topic"),
                f"captures {{{extra}}}, which the channel {name!r} does not have; write '*' for any text",
            )


def _access(name: str, access: Any, has_jwt: bool) -> Iterator[Fault]:
    path = ("channels", name, "access")
    if (access == "token" or isinstance(access, dict)) and not has_jwt:
        yield Fault(path, "needs tokens, and there is no auth.jwt section that says how to check them")
    for claim, value in _mapping(_mapping(access).get("claims")).items():
        for field in fields_of(value) if isinstance(value, str) else ():
            if field not in fields_of(name):
                known = ", ".join(f"{{{known}}}" for known in fields_of(name)) or "none"
                yield Fault(
                    (*path, "claims", claim), f"the channel has no field {{{field}}}; its fields: {known}"
                )


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
