"""Resolves ``${NAME}``, ``${NAME:-default}`` and ``file:`` references in values, after parsing.

This order means that a secret with a quote or a colon in it cannot change the structure of the file.
``$$`` before a brace writes a literal ``${``.
"""

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

from gateway.config.loader.issues import SECRET_KEYS, ConfigIssue, ConfigPath, suggest_nearest
from gateway.config.model.paths import absolute_path

MAX_FILE_BYTES = 1024 * 1024
"""Largest file that a ``file:`` reference may name, in bytes."""

_REFERENCE = re.compile(r"(\$?)\$\{([^}]*)\}?")
_UNBRACED_VARIABLE = re.compile(
    r"(?:^|(?<=[/:@=,]))\$([A-Z_][A-Z0-9_]+)(?=$|[/:@?&,])|^\$([A-Za-z_][A-Za-z0-9_]*)$"
    r"|^\$\(([A-Za-z_][A-Za-z0-9_]*)\)$|^%([A-Za-z_][A-Za-z0-9_]*)%$"
)
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def resolve_references(
    data: Any, environ: Mapping[str, str], folder: FilePath, errors: list[ConfigIssue]
) -> Any:
    """Return ``data`` with every reference replaced by its value, and append what is wrong to ``errors``.

    Relative ``file:`` paths start at ``folder``. Trailing line ends of a file are removed.
    """
    return _ReferenceResolver(environ, folder, errors).resolve(data, ())


def _find_unbraced_variable(text: str, path: ConfigPath) -> str | None:
    """Return the name of a variable written as in shells, make or Windows, outside of topics and channels."""
    if path[:1] == ("channels",) or "event" in path or path[-1:] == ("topic",):
        return None  # Redis and MQTT have topics such as $SYS
    found = _UNBRACED_VARIABLE.search(text)
    return None if found is None else next(name for name in found.groups() if name)


def expand_variables(text: str, environ: Mapping[str, str]) -> str:
    """Return a text with its variables replaced; an invalid reference becomes empty."""
    return _ReferenceResolver(environ, FilePath(), []).expand(text, ())


class _ReferenceResolver:
    def __init__(self, environ: Mapping[str, str], folder: FilePath, errors: list[ConfigIssue]) -> None:
        self._environ = environ
        self._folder = folder
        self._errors = errors

    def _reject(self, path: ConfigPath, message: str) -> str:
        """Record an error, and return the empty text in place of the reference."""
        self._errors.append(ConfigIssue(path, message))
        return ""

    def resolve(self, data: Any, path: ConfigPath) -> Any:
        if isinstance(data, dict):
            return {key: self.resolve(item, (*path, key)) for key, item in data.items()}
        if isinstance(data, list):
            return [self.resolve(item, (*path, index)) for index, item in enumerate(data)]
        if not isinstance(data, str):
            return data
        if (name := _find_unbraced_variable(data, path)) is not None:
            return self._reject(path, f"a variable without braces is plain text; write ${{{name}}}")
        text = self.expand(data, path)
        # An origin such as file:///page.html is no reference; the model explains why it is not allowed.
        is_origin = "origins" in path and data.startswith("file://")
        return self._read_file(text[5:], path) if data.startswith("file:") and not is_origin else text

    def expand(self, text: str, path: ConfigPath) -> str:
        if "${" not in text:
            return text
        return _REFERENCE.sub(lambda match: self._expand_variable(match, path), text)

    def _expand_variable(self, match: re.Match[str], path: ConfigPath) -> str:
        escaped, body = match[1], match[2]
        if escaped:
            return match[0][1:]
        parsed = _NAME.fullmatch(body) if match[0].endswith("}") else None
        if parsed is not None and "${" in (parsed[2] or ""):
            return self._reject(path, f"the default of {parsed[1]} contains a reference; write plain text")
        if parsed is None:
            shown = "this" if any(part in SECRET_KEYS for part in path) else repr(match[0])
            return self._reject(path, f"{shown} is not a reference; write ${{NAME}} or ${{NAME:-default}}")
        name, default = parsed[1], parsed[2]
        value = self._environ.get(name)
        if value is None and default is None:
            close = suggest_nearest(name, (key for key in self._environ if key[:3] == name[:3]))
            hint = close if close.startswith("did") else f"set it, or write ${{{name}:-default}}"
            return self._reject(path, f"the environment has no {name}; {hint}")
        if value:
            return value
        if default is not None:
            return default
        return self._reject(path, f"{name} is set but empty; give it a value, or write ${{{name}:-default}}")

    def _read_file(self, name: str, path: ConfigPath) -> str:
        file = FilePath(absolute_path(name, self._folder))
        try:
            with file.open("rb") as opened:
                content = opened.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else "not a valid file name"
            return self._reject(path, f"cannot read {str(file)!r}: {reason}")
        if len(content) > MAX_FILE_BYTES:
            return self._reject(path, f"{file} is larger than {MAX_FILE_BYTES} bytes")
        try:
            return content.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            return self._reject(path, f"{file} is not UTF-8 text")
