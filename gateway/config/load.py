"""A file to a `Config`, or to every mistake in it."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.checks import check
from gateway.config.document import MAX_BYTES, Document, parse
from gateway.config.environment import resolve
from gateway.config.faults import ConfigError, Fault, Path, nearest
from gateway.config.model import Config
from gateway.config.schema import json_schema, keys_at
from gateway.errors import StartupError

_MISPLACED = frozenset({"extra_forbidden", "model_type", "dict_type", "list_type"})
"""Faults of values that nobody knows: a URL with its password below a misspelled key, say."""


def load(file: str | FilePath, environ: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration in ``file``.

    Raises ConfigError with every mistake, StartupError where the file cannot be read.
    """
    path = FilePath(file)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read the configuration {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise StartupError(f"the configuration {path} is larger than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StartupError(f"the configuration {path} is not UTF-8 text (byte {error.start})") from None
    return loads(text, file=str(file), folder=path.parent, environ=environ)


def loads(
    text: str,
    *,
    file: str = "<config>",
    folder: FilePath = FilePath(),
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Return the configuration in ``text``; ``file`` is how messages name it. Raises ConfigError."""
    document = parse(text, file)
    if document.data is None:
        raise document.error(document.faults)
    faults = document.faults
    data = resolve(document.data, environ, folder, faults)
    config: Config | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        faults.extend(_model_faults(error, document))
    faults.extend(check(data))
    if faults or config is None:
        raise document.error([_by_reference(fault, document.data, data) for fault in faults])
    return config


def _by_reference(fault: Fault, written: Any, resolved: Any) -> Fault:
    """Return a fault that quotes ``${NAME}`` as it is written, and not what it stands for: maybe a secret."""
    for part in fault.path:
        try:
            written, resolved = written[part], resolved[part]
        except (KeyError, IndexError, TypeError):
            return fault
    if not isinstance(written, str) or not resolved or written == resolved:
        return fault
    message = fault.message.replace(repr(resolved), repr(written))
    return replace(fault, message=message.replace(resolved, written) if len(resolved) > 3 else message)


def _model_faults(error: ValidationError, document: Document) -> Iterator[Fault]:
    for detail in error.errors(include_url=False, include_input=False):
        if any(str(part).startswith("literal[") for part in detail["loc"]):
            continue  # the other half of "none or a mapping"; its mapping half is the one that was meant
        fault = _fault(detail, document)
        if detail["type"] in _MISPLACED:
            document.hide(fault.path)
        yield fault


def _fault(detail: ErrorDetails, document: Document) -> Fault:
    path = _path(detail["loc"], document)
    kind, context = detail["type"], detail.get("ctx", {})
    if detail["loc"] and detail["loc"][-1] == "[key]":
        return Fault(path, detail["msg"], on_key=True)
    if kind == "extra_forbidden":
        known = keys_at(json_schema(), path[:-1], document.data)
        return Fault(path, f"unknown key; {nearest(str(path[-1]), known)}", on_key=True)
    if kind == "missing":
        return Fault(path, _missing(path), on_key=True)
    if kind == "union_tag_not_found":
        return Fault((*path, "type"), "is required; one of redis-pubsub, webhook", on_key=True)
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        return Fault(
            (*path, "type"),
            f"{context['tag']!r} is not a type of source; {nearest(str(context['tag']), tags)}",
        )
    return Fault(path, _sentence(kind, detail["msg"], context))


def _missing(path: Path) -> str:
    if path[-1] == "access":
        return (
            "is required: a channel without a rule has no readers; write access: public, token or {claims: …}"
        )
    if path[-1] == "verify":
        return 'is required: nobody may post without a rule; write: {bearer: ["${TOKEN}"]} or {none: true}'
    return "is required"


def _sentence(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind in ("model_type", "dict_type"):
        return "must be a mapping of keys to values"
    if kind == "list_type":
        return "must be a list: [a, b]"
    if kind == "string_type":
        return "must be text"
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return "must be a whole number"
    if kind in ("bool_parsing", "bool_type"):
        return "must be true or false"
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    return message


def _path(loc: tuple[str | int, ...], document: Document) -> Path:
    """Return pydantic's location without what the file does not have: union tags and ``[key]``."""
    path: Path = ()
    for position, part in enumerate(loc):
        longer = (*path, part)
        if longer in document.values or longer in document.keys or position == len(loc) - 1:
            path = longer
    return path[:-1] if path and path[-1] == "[key]" else path


def located(file: str | FilePath, faults: Iterable[Fault]) -> ConfigError:
    """Return the error that reports faults of a file that could be used otherwise, at their places."""
    document = parse(FilePath(file).read_text("utf-8-sig"), str(file))
    return document.error(list(faults))


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
