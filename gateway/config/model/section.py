"""The base class of all sections, and their defaults."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.value_types import config_value_error


def yaml_default(text: str, description: str) -> Any:
    """Return a field with its default as written in YAML: schema, docs and model have one spelling."""
    return Field(text, description=description)


def section_default(model: type[BaseModel], description: str | None = None) -> Any:
    """Return a field for an optional section, whose default is all of its defaults."""
    return Field(default_factory=model, description=description)


@dataclass(frozen=True, slots=True)
class Effect:
    """What a reload does about a changed setting, as ``diff`` prints it.

    It stands in the `Annotated` type of a field, and also holds for the keys of a section in that field.
    `gateway.config.diff` reads it there.
    """

    text: str
    needs_restart: bool = False
    condition: Callable[[Any, Any], bool] = lambda before, after: True
    """Whether a change from one value to another has the effect; without it a change has none."""


NO_EFFECT = Effect("")
"""The new value applies from now on; streams and connections do not notice."""

NEEDS_RESTART = Effect("needs a restart: a reload refuses the file", needs_restart=True)
NEW_STREAMS_ONLY = Effect("for streams that open from now on")
NEW_EVENTS_ONLY = Effect("for events from now on")
KEEPS_STREAMS = Effect("streams that are open stay")
CLOSES_STREAMS = Effect("its streams close, and may come back at once")
CHECKS_ACCESS = Effect("streams that the rule no longer lets in close")
CHECKS_ORIGINS = Effect("streams of pages that may no longer read close")
CHANGES_ACKS = Effect("streams that already answer heartbeats follow; others stay as they opened")
RECONNECTS = Effect("reconnects, and continues where it was")
RECONNECTS_WITH_GAP = Effect("reconnects; its channels report a gap if no other node reads on")


class Section(BaseModel):
    """A frozen mapping of known keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    reload_effect: ClassVar[Effect | None] = None
    """The effect of keys that declare none; None: that of the field which holds the section."""

    @classmethod
    def effect_of(cls, name: str, inherited: Effect = NO_EFFECT) -> Effect:
        """Return what a reload does about a change of one field."""
        own = (each for each in cls.model_fields[name].metadata if isinstance(each, Effect))
        return next(own, cls.reload_effect or inherited)


def validate_redis_url(value: Any) -> Any:
    """Check a Redis URL; a pydantic validator."""
    try:
        RedisUrl.parse(str(value))
    except ValueError as error:
        raise config_value_error(str(error)) from None
    return value
