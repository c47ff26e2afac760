"""Configurations for tests."""

from typing import Any

from gateway.config.loader.load import load_text
from gateway.config.model.config import Config


def loads(text: str, **options: Any) -> Config:
    """Return the configuration in a text; the options are those of `load_text`. Raises ConfigError."""
    return load_text(text, **options).require_config()
