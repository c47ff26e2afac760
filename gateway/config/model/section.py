"""What all sections of the configuration share."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.value_types import config_value_error


def yaml_default(text: str, description: str) -> Any:
    """Return a default written as in the YAML file, so that schema, docs and model share one spelling."""
    return Field(text, description=description)


def section_default(model: type[BaseModel], description: str | None = None) -> Any:
    """Return the default of a section that may be left out: all of its own defaults."""
    return Field(default_factory=model, description=description)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


def validate_redis_url(value: Any) -> Any:
    """Check a Redis URL; for pydantic's validators."""
    try:
        RedisUrl.parse(str(value))
    except ValueError as error:
        raise config_value_error(str(error)) from None
    return value
