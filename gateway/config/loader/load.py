"""A file to a `Config`, or to every mistake in it."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Protocol

from pydantic import ValidationError

from gateway.config.loader.document import MAX_CONFIG_BYTES, YamlDocument, parse_yaml
from gateway.config.loader.environment import resolve_references
from gateway.config.loader.issues import ConfigError, ConfigIssue, LocatedIssue
from gateway.config.loader.model_errors import issues_of_validation_error, yaml11_boolean_issues
from gateway.config.model.config import Config
from gateway.config.model.paths import config_folder
from gateway.config.validation.cross_section_rules import check_rules
from gateway.config.validation.warnings import unaccepted_warnings
from gateway.core.errors import StartupError

MIN_MASKED_CHARS = 4
"""Characters of a value below which it is taken for a word of ours where it is part of something quoted."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a file holds, or what is wrong with it; ``warnings`` are told once nothing is wrong."""

    file: str
    config: Config | None
    errors: Sequence[LocatedIssue] = ()
    warnings: Sequence[LocatedIssue] = ()


class LocalChecker(Protocol):
    """Finds what is wrong with the files and extras of this machine that a good configuration names."""

    def __call__(self, config: Config, data: Any, *, check_log: bool = True) -> Iterable[ConfigIssue]:
        """``data`` is the file's, with paths as they are written; ``log``: look at the log's file too."""


def load(
    file: str | FilePath, environ: Mapping[str, str] = os.environ, *, paths_folder: FilePath | None = None
) -> Config:
    """Return the configuration in ``file``. Its relative paths start at ``paths``, else at its folder.

    Raises ConfigError with every mistake, StartupError where the file cannot be read.
    """
    return config_or_raise(
        try_loads(
            read_config_text(file),
            file=str(file),
            folder=config_folder(file),
            environ=environ,
            paths_folder=paths_folder,
        )
    )


def loads(
    text: str,
    *,
    file: str = "<config>",
    folder: FilePath = FilePath(),
    environ: Mapping[str, str] = os.environ,
    local_checker: LocalChecker | None = None,
) -> Config:
    """Return the configuration in ``text``; ``file`` is how messages name it. Raises ConfigError."""
    return config_or_raise(
        try_loads(text, file=file, folder=folder, environ=environ, local_checker=local_checker)
    )


def try_load(
    file: str | FilePath, environ: Mapping[str, str] = os.environ, local_checker: LocalChecker | None = None
) -> LoadResult:
    """Return what is to be said about ``file``. Raises StartupError where it cannot be read."""
    return try_loads(
        read_config_text(file),
        file=str(file),
        folder=config_folder(file),
        environ=environ,
        local_checker=local_checker,
    )


def read_config_text(file: str | FilePath) -> str:
    """Return what ``file`` says. Raises StartupError where it cannot be read, is no text, or is too large."""
    path = FilePath(file)
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise StartupError(f"cannot read the configuration {path}: {error.strerror}") from None
    return decode_config_text(content, str(path))


def decode_config_text(content: bytes, name: str) -> str:
    """Return a file's text. Raises StartupError where it is none, or too large."""
    if len(content) > MAX_CONFIG_BYTES:
        raise StartupError(f"the configuration {name} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise StartupError(
            f"the configuration {name} is not UTF-8 text (byte {error.start}, in line {line})"
        ) from None


def try_loads(
    text: str,
    *,
    file: str = "<config>",
    folder: FilePath = FilePath(),
    environ: Mapping[str, str] = os.environ,
    local_checker: LocalChecker | None = None,
    is_reload: bool = False,
    paths_folder: FilePath | None = None,
) -> LoadResult:
    """Return what is to be said about ``text``; ``local`` looks for more once nothing else is wrong.

    ``is_reload``: this process has the log, so that nothing need be looked for there.

    Relative paths of files start at ``folder``, those of settings at ``paths`` where that is given.
    """
    try:
        document = parse_yaml(text, file)
    except ConfigError as error:
        return LoadResult(file, None, error.errors)
    if document.data is None:
        return LoadResult(file, None, document.locate(document.errors))
    faults = [*yaml11_boolean_issues(document), *document.errors]
    data = resolve_references(document.data, environ, folder, faults)
    config: Config | None = None
    try:
        config = Config.from_data(data, str((paths_folder or folder).absolute()))
    except ValidationError as error:
        faults.extend(issues_of_validation_error(error, document, data))
    faults.extend(check_rules(data))
    if not faults and config is not None and local_checker is not None:
        faults.extend(local_checker(config, data, check_log=not is_reload))
    if faults or config is None:
        return LoadResult(file, None, locate_issues(faults, document, data))
    return LoadResult(file, config, (), locate_issues(unaccepted_warnings(config, data), document, data))


def config_or_raise(reading: LoadResult) -> Config:
    """Return the configuration of a reading. Raises ConfigError with every mistake."""
    if reading.config is None:
        raise ConfigError(reading.file, reading.errors)
    return reading.config


def locate_issues(issues: Sequence[ConfigIssue], document: YamlDocument, data: Any) -> Sequence[LocatedIssue]:
    """Return faults at their places; ``data`` is the document's with its references resolved."""
    return document.locate(_quote_reference(fault, document.data, data) for fault in issues)


def _quote_reference(fault: ConfigIssue, written: Any, resolved: Any) -> ConfigIssue:
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
    return replace(fault, message=_mask_resolved_value(message, resolved, written))


_QUOTED = re.compile(r"(?<!\w)'(?:[^'\\]|\\.)+'(?!\w)")
_MODEL_PHRASES = ("did you mean ", "must be ", ", ", " or ")
"""What stands before quoted words that are the model's and not the file's."""


def _mask_resolved_value(message: str, resolved: str, written: str) -> str:
    """Return a message that quotes a reference in place of a part of its value, or of advice made of it."""
    if len(resolved) < MIN_MASKED_CHARS:
        return message

    def masked(found: re.Match[str]) -> str:
        if message[: found.start()].endswith(_MODEL_PHRASES):
            return found[0]
        is_part = len(found[0]) - 2 >= MIN_MASKED_CHARS and found[0][1:-1] in resolved
        return f"'{written}'" if is_part else found[0].replace(resolved, written)

    return _QUOTED.sub(masked, message)
