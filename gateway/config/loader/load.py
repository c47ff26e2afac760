"""Loads the configuration: from YAML text to a `Config`, or to a list of every error with its position."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import ValidationError

from gateway.config.loader.document import MAX_CONFIG_BYTES, YamlDocument, parse_yaml
from gateway.config.loader.environment import resolve_references
from gateway.config.loader.issues import ConfigError, ConfigIssue, LocatedIssue
from gateway.config.loader.model_errors import issues_of_validation_error, yaml11_boolean_issues
from gateway.config.model.config import Config
from gateway.config.model.paths import FOLDER_CONTEXT_KEY, config_folder
from gateway.config.validation.raw_data import value_at
from gateway.config.validation.rules import check_rules
from gateway.config.validation.warnings import unaccepted_warnings
from gateway.core.errors import StartupError

MIN_MASKED_CHARS = 4
"""Shortest value, in characters, that is masked within a longer quoted text; shorter ones are common."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """A loaded configuration with its warnings; ``config`` is None if there are errors."""

    file: str
    config: Config | None
    errors: Sequence[LocatedIssue] = ()
    warnings: Sequence[LocatedIssue] = ()

    def require_config(self) -> Config:
        """Return the configuration. Raises ConfigError with every error if there is none."""
        if self.config is None:
            raise ConfigError(self.file, self.errors)
        return self.config


class LocalChecker(Protocol):
    """Checks the files and optional packages of this machine that a valid configuration names."""

    def __call__(self, config: Config, data: Any, *, check_log: bool = True) -> Iterable[ConfigIssue]:
        """Yield what is missing. ``data`` has the paths as written; ``check_log`` includes the log's file."""


def load_file(
    file: str | Path,
    environ: Mapping[str, str] = os.environ,
    *,
    local_checker: LocalChecker | None = None,
    paths_folder: Path | None = None,
) -> LoadResult:
    """Load a file. Relative paths in it start at ``paths_folder``, by default at the file's own folder.

    Raises StartupError if the file cannot be read.
    """
    return load_text(
        read_config_text(file),
        file=str(file),
        folder=config_folder(file),
        environ=environ,
        local_checker=local_checker,
        paths_folder=paths_folder,
    )


def load_text(
    text: str,
    *,
    file: str = "<config>",
    folder: Path = Path(),
    environ: Mapping[str, str] = os.environ,
    local_checker: LocalChecker | None = None,
    is_reload: bool = False,
    paths_folder: Path | None = None,
) -> LoadResult:
    """Load YAML text; ``file`` is its name in messages.

    ``file:`` references start at ``folder``, relative paths of settings at ``paths_folder`` (default: the
    same). ``local_checker`` runs if there is no other error; on a reload it skips the log, which this process
    has open.
    """
    try:
        document = parse_yaml(text, file)
    except ConfigError as error:
        return LoadResult(file, None, error.errors)
    if document.data is None:
        return LoadResult(file, None, document.locate(document.errors))
    issues = [*yaml11_boolean_issues(document), *document.errors]
    data = resolve_references(document.data, environ, folder, issues)
    config = validate_model(data, document, (paths_folder or folder).absolute(), issues)
    issues += check_rules(data)
    if not issues and config is not None and local_checker is not None:
        issues += local_checker(config, data, check_log=not is_reload)
    if issues or config is None:
        return LoadResult(file, None, locate_issues(issues, document, data))
    warnings = unaccepted_warnings(config, data, document.renamed_keys)
    return LoadResult(file, config, (), locate_issues(warnings, document, data))


def validate_model(
    data: Any, document: YamlDocument, folder: Path, issues: list[ConfigIssue]
) -> Config | None:
    """Return the model of ``data``; if it is invalid, append its errors to ``issues`` and return None."""
    try:
        return Config.model_validate(data, context={FOLDER_CONTEXT_KEY: folder})
    except ValidationError as error:
        issues += issues_of_validation_error(error, document, data)
        return None


def read_config_text(file: str | Path, stream: IO[bytes] | None = None) -> str:
    """Return the text of a file, or of ``stream``, which messages call ``file``.

    Raises StartupError if it cannot be read, is not UTF-8, or is larger than `MAX_CONFIG_BYTES`.
    """
    try:
        with Path(file).open("rb") if stream is None else nullcontext(stream) as opened:
            content = opened.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise StartupError(f"cannot read the configuration {file}: {error.strerror}") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise StartupError(f"the configuration {file} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise StartupError(
            f"the configuration {file} is not UTF-8 text (byte {error.start}, in line {line});"
            " save it as UTF-8"
        ) from None


def locate_issues(issues: Iterable[ConfigIssue], document: YamlDocument, data: Any) -> Sequence[LocatedIssue]:
    """Return issues with their positions; ``data`` is the document's with its references resolved."""
    return document.locate(_quote_reference(issue, document.data, data) for issue in issues)


def _quote_reference(issue: ConfigIssue, written_data: Any, data: Any) -> ConfigIssue:
    """Return the issue with ``${NAME}`` quoted as written instead of its value, which may be a secret.

    Only quoted text is replaced: the words of the message itself are nobody's secret.
    """
    written, resolved = value_at(issue.path, written_data), value_at(issue.path, data)
    if not isinstance(written, str) or not isinstance(resolved, str) or written == resolved:
        return issue
    message = issue.message.replace(repr(resolved), repr(written))
    return replace(issue, message=_mask_resolved_value(message, resolved, written))


_QUOTED = re.compile(r"(?<!\w)'(?:[^'\\]|\\.)+'(?!\w)")
_MODEL_PHRASES = ("did you mean ", "must be ", ", ", " or ")
"""Text before quoted words that come from the model and not from the file."""


def _mask_resolved_value(message: str, resolved: str, written: str) -> str:
    """Replace quoted parts of a resolved value, and suggestions made of it, by the reference."""
    if len(resolved) < MIN_MASKED_CHARS:
        return message

    def masked(found: re.Match[str]) -> str:
        if message[: found.start()].endswith(_MODEL_PHRASES):
            return found[0]
        is_part = len(found[0]) - 2 >= MIN_MASKED_CHARS and found[0][1:-1] in resolved
        return f"'{written}'" if is_part else found[0].replace(resolved, written)

    return _QUOTED.sub(masked, message)
