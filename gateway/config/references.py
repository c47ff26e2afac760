"""The files that a configuration is made of, and places in them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any

from gateway.config.document import parse
from gateway.config.environment import variables
from gateway.config.faults import ConfigError, Fault
from gateway.config.paths import absolute


def located(text: str, file: str, faults: Sequence[Fault]) -> ConfigError:
    """Return the error that reports faults of a text that could be used otherwise, at their places."""
    return ConfigError(file, parse(text, file).locate(faults))


def files_of(content: str, folder: FilePath, environ: Mapping[str, str] = os.environ) -> list[FilePath]:
    """Return the files that a configuration refers to: a change of one is a change of the whole.

    What is no YAML refers to none.
    """
    found: list[FilePath] = []
    with suppress(ConfigError):
        for key, text in _texts(parse(content, "").data, ""):
            is_origin = key == "origins" and text.startswith("file://")
            is_reference = text.startswith("file:") and not is_origin
            name = text[5:] if is_reference else text if key == "public_key_file" else ""
            if name:
                found.append(FilePath(absolute(variables(name, environ), folder)))
    return found


def _texts(data: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _texts(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from _texts(value, key)
