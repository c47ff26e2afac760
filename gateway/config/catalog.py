"""Declared channels, found by the name that a client or a record gives."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gateway.config.model.config import Channel, Conflate
from gateway.config.placeholders import Expression
from gateway.config.template import MAX_NAME, Template, why_no_name
from gateway.core.event import NOTICE, Retention

CACHE = 20_000
"""How many resolved instance names are remembered."""


class Form(NamedTuple):
    """What streams see of a channel. While it stays the same object, a reload leaves its streams alone."""

    name: str
    payload: str
    format: str
    slow_client: str
    is_kept: bool


@dataclass(frozen=True, slots=True)
class Declared:
    """A channel as the file declares it; ``name`` may be a template."""

    name: str
    spec: Channel
    form: Form
    template: Template
    retention: Retention
    key: Expression | None = None
    """What of an event is its key, on channels that conflate."""


@dataclass(frozen=True, slots=True)
class Match:
    """A channel by its full name."""

    name: str
    declared: Declared

    @property
    def fields(self) -> Mapping[str, str]:
        """The values of its template's fields; found anew, as every stream holds its channels' matches."""
        return (self.declared.template.match(self.name) or {}) if self.is_instance else {}

    @property
    def is_instance(self) -> bool:
        """True for one of many channels that a template stands for."""
        return not self.declared.template.is_exact


def retention_of(spec: Channel) -> Retention:
    """Return what the broker keeps for a channel."""
    if isinstance(spec.history, str):
        return Retention(0)
    age = spec.history.age
    return Retention(spec.history.events, None if age is None else max(1, round(age * 1000)))


def form_of(name: str, spec: Channel) -> Form:
    """Return what streams see of a channel."""
    return Form(name, spec.payload, spec.format, str(spec.slow_client), not isinstance(spec.history, str))


def _key(spec: Channel) -> Expression | None:
    return Expression(spec.slow_client.conflate) if isinstance(spec.slow_client, Conflate) else None


class Catalog:
    """All declared channels. A fixed name wins over a template, an earlier template over a later one."""

    def __init__(self, channels: Mapping[str, Channel]) -> None:
        self.declared: Mapping[str, Declared] = {}
        self.reconfigure(channels)

    def reconfigure(self, channels: Mapping[str, Channel]) -> None:
        """Declare these channels, and no others. Forms that stay the same stay the same objects."""
        forms = {name: each.form for name, each in self.declared.items()}
        declared = {}
        for name, spec in channels.items():
            form = form_of(name, spec)
            if forms.get(name) == form:
                form = forms[name]
            declared[name] = Declared(name, spec, form, Template(name), retention_of(spec), _key(spec))
        self.declared = declared
        self._fixed = {
            name: Match(name, declared)
            for name, declared in self.declared.items()
            if declared.template.is_exact
        }
        self._templates = [each for each in self.declared.values() if not each.template.is_exact]
        self._cache: OrderedDict[str, Match] = OrderedDict()

    def knows(self, name: str) -> bool:
        """Tell whether a name is a channel's, or that of a template as it is declared."""
        return name in self.declared or self.resolve(name) is not None

    def now(self, name: str, declared: Declared) -> Declared | None:
        """Return what declares a followed name today: a channel's, or a template's under its own name."""
        if name == declared.name and not declared.template.is_exact:
            return self.declared.get(name)
        match = self.resolve(name)
        return None if match is None else match.declared

    def resolve(self, name: str) -> Match | None:
        """Return the channel of that full name, or None where none is declared.

        What is remembered is bounded in bytes: names of channels only, which are short.
        """
        fixed = self._fixed.get(name)
        if fixed is not None or not self._templates:
            return fixed
        if name in self._cache:
            self._cache.move_to_end(name)
            return self._cache[name]
        found = self._first_template(name) if len(name) <= MAX_NAME else None
        if found is not None:  # callers make up names; one that leads nowhere is not remembered
            self._cache[name] = found
            if len(self._cache) > CACHE:
                self._cache.popitem(last=False)
        return found

    def instance(self, declared: Declared, fields: Mapping[str, str]) -> Match | None:
        """Return the channel that ``fields`` name, or None where the name leads to another one.

        The way back matters: with ``t.{tenant}.{id}``, the fields (``x.y``, ``z``) and (``x``, ``y.z``)
        render to one name, and a reader who may see tenant ``x`` must not get events of ``x.y``.
        """
        match = self.resolve(declared.template.render(fields))
        if match is None or match.declared is not declared:
            return None
        # What a single field takes up is what is left of the name.
        is_it = len(declared.template.fields) < 2 or match.fields == fields
        return match if is_it else None

    def _first_template(self, name: str) -> Match | None:
        if name.startswith(NOTICE) or why_no_name(name) is not None:
            return None
        for declared in self._templates:
            if declared.template.match(name) is not None:
                return Match(name, declared)
        return None
