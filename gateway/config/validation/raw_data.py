"""Reads raw configuration data before its shape is checked: a wrong shape reads as nothing. Pure."""

from collections.abc import Iterable
from typing import Any

from gateway.config.placeholders import Expression
from gateway.config.template import Template


def value_at(path: Iterable[str | int], data: Any) -> Any:
    """Return the value at ``path``, or None."""
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def as_mapping(value: Any) -> dict[str, Any]:
    """Return a mapping as it is, and an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and an empty one for anything else."""
    return value if isinstance(value, list) else []


def is_true(value: Any) -> bool:
    """Tell whether a boolean setting is on; from the environment it is text."""
    return value in (True, "true")


def placeholder_names(text: Any) -> list[str] | None:
    """Return the names in an expression; None if it is invalid, which the model reports."""
    try:
        return list(Expression(text).placeholder_names) if isinstance(text, str) else None
    except ValueError:
        return None


def parse_template(text: Any, *, glob: bool = False) -> Template | None:
    """Return a template; None if it is invalid, which the model reports."""
    try:
        return Template(text, glob=glob) if isinstance(text, str) else None
    except ValueError:
        return None
