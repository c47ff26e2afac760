"""The base class of all sections, and their defaults."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.value_types import config_value_error


def yaml_default(text: str, description: str) -> Any:
    """Return a field with its default as written in YAML: schema, docs and model have one spelling."""
    return Field(text, description=description)


def section_default(model: type[BaseModel], description: str | None = None) -> Any:
    """Return a field for an optional section, whose default is all of its defaults."""
    return Field(default_factory=model, description=description)


class Section(BaseModel):
    """A frozen mapping of known keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


def validate_redis_url(value: Any) -> Any:
    """Check a Redis URL; a pydantic validator."""
    try:
        RedisUrl.parse(str(value))
    except ValueError as error:
        raise config_value_error(str(error)) from None
    return value
