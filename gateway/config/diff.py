"""What a reload from one configuration to another does. Pure; `gateway.server.daemon.Daemon.commit` does it.

No value is shown that may be a secret: a change of one says that it changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, WithJsonSchema
from pydantic.fields import FieldInfo

from gateway.config.catalog import Catalog, form_of
from gateway.config.loader.faults import SECRET_KEYS, Fault, Path
from gateway.config.model.config import Ack, Channel, Config
from gateway.config.model.sources import RedisPubSub, Source, Webhook
from gateway.config.template import Template

NEEDS_RESTART: tuple[Path, ...] = (
    ("server", "listen"),
    ("server", "admin"),
    ("server", "base_path"),
    ("server", "health_on_public"),
    ("server", "workers"),
    ("server", "development"),
    ("broker",),
)
"""What a reload cannot change, beside whether the public port speaks TLS, and the log's own section."""

RESTART = "needs a restart: a reload refuses the file"

ASKED = "streams that are asked already follow; others stay as they opened"

MAX_SHOWN = 60
"""Characters of a value that is shown."""

_UNITS = {"duration": "s", "rate": "/s", "size": "B"}

_FORM = ("payload", "format", "slow_client")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: where, from what to what, and what a reload does about it."""

    path: Path
    values: str
    effect: str

    @property
    def needs_restart(self) -> bool:
        """Whether a reload must refuse it."""
        return self.effect == RESTART

    @property
    def fault(self) -> Fault:
        """What is wrong with it, where a reload must refuse it."""
        return Fault(self.path, f"{self.values}: {self.effect}")

    def __str__(self) -> str:
        where = ".".join(str(part) for part in self.path)
        return f"{where}: {self.values}: {self.effect}" if self.effect else f"{where}: {self.values}"


def differences(old: Config, new: Config) -> list[Change]:
    """Return what differs, in the order of the model."""
    return [
        *_restarts(old, new),
        *_settings(old, new),
        *_ack(old, new),
        *_auth(old, new),
        *_sources(old, new),
        *_channels(old, new),
    ]


def restarts(old: Config, new: Config) -> list[Change]:
    """Return what a reload must refuse."""
    return list(_restarts(old, new))


def other_rules(old: Config, new: Config) -> frozenset[str]:
    """Return the channels (declared names) that are in both and have another ``access``."""
    return frozenset(
        name
        for name, channel in new.channels.items()
        if name in old.channels and old.channels[name].access != channel.access
    )


def other_origins(old: Config, new: Config) -> bool:
    """Tell whether a list of origins differs, so that pages with open streams must be looked at."""
    return old.cors.origins != new.cors.origins or any(
        name in old.channels and old.channels[name].cors != channel.cors
        for name, channel in new.channels.items()
    )


def _restarts(old: Config, new: Config) -> Iterator[Change]:
    for path in NEEDS_RESTART:
        before, after = _at(old, path), _at(new, path)
        if isinstance(before, BaseModel):
            for key, values in _fields(before, after):
                yield Change((*path, *key), values, RESTART)
        elif before != after:
            yield Change(path, _values(path, before, after), RESTART)
    if (old.server.tls is None) != (new.server.tls is None):
        yield Change(("server", "tls"), "added" if old.server.tls is None else "removed", RESTART)
    for key, values in _fields(old.log, new.log):
        yield Change(("log", *key), values, RESTART)


def _settings(old: Config, new: Config) -> Iterator[Change]:
    """Yield the differences of the sections that are settings and nothing more."""
    for section in ("server", "check", "cors", "timeouts", "limits"):
        for key, values in _fields(getattr(old, section), getattr(new, section)):
            path = (section, *key)
            if any(path[: len(known)] == known for known in NEEDS_RESTART):
                continue
            if path == ("server", "tls"):
                continue  # told above
            yield Change(path, values, _effect(path))


def _ack(old: Config, new: Config) -> Iterator[Change]:
    if isinstance(old.ack, Ack) and isinstance(new.ack, Ack):
        for key, values in _fields(old.ack, new.ack):
            yield Change(("ack", *key), values, ASKED)
    elif old.ack != new.ack:
        effect = "nobody is asked any more" if new.ack == "none" else "for streams that open from now on"
        yield Change(("ack",), "switched off" if new.ack == "none" else "switched on", effect)


def _effect(path: Path) -> str:
    if path == ("cors", "origins"):
        return "streams of pages that may not read any more close"
    if path == ("timeouts", "connection"):
        return "for streams that open from now on"
    if path[0] == "limits" and str(path[1]).startswith("connections"):
        return "streams that are open stay"
    return ""


def _auth(old: Config, new: Config) -> Iterator[Change]:
    if old.auth == new.auth:
        return
    before = {} if old.auth is None else dict(old.auth)
    after = {} if new.auth is None else dict(new.auth)
    for key in {**before, **after}:
        was, now = before.get(key), after.get(key)
        if was == now:
            continue
        effect = ""
        if key == "jwt" and not all(jwt in (now or ()) for jwt in was or ()):
            effect = "streams that a token or ticket opened close, and are decided about anew"
        elif key == "forward" and was is not None:
            effect = "streams that it or a ticket opened close, and are decided about anew"
        yield Change(("auth", key), _presence(was, now), effect)


def _sources(old: Config, new: Config) -> Iterator[Change]:
    for name in {**old.sources, **new.sources}:
        was, now = old.sources.get(name), new.sources.get(name)
        path: Path = ("sources", name)
        if was is None or now is None:
            yield Change(path, _presence(was, now), "starts" if was is None else "stops")
        elif was.type != now.type:
            yield Change((*path, "type"), _values((*path, "type"), was.type, now.type), "starts anew")
        else:
            restarts = was.connection != now.connection and not isinstance(now, Webhook)
            for key, values in _fields(was, now):
                own = key[0] in now.connection
                yield Change((*path, *key), values, _again(now) if own and restarts else "")
            if not restarts and (feeds := _feeds(old, name)) != _feeds(new, name):
                added, gone = sorted(_feeds(new, name) - feeds), sorted(feeds - _feeds(new, name))
                told = [f"+{topic}" for topic in added] + [f"-{topic}" for topic in gone]
                yield Change((*path, "topics"), " ".join(told), _retopic(now))


def _again(source: Source) -> str:
    if isinstance(source, RedisPubSub):
        return "connects again; its channels are told a gap if no other node reads on"
    return "connects again, and goes on where it was"


def _retopic(source: Source) -> str:
    if isinstance(source, RedisPubSub):
        return "subscribes and unsubscribes; the connection stays"
    return "" if isinstance(source, Webhook) else "connects again, and goes on where it was"


def _feeds(config: Config, source: str) -> frozenset[str]:
    return frozenset(
        route.topic
        for channel in config.channels.values()
        for route in channel.from_
        if route.source == source
    )


def _channels(old: Config, new: Config) -> Iterator[Change]:
    for name in {**old.channels, **new.channels}:
        was, now = old.channels.get(name), new.channels.get(name)
        path: Path = ("channels", name)
        if was is None:
            yield Change(path, "added", _shadows(old, new, name))
        elif now is None:
            yield Change(path, "removed", f"its streams close; whoever comes back gets {_left(new, name)}")
        else:
            closes = form_of(name, was) != form_of(name, now)
            for key, values in _fields(was, now):
                yield Change(
                    (*path, *key), values, _of_channel(str(key[0]), closes and _is_form(key, was, now))
                )
    if list(old.channels) != [name for name in new.channels if name in old.channels]:
        moved = [name for name in new.channels if name in old.channels and not Template(name).is_exact]
        if moved != [name for name in old.channels if name in moved]:
            yield Change(("channels",), "templates in another order", "streams of names that move close")


def _shadows(old: Config, new: Config, name: str) -> str:
    """Return what becomes of streams that a new channel takes over from a template."""
    if not Template(name).is_exact:
        names = list(new.channels)
        behind = [each for each in _templates(new, name) if names.index(each) > names.index(name)]
        known = [each for each in behind if each in old.channels]
        return f"streams of {known[0]} whose names it takes over close and may come back" if known else ""
    match = Catalog(old.channels).resolve(name)
    if match is None:
        return ""
    return f"streams of this name, until now one of {match.declared.name}, close and may come back"


def _left(new: Config, name: str) -> str:
    """Return what is there under the names of a channel that is removed."""
    if not Template(name).is_exact:
        others = _templates(new, name)
        return f"{others[0]} where that has the name, else 404" if others else "404"
    match = Catalog(new.channels).resolve(name)
    return "404" if match is None else f"one of {match.declared.name}"


def _templates(config: Config, name: str) -> list[str]:
    """Return the other templates that may have names in common with one."""
    template = Template(name)
    others = [each for each in config.channels if each != name and not Template(each).is_exact]
    return [each for each in others if template.may_share(Template(each))]


def _of_channel(key: str, closes: bool) -> str:
    if closes:
        return "its streams close, and may come back at once"
    return {
        "access": "streams that the rule does not let in close",
        "cors": "streams of pages that may not read any more close",
        "history": "for events from now on",
        "ack": ASKED,
    }.get(key, "")


def _is_form(key: Path, was: Channel, now: Channel) -> bool:
    if key[0] == "history":
        return isinstance(was.history, str) != isinstance(now.history, str)
    return key[0] in _FORM


def _fields(was: BaseModel, now: BaseModel) -> Iterator[tuple[Path, str]]:
    """Yield the keys of a section that differ, as the file spells them, and their values."""
    for name, field in type(now).model_fields.items():
        before, after = getattr(was, name), getattr(now, name)
        key = field.alias or name
        if before == after:
            continue
        if isinstance(before, BaseModel) and type(before) is type(after):
            for below, values in _fields(before, after):
                yield (key, *below), values
        else:
            yield (key,), _values((key,), before, after, _title(field))


def _title(field: FieldInfo) -> str:
    """Return what a key's values are called in the schema: a duration, a size."""
    # Of `Rate | None` the metadata lies inside the union.
    inner = [each for part in get_args(field.annotation) for each in getattr(part, "__metadata__", ())]
    for each in (*field.metadata, *inner):
        if isinstance(each, WithJsonSchema) and each.json_schema is not None:
            return str(each.json_schema.get("title", ""))
    return ""


def _values(path: Path, before: Any, after: Any, title: str = "") -> str:
    is_secret = any(part in SECRET_KEYS for part in path)
    if is_secret or not all(_is_plain(value) for value in (before, after)):
        return _presence(before, after)
    return f"{_shown(before, title)} to {_shown(after, title)}"


def _presence(before: object, after: object) -> str:
    return "added" if before is None else "removed" if after is None else "changed"


def _is_plain(value: Any) -> bool:
    if isinstance(value, SecretStr):
        return False
    if isinstance(value, list):
        return all(_is_plain(each) for each in value) and len(_shown(value)) <= MAX_SHOWN
    return not isinstance(value, (BaseModel, dict))


def _shown(value: Any, title: str = "") -> str:
    if value is None:
        return "nothing"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.12g}{_UNITS.get(title, '')}"
    if isinstance(value, list):
        return "[" + ", ".join(str(each) for each in value) + "]"
    return str(value)


def _at(config: Config, path: Path) -> Any:
    found: Any = config
    for part in path:
        found = getattr(found, str(part))
    return found
