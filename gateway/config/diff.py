"""The differences between two configurations, each with what a reload does about it. Pure.

The effect of a setting is declared beside its field in the model (`gateway.config.model.section.Effect`).
Values that may be secret are never shown: such a change says only that the value changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, WithJsonSchema
from pydantic.fields import FieldInfo

from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.loader.issues import SECRET_KEYS, ConfigIssue, ConfigPath
from gateway.config.model.auth import AuthConfig
from gateway.config.model.config import Config
from gateway.config.model.section import NO_EFFECT, Effect, Section
from gateway.config.template import Template

MAX_VALUE_CHARS = 60
"""Characters of a value that is shown."""

_UNIT_SUFFIXES = {"duration": "s", "rate": "/s", "size": "B"}


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One difference: where, from what to what, and what a reload does about it."""

    path: ConfigPath
    description: str
    effect: Effect

    @property
    def needs_restart(self) -> bool:
        """Whether a reload must refuse it."""
        return self.effect.needs_restart

    @property
    def issue(self) -> ConfigIssue:
        """The error of a reload that must refuse it."""
        return ConfigIssue(self.path, f"{self.description}: {self.effect.text}")

    def __str__(self) -> str:
        where = ".".join(str(part) for part in self.path)
        return ": ".join(filter(None, (where, self.description, self.effect.text)))


def diff_configs(old: Config, new: Config) -> list[ConfigChange]:
    """Return what differs, in the order of the model."""
    changes: list[ConfigChange] = []
    for name in Config.model_fields:
        if name == "auth":
            changes += _auth_changes(old, new)
        elif name == "sources":
            changes += _source_changes(old, new)
        elif name == "channels":
            changes += _channel_changes(old, new)
        else:
            changes += _field_changes(Config, name, old, new, ())
    return changes


def _section_changes(
    old: Section, new: Section, path: ConfigPath, inherited: Effect = NO_EFFECT
) -> Iterator[ConfigChange]:
    for name in type(new).model_fields:
        yield from _field_changes(type(new), name, old, new, path, inherited)


def _field_changes(
    section: type[Section],
    name: str,
    old: Section,
    new: Section,
    path: ConfigPath,
    inherited: Effect = NO_EFFECT,
) -> Iterator[ConfigChange]:
    """Yield what differs in a field, key by key where it holds a section in both."""
    before, after, field = getattr(old, name), getattr(new, name), section.model_fields[name]
    path, effect = (*path, field.alias or name), section.effect_of(name, inherited)
    if isinstance(before, Section) and type(before) is type(after):
        yield from _section_changes(before, after, path, effect)
    elif before != after:
        yield ConfigChange(path, _describe_change(path, before, after, _schema_title(field)), effect)


def _auth_changes(old: Config, new: Config) -> Iterator[ConfigChange]:
    for name in AuthConfig.model_fields:
        before, after = getattr(old.auth, name, None), getattr(new.auth, name, None)
        if before != after:
            effect = AuthConfig.effect_of(name)
            is_concerned = effect.condition(before, after)
            yield ConfigChange(
                ("auth", name), _describe_presence(before, after), effect if is_concerned else NO_EFFECT
            )


def _source_changes(old: Config, new: Config) -> Iterator[ConfigChange]:
    for name in {**old.sources, **new.sources}:
        before, after = old.sources.get(name), new.sources.get(name)
        path: ConfigPath = ("sources", name)
        if before is None or after is None:
            effect = Effect("starts" if before is None else "stops")
            yield ConfigChange(path, _describe_presence(before, after), effect)
        elif before.type != after.type:
            path = (*path, "type")
            description = _describe_change(path, before.type, after.type)
            yield ConfigChange(path, description, Effect("stops; another source starts in its place"))
        else:
            changes = list(_section_changes(before, after, path))
            yield from changes
            topics, wanted = _routed_topics(old, name), _routed_topics(new, name)
            reconnects = any(change.effect is after.reload_effect is not NO_EFFECT for change in changes)
            if topics != wanted and not reconnects:
                signed = [f"+{topic}" for topic in sorted(wanted - topics)]
                signed += [f"-{topic}" for topic in sorted(topics - wanted)]
                yield ConfigChange((*path, "topics"), " ".join(signed), after.topics_effect)


def _routed_topics(config: Config, source: str) -> frozenset[str]:
    return frozenset(
        route.topic
        for channel in config.channels.values()
        for route in channel.from_
        if route.source == source
    )


def _channel_changes(old: Config, new: Config) -> Iterator[ConfigChange]:
    for name in {**old.channels, **new.channels}:
        before, after = old.channels.get(name), new.channels.get(name)
        path: ConfigPath = ("channels", name)
        if before is None:
            yield ConfigChange(path, "added", Effect(_added_channel_effect(old, new, name)))
        elif after is None:
            effect = f"its streams close; clients that return get {_describe_replacement(new, name)}"
            yield ConfigChange(path, "removed", Effect(effect))
        else:
            yield from _section_changes(before, after, path)
    kept = [name for name in new.channels if name in old.channels and not Template(name).is_exact]
    if kept != [name for name in old.channels if name in kept]:
        moved = Effect("streams of names that another template takes over close")
        yield ConfigChange(("channels",), "templates in another order", moved)


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
    return "added" if before in (None, "none") else "removed" if after in (None, "none") else "changed"


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
