"""A file to a `Config`, or to every mistake in it."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Protocol

from pydantic import ValidationError

from gateway.config.loader.document import MAX_BYTES, Document, parse
from gateway.config.loader.environment import resolve
from gateway.config.loader.faults import ConfigError, Fault, Located
from gateway.config.loader.model_errors import refusals, words
from gateway.config.model.config import Config
from gateway.config.model.paths import FOLDER, folder_of
from gateway.config.validation.rules import check
from gateway.config.validation.warnings import told
from gateway.core.errors import StartupError

SHORTEST_PART = 4
"""Characters of a value below which it is taken for a word of ours where it is part of something quoted."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file holds, or what is wrong with it; ``warnings`` are told once nothing is wrong."""

    file: str
    config: Config | None
    faults: Sequence[Located] = ()
    warnings: Sequence[Located] = ()


class Local(Protocol):
    """Finds what is wrong with the files and extras of this machine that a good configuration names."""

    def __call__(self, config: Config, data: Any, *, log: bool = True) -> Iterable[Fault]:
        """``data`` is the file's, with paths as they are written; ``log``: look at the log's file too."""


def load(
    file: str | FilePath, environ: Mapping[str, str] = os.environ, *, paths: FilePath | None = None
) -> Config:
    """Return the configuration in ``file``. Its relative paths start at ``paths``, else at its folder.

    Raises ConfigError with every mistake, StartupError where the file cannot be read.
    """
    return good(reads(text_of(file), file=str(file), folder=folder_of(file), environ=environ, paths=paths))


def loads(
    text: str,
    *,
    file: str = "<config>",
    folder: FilePath = FilePath(),
    environ: Mapping[str, str] = os.environ,
    local: Local | None = None,
) -> Config:
    """Return the configuration in ``text``; ``file`` is how messages name it. Raises ConfigError."""
    return good(reads(text, file=file, folder=folder, environ=environ, local=local))


def read(
    file: str | FilePath, environ: Mapping[str, str] = os.environ, local: Local | None = None
) -> Reading:
    """Return what is to be said about ``file``. Raises StartupError where it cannot be read."""
    return reads(text_of(file), file=str(file), folder=folder_of(file), environ=environ, local=local)


def text_of(file: str | FilePath) -> str:
    """Return what ``file`` says. Raises StartupError where it cannot be read, is no text, or is too large."""
    path = FilePath(file)
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise StartupError(f"cannot read the configuration {path}: {error.strerror}") from None
    return decoded(content, str(path))


def decoded(content: bytes, name: str) -> str:
    """Return a file's text. Raises StartupError where it is none, or too large."""
    if len(content) > MAX_BYTES:
        raise StartupError(f"the configuration {name} is larger than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise StartupError(
            f"the configuration {name} is not UTF-8 text (byte {error.start}, in line {line})"
        ) from None


def reads(
    text: str,
    *,
    file: str = "<config>",
    folder: FilePath = FilePath(),
    environ: Mapping[str, str] = os.environ,
    local: Local | None = None,
    is_reload: bool = False,
    paths: FilePath | None = None,
) -> Reading:
    """Return what is to be said about ``text``; ``local`` looks for more once nothing else is wrong.

    ``is_reload``: this process has the log, so that nothing need be looked for there.

    Relative paths of files start at ``folder``, those of settings at ``paths`` where that is given.
    """
    try:
        document = parse(text, file)
    except ConfigError as error:
        return Reading(file, None, error.faults)
    if document.data is None:
        return Reading(file, None, document.locate(document.faults))
    faults = [*words(document), *document.faults]
    data = resolve(document.data, environ, folder, faults)
    config: Config | None = None
    try:
        config = Config.model_validate(data, context={FOLDER: (paths or folder).absolute()})
    except ValidationError as error:
        faults.extend(refusals(error, document, data))
    faults.extend(check(data))
    if not faults and config is not None and local is not None:
        faults.extend(local(config, data, log=not is_reload))
    if faults or config is None:
        return Reading(file, None, located(faults, document, data))
    return Reading(file, config, (), located(told(config, data), document, data))


def good(reading: Reading) -> Config:
    """Return the configuration of a reading. Raises ConfigError with every mistake."""
    if reading.config is None:
        raise ConfigError(reading.file, reading.faults)
    return reading.config


def located(faults: Sequence[Fault], document: Document, data: Any) -> Sequence[Located]:
    """Return faults at their places; ``data`` is the document's with its references resolved."""
    return document.locate(_by_reference(fault, document.data, data) for fault in faults)


def _by_reference(fault: Fault, written: Any, resolved: Any) -> Fault:
    """Return a fault that quotes ``${NAME}`` as it is written, and not what it stands for: maybe a secret.

    Only where a message quotes the whole value: the words of its own sentences are nobody's secret.
    """
    for part in fault.path:
        try:
            written, resolved = written[part], resolved[part]
        except (KeyError, IndexError, TypeError):
            return fault
    if not isinstance(written, str) or not isinstance(resolved, str) or written == resolved:
        return fault
    message = fault.message.replace(repr(resolved), repr(written))
    return replace(fault, message=_masked(message, resolved, written))


_QUOTED = re.compile(r"(?<!\w)'(?:[^'\\]|\\.)+'(?!\w)")
_OWN = ("did you mean ", "must be ", ", ", " or ")
"""What stands before quoted words that are the model's and not the file's."""


def _masked(message: str, resolved: str, written: str) -> str:
    """Return a message that quotes a reference in place of a part of its value, or of advice made of it."""
    if len(resolved) < SHORTEST_PART:
        return message

    def masked(found: re.Match[str]) -> str:
        if message[: found.start()].endswith(_OWN):
            return found[0]
        is_part = len(found[0]) - 2 >= SHORTEST_PART and found[0][1:-1] in resolved
        return f"'{written}'" if is_part else found[0].replace(resolved, written)

    return _QUOTED.sub(masked, message)
