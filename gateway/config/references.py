"""The files that a configuration is made of, and places in them."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any

from gateway.config.document import parse
from gateway.config.faults import ConfigError, Fault


def located(file: str | FilePath, faults: Iterable[Fault]) -> ConfigError:
    """Return the error that reports faults of a file that could be used otherwise, at their places."""
    document = parse(FilePath(file).read_text("utf-8-sig"), str(file))
    return ConfigError(str(file), document.locate(list(faults)))


def files_of(file: str | FilePath) -> list[FilePath]:
    """Return the file and those that it refers to: a change of one of them is a change of the whole.

    A file that cannot be read, or is no YAML, refers to none.
    """
    path = FilePath(file)
    found = [path]
    with suppress(OSError, ConfigError, UnicodeDecodeError):
        for key, text in _texts(parse(path.read_text("utf-8-sig"), str(file)).data, ""):
            if text.startswith("file:"):
                found.append(path.parent / text[5:])
            elif key == "public_key_file":
                found.append(FilePath(text))
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
