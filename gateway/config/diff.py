"""What a reload from one configuration to another does. Pure; `gateway.server.daemon.Daemon.commit` does it.

No value is shown that may be a secret: a change of one says that it changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, WithJsonSchema
from pydantic.fields import FieldInfo

from gateway.config.channel_catalog import ChannelCatalog, stream_schema_for
from gateway.config.loader.issues import SECRET_KEYS, ConfigIssue, ConfigPath
from gateway.config.model.config import AckConfig, ChannelConfig, Config
from gateway.config.model.sources import RedisPubSubConfig, SourceConfig, WebhookConfig
from gateway.config.template import Template

NEEDS_RESTART: tuple[ConfigPath, ...] = (
    ("server", "listen"),
    ("server", "admin"),
    ("server", "base_path"),
    ("server", "health_on_public"),
    ("server", "workers"),
    ("server", "development"),
    ("broker",),
)
"""What a reload cannot change, beside whether the public port speaks TLS, and the log's own section."""

RESTART_EFFECT = "needs a restart: a reload refuses the file"

ACK_EFFECT = "streams that are asked already follow; others stay as they opened"

MAX_VALUE_CHARS = 60
"""Characters of a value that is shown."""

_UNIT_SUFFIXES = {"duration": "s", "rate": "/s", "size": "B"}

