"""Finds declared channels by the names that clients and records use."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gateway.config.model.config import ChannelConfig, ConflateConfig
from gateway.config.placeholders import Expression
from gateway.config.template import MAX_NAME_CHARS, Template, invalid_channel_name_reason
from gateway.core.event import CONTROL_CHANNEL_PREFIX, Retention

MAX_CACHED_NAMES = 20_000
"""Resolved names of template channels that are cached."""


class StreamSchema(NamedTuple):
    """What affects a channel's streams: a reload keeps them while this stays the same object."""

    name: str
    payload: str
    format: str
    slow_client: str
    has_history: bool


@dataclass(frozen=True, slots=True)
class DeclaredChannel:
    """A channel as the file declares it; ``name`` may be a template."""

    name: str
    config: ChannelConfig
    stream_schema: StreamSchema
    template: Template
    retention: Retention
    conflation_key: Expression | None = None
    """The expression for an event's key, on channels that conflate by key."""


@dataclass(frozen=True, slots=True)
class ChannelMatch:
    """A channel with its full name."""

    name: str
    declared: DeclaredChannel

    @property
    def fields(self) -> Mapping[str, str]:
        """The values of the template's fields; not stored, as each stream holds its matches (idle)."""
        return (self.declared.template.match(self.name) or {}) if self.is_instance else {}

    @property
    def is_instance(self) -> bool:
        """Whether the channel is declared by a template."""
        return not self.declared.template.is_exact


def retention_for(spec: ChannelConfig) -> Retention:
    """Return the history that the broker keeps of a channel."""
    if isinstance(spec.history, str):
        return Retention(0)
    age = spec.history.age
    return Retention(spec.history.events, None if age is None else max(1, round(age * 1000)))


def stream_schema_for(name: str, spec: ChannelConfig) -> StreamSchema:
    """Return the stream schema of a channel."""
    return StreamSchema(
        name, spec.payload, spec.format, str(spec.slow_client), not isinstance(spec.history, str)
    )


def _conflation_key(spec: ChannelConfig) -> Expression | None:
    return Expression(spec.slow_client.conflate) if isinstance(spec.slow_client, ConflateConfig) else None


class ChannelCatalog:
    """All declared channels. A fixed name wins over a template, an earlier template over a later one."""

    def __init__(self, channels: Mapping[str, ChannelConfig]) -> None:
        self.declared: Mapping[str, DeclaredChannel] = {}
        self.reconfigure(channels)

    def reconfigure(self, channels: Mapping[str, ChannelConfig]) -> None:
        """Declare these channels, and no others. Equal stream schemas stay the same objects."""
        schemas = {name: each.stream_schema for name, each in self.declared.items()}
        declared = {}
        for name, spec in channels.items():
            schema = stream_schema_for(name, spec)
            if schemas.get(name) == schema:
                schema = schemas[name]
            declared[name] = DeclaredChannel(
                name, spec, schema, Template(name), retention_for(spec), _conflation_key(spec)
            )
        self.declared = declared
        self._fixed_channels = {
            name: ChannelMatch(name, declared)
            for name, declared in self.declared.items()
            if declared.template.is_exact
        }
        self._templates = [each for each in self.declared.values() if not each.template.is_exact]
        self._resolved_instances: OrderedDict[str, ChannelMatch] = OrderedDict()

    def has_channel(self, name: str) -> bool:
        """Tell whether a name is that of a channel, or of a template as declared."""
        return name in self.declared or self.resolve(name) is not None

    def current_declaration(self, name: str, declared: DeclaredChannel) -> DeclaredChannel | None:
        """Return the current declaration of a name: a channel's, or a template's own name."""
        if name == declared.name and not declared.template.is_exact:
            return self.declared.get(name)
        match = self.resolve(name)
        return None if match is None else match.declared

    def resolve(self, name: str) -> ChannelMatch | None:
        """Return the channel with that full name, or None if none is declared.

        The cache is bounded in bytes too: it holds valid names only, which are short.
        """
        fixed = self._fixed_channels.get(name)
        if fixed is not None or not self._templates:
            return fixed
        if name in self._resolved_instances:
            self._resolved_instances.move_to_end(name)
            return self._resolved_instances[name]
        found = self._match_template(name) if len(name) <= MAX_NAME_CHARS else None
        if found is not None:  # clients can invent names: unknown ones are not cached
            self._resolved_instances[name] = found
            if len(self._resolved_instances) > MAX_CACHED_NAMES:
                self._resolved_instances.popitem(last=False)
        return found

    def resolve_instance(self, declared: DeclaredChannel, fields: Mapping[str, str]) -> ChannelMatch | None:
        """Return the channel that ``fields`` name, or None if the name is another channel's or other fields'.

        The reverse check matters: with ``t.{tenant}.{id}``, the fields (``x.y``, ``z``) and (``x``, ``y.z``)
        render to one name, and a reader who may see tenant ``x`` must not get events of ``x.y``.
        """
        match = self.resolve(declared.template.render(fields))
        if match is None or match.declared is not declared:
            return None
        # A single field captures all of the name but the literal text, so it cannot differ.
        is_same = len(declared.template.fields) < 2 or match.fields == fields
        return match if is_same else None

    def _match_template(self, name: str) -> ChannelMatch | None:
        if name.startswith(CONTROL_CHANNEL_PREFIX) or invalid_channel_name_reason(name) is not None:
            return None
        for declared in self._templates:
            if declared.template.match(name) is not None:
                return ChannelMatch(name, declared)
        return None