_STREAM_SCHEMA_KEYS = ("payload", "format", "slow_client")


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One difference: where, from what to what, and what a reload does about it."""

    path: ConfigPath
    description: str
    effect: str

    @property
    def needs_restart(self) -> bool:
        """Whether a reload must refuse it."""
        return self.effect == RESTART_EFFECT

    @property
    def issue(self) -> ConfigIssue:
        """What is wrong with it, where a reload must refuse it."""
        return ConfigIssue(self.path, f"{self.description}: {self.effect}")

    def __str__(self) -> str:
        where = ".".join(str(part) for part in self.path)
        return (
            f"{where}: {self.description}: {self.effect}" if self.effect else f"{where}: {self.description}"
        )


def diff_configs(old: Config, new: Config) -> list[ConfigChange]:
    """Return what differs, in the order of the model."""
    return [
        *_restart_changes(old, new),
        *_setting_changes(old, new),
        *_ack_changes(old, new),
        *_auth_changes(old, new),
        *_source_changes(old, new),
        *_channel_changes(old, new),
    ]


def changes_needing_restart(old: Config, new: Config) -> list[ConfigChange]:
    """Return what a reload must refuse."""
    return list(_restart_changes(old, new))


def channels_with_changed_access(old: Config, new: Config) -> frozenset[str]:
    """Return the channels (declared names) that are in both and have another ``access``."""
    return frozenset(
        name
        for name, channel in new.channels.items()
        if name in old.channels and old.channels[name].access != channel.access
    )


def have_origins_changed(old: Config, new: Config) -> bool:
    """Tell whether a list of origins differs, so that pages with open streams must be looked at."""
    return old.cors.origins != new.cors.origins or any(
        name in old.channels and old.channels[name].cors != channel.cors
        for name, channel in new.channels.items()
    )


def _restart_changes(old: Config, new: Config) -> Iterator[ConfigChange]:
    for path in NEEDS_RESTART:
        before, after = _value_at(old, path), _value_at(new, path)
        if isinstance(before, BaseModel):
            for key, values in _changed_keys(before, after):
                yield ConfigChange((*path, *key), values, RESTART_EFFECT)
        elif before != after:
            yield ConfigChange(path, _describe_change(path, before, after), RESTART_EFFECT)
    if (old.server.tls is None) != (new.server.tls is None):
        yield ConfigChange(
            ("server", "tls"), "added" if old.server.tls is None else "removed", RESTART_EFFECT
        )
    for key, values in _changed_keys(old.logging, new.logging):
        yield ConfigChange(("logging", *key), values, RESTART_EFFECT)


def _setting_changes(old: Config, new: Config) -> Iterator[ConfigChange]:
    """Yield the differences of the sections that are settings and nothing more."""
    for section in ("server", "check", "cors", "timeouts", "limits"):
        for key, values in _changed_keys(getattr(old, section), getattr(new, section)):
            path = (section, *key)
            if any(path[: len(known)] == known for known in NEEDS_RESTART):
                continue
            if path == ("server", "tls"):
                continue  # told above
            yield ConfigChange(path, values, _setting_effect(path))


def _ack_changes(old: Config, new: Config) -> Iterator[ConfigChange]:
    if isinstance(old.ack, AckConfig) and isinstance(new.ack, AckConfig):
        for key, values in _changed_keys(old.ack, new.ack):
            yield ConfigChange(("ack", *key), values, ACK_EFFECT)
    elif old.ack != new.ack:
        effect = "nobody is asked any more" if new.ack == "none" else "for streams that open from now on"
        yield ConfigChange(("ack",), "switched off" if new.ack == "none" else "switched on", effect)


def _setting_effect(path: ConfigPath) -> str:
    if path == ("cors", "origins"):
        return "streams of pages that may not read any more close"
    if path == ("timeouts", "connection"):
        return "for streams that open from now on"
    if path[0] == "limits" and str(path[1]).startswith("connections"):
        return "streams that are open stay"
    return ""


def _auth_changes(old: Config, new: Config) -> Iterator[ConfigChange]:
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
        yield ConfigChange(("auth", key), _describe_presence(was, now), effect)


def _source_changes(old: Config, new: Config) -> Iterator[ConfigChange]:
    for name in {**old.sources, **new.sources}:
        was, now = old.sources.get(name), new.sources.get(name)
        path: ConfigPath = ("sources", name)
        if was is None or now is None:
            yield ConfigChange(path, _describe_presence(was, now), "starts" if was is None else "stops")
        elif was.type != now.type:
            yield ConfigChange(
                (*path, "type"), _describe_change((*path, "type"), was.type, now.type), "starts anew"
            )
        else:
            restarts = was.connection_settings != now.connection_settings and not isinstance(
                now, WebhookConfig
            )
            for key, values in _changed_keys(was, now):
                own = key[0] in now.connection_settings
                yield ConfigChange((*path, *key), values, _reconnect_effect(now) if own and restarts else "")
            if not restarts and (feeds := _routed_topics(old, name)) != _routed_topics(new, name):
                added, gone = (
                    sorted(_routed_topics(new, name) - feeds),
                    sorted(feeds - _routed_topics(new, name)),
                )
                told = [f"+{topic}" for topic in added] + [f"-{topic}" for topic in gone]
                yield ConfigChange((*path, "topics"), " ".join(told), _topics_effect(now))


def _reconnect_effect(source: SourceConfig) -> str:
    if isinstance(source, RedisPubSubConfig):
        return "connects again; its channels are told a gap if no other node reads on"
    return "connects again, and goes on where it was"


def _topics_effect(source: SourceConfig) -> str:
    if isinstance(source, RedisPubSubConfig):
        return "subscribes and unsubscribes; the connection stays"
    return "" if isinstance(source, WebhookConfig) else "connects again, and goes on where it was"


def _routed_topics(config: Config, source: str) -> frozenset[str]:
    return frozenset(
        route.topic
        for channel in config.channels.values()
        for route in channel.from_
        if route.source == source
    )


def _channel_changes(old: Config, new: Config) -> Iterator[ConfigChange]:
    for name in {**old.channels, **new.channels}:
        was, now = old.channels.get(name), new.channels.get(name)
        path: ConfigPath = ("channels", name)
        if was is None:
            yield ConfigChange(path, "added", _added_channel_effect(old, new, name))
        elif now is None:
            yield ConfigChange(
                path,
                "removed",
                f"its streams close; whoever comes back gets {_describe_replacement(new, name)}",
            )
        else:
            closes = stream_schema_for(name, was) != stream_schema_for(name, now)
            for key, values in _changed_keys(was, now):
                yield ConfigChange(
                    (*path, *key),
                    values,
                    _channel_setting_effect(str(key[0]), closes and _changes_stream_schema(key, was, now)),
                )
    if list(old.channels) != [name for name in new.channels if name in old.channels]:
        moved = [name for name in new.channels if name in old.channels and not Template(name).is_exact]
        if moved != [name for name in old.channels if name in moved]:
            yield ConfigChange(
                ("channels",), "templates in another order", "streams of names that move close"
            )


def _added_channel_effect(old: Config, new: Config, name: str) -> str:
    """Return what becomes of streams that a new channel takes over from a template."""
    if not Template(name).is_exact:
        names = list(new.channels)
        behind = [each for each in _overlapping_templates(new, name) if names.index(each) > names.index(name)]
        known = [each for each in behind if each in old.channels]
        return f"streams of {known[0]} whose names it takes over close and may come back" if known else ""
    match = ChannelCatalog(old.channels).resolve(name)
    if match is None:
        return ""
    return f"streams of this name, until now one of {match.declared.name}, close and may come back"


def _describe_replacement(new: Config, name: str) -> str:
    """Return what is there under the names of a channel that is removed."""
    if not Template(name).is_exact:
        others = _overlapping_templates(new, name)
        return f"{others[0]} where that has the name, else 404" if others else "404"
    match = ChannelCatalog(new.channels).resolve(name)
    return "404" if match is None else f"one of {match.declared.name}"


def _overlapping_templates(config: Config, name: str) -> list[str]:
    """Return the other templates that may have names in common with one."""
    template = Template(name)
    others = [each for each in config.channels if each != name and not Template(each).is_exact]
    return [each for each in others if template.may_overlap(Template(each))]


def _channel_setting_effect(key: str, closes: bool) -> str:
    if closes:
        return "its streams close, and may come back at once"
    return {
        "access": "streams that the rule does not let in close",
        "cors": "streams of pages that may not read any more close",
        "history": "for events from now on",
        "ack": ACK_EFFECT,
    }.get(key, "")


def _changes_stream_schema(key: ConfigPath, was: ChannelConfig, now: ChannelConfig) -> bool:
    if key[0] == "history":
        return isinstance(was.history, str) != isinstance(now.history, str)
    return key[0] in _STREAM_SCHEMA_KEYS


def _changed_keys(was: BaseModel, now: BaseModel) -> Iterator[tuple[ConfigPath, str]]:
    """Yield the keys of a section that differ, as the file spells them, and their values."""
    for name, field in type(now).model_fields.items():
        before, after = getattr(was, name), getattr(now, name)
        key = field.alias or name
        if before == after:
            continue
        if isinstance(before, BaseModel) and type(before) is type(after):
            for below, values in _changed_keys(before, after):
                yield (key, *below), values
        else:
            yield (key,), _describe_change((key,), before, after, _schema_title(field))


def _schema_title(field: FieldInfo) -> str:
    """Return what a key's values are called in the schema: a duration, a size."""
    # Of `Rate | None` the metadata lies inside the union.
    inner = [each for part in get_args(field.annotation) for each in getattr(part, "__metadata__", ())]
    for each in (*field.metadata, *inner):
        if isinstance(each, WithJsonSchema) and each.json_schema is not None:
            return str(each.json_schema.get("title", ""))
    return ""


def _describe_change(path: ConfigPath, before: Any, after: Any, title: str = "") -> str:
    is_secret = any(part in SECRET_KEYS for part in path)
    if is_secret or not all(_is_displayable(value) for value in (before, after)):
        return _describe_presence(before, after)
    return f"{_format_value(before, title)} to {_format_value(after, title)}"


def _describe_presence(before: object, after: object) -> str:
    return "added" if before is None else "removed" if after is None else "changed"


def _is_displayable(value: Any) -> bool:
    if isinstance(value, SecretStr):
        return False
    if isinstance(value, list):
        return all(_is_displayable(each) for each in value) and len(_format_value(value)) <= MAX_VALUE_CHARS
    return not isinstance(value, (BaseModel, dict))


def _format_value(value: Any, title: str = "") -> str:
    if value is None:
        return "nothing"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.12g}{_UNIT_SUFFIXES.get(title, '')}"
    if isinstance(value, list):
        return "[" + ", ".join(str(each) for each in value) + "]"
    return str(value)


def _value_at(config: Config, path: ConfigPath) -> Any:
    found: Any = config
    for part in path:
        found = getattr(found, str(part))
    return found
