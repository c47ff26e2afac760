"""Parses YAML text to plain data with the position of every key and value, and rejects what is ambiguous.

PyYAML implements YAML 1.1, where ``no`` is False, ``12:30`` is 750 and the last of two equal keys wins.
This parser composes the node tree (which has positions), gives scalars the types of the YAML 1.2
core schema, and reports whatever the two versions read differently.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from gateway.config.loader.issues import SECRET_KEYS, ConfigError, ConfigIssue, ConfigPath, LocatedIssue
from gateway.config.loader.yaml_errors import explain_yaml_error, position_of, typographic_error

MAX_CONFIG_BYTES = 16 * 2**20
"""Largest configuration file."""

RENAMED_KEYS: dict[ConfigPath, str] = {("log",): "logging"}
"""Old keys and their new names. A file may use either until 1.0; the old one is reported as `renamed-key`."""

_TAG_PREFIX = "tag:yaml.org,2002:"
_ALLOWED_TAGS = frozenset(
    {"map", "seq", "str", "null", "bool", "int", "float", "timestamp", "merge", "value"}
)
_ONLY_REFERENCES = re.compile(r"(\$\{[^}]*\}|file:.*)*")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class _AliasRejectingLoader(yaml.SafeLoader):
    """Composes nodes; records aliases and returns an empty scalar in their place."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases: list[yaml.Mark] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it bare
            self.aliases.append(event.start_mark)
            return yaml.ScalarNode(_TAG_PREFIX + "alias", "", event.start_mark, event.end_mark, style="'")
        return super().compose_node(parent, index)


@dataclass
class YamlDocument:
    """A parsed file: plain values, and the (line, column) of each key and value by path, counted from 1."""

    file: str
    lines: list[str]
    data: Any = None
    key_positions: dict[ConfigPath, tuple[int, int]] = field(default_factory=dict)
    value_positions: dict[ConfigPath, tuple[int, int]] = field(default_factory=dict)
    errors: list[ConfigIssue] = field(default_factory=list)
    renamed_keys: dict[ConfigPath, str] = field(default_factory=dict)
    """Old names, as written, by the path with the new name."""
    secret_lines: set[int] = field(default_factory=set)
    """Lines that hold a secret itself instead of a reference; messages do not show them."""
    yaml11_booleans: dict[ConfigPath, str] = field(default_factory=dict)
    """Words that are booleans in YAML 1.1 only: yes, no, on, off."""
    end_lines: dict[ConfigPath, int] = field(default_factory=dict)
    """The line after each value."""

    def hide_value(self, path: ConfigPath) -> None:
        """Hide the value at ``path`` in messages: it does not belong there, and may be a secret."""
        position = self.key_positions.get(path) or self.value_positions.get(path)
        if position is not None:
            self.secret_lines.update(range(position[0], self.end_lines.get(path, position[0]) + 1))

    def locate(self, issues: Iterable[ConfigIssue]) -> list[LocatedIssue]:
        """Return issues with their positions, in file order, one per path and kind."""
        located: dict[object, LocatedIssue] = {}
        for issue in issues:
            located.setdefault((issue.path, issue.position, issue.warning_code), self._locate(issue))
        return sorted(located.values(), key=lambda at: (at.line, at.column))

    def _locate(self, issue: ConfigIssue) -> LocatedIssue:
        path, position = issue.path, issue.position
        first, second = self.value_positions, self.key_positions
        if issue.is_on_key:
            first, second = second, first
        while position is None:
            position = first.get(path) or second.get(path) or (None if path else (1, 1))
            path = path[:-1]
        line, column = position
        is_secret = line in self.secret_lines or _is_secret(issue.path)
        source = self.lines[line - 1] if line <= len(self.lines) and not is_secret else None
        return LocatedIssue(issue, line, column, source or self._masked_line(issue.path, position))

    def _masked_line(self, path: ConfigPath, position: tuple[int, int]) -> str | None:
        """Return the line with only the key that ``path`` belongs to, and its value masked."""
        line, column = position
        while path and (path not in self.key_positions or self.key_positions[path] > position):
            path = path[:-1]
        if not path or self.key_positions[path][0] != line:
            return None
        begin = self.key_positions[path][1]
        shown = f"{' ' * (begin - 1)}{path[-1]}: "
        return f"{shown:<{column - 1}}…"


def _is_secret(path: ConfigPath) -> bool:
    return any(part in SECRET_KEYS for part in path)


def parse_yaml(text: str, file: str) -> YamlDocument:
    """Return the document in ``text``, with the errors that can be found without the model.

    Raises ConfigError if the text is not valid YAML.
    """
    document = YamlDocument(file, text.splitlines())
    try:
        loader = _AliasRejectingLoader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError) as error:
        line, column, message = explain_yaml_error(error, text, document.lines)
        raise ConfigError(file, [LocatedIssue(ConfigIssue((), message), line, column, None)]) from None
    if node is None:
        document.errors.append(ConfigIssue((), "the file is empty; write at least sources and channels"))
    elif not isinstance(node, yaml.MappingNode):
        document.errors.append(ConfigIssue((), "must be a mapping of sections: server, sources, channels, …"))
    else:
        document.data = _convert_node(node, (), document)
    return document


def _convert_node(node: Any, path: ConfigPath, document: YamlDocument) -> Any:
    document.value_positions[path] = position_of(node.start_mark)
    document.end_lines[path] = node.end_mark.line + 1
    if _is_secret(path) and not _ONLY_REFERENCES.fullmatch(str(node.value)):
        document.secret_lines.update(range(node.start_mark.line + 1, node.end_mark.line + 2))
    if node.tag == _TAG_PREFIX + "alias":
        document.errors.append(ConfigIssue(path, "aliases are not supported; repeat the value"))
        return None
    if node.tag.removeprefix(_TAG_PREFIX) not in _ALLOWED_TAGS:
        # A password that begins with ! is a tag in YAML.
        shown = "a tag" if _is_secret(path) else f"the tag {node.tag}"
        document.errors.append(
            ConfigIssue(path, f"{shown} is not supported; write a plain value, or quote it")
        )
        return None
    if isinstance(node, yaml.MappingNode):
        return _convert_mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_convert_node(item, (*path, index), document) for index, item in enumerate(node.value)]
    return _convert_scalar(node, path, document)


def _convert_mapping(node: yaml.MappingNode, path: ConfigPath, document: YamlDocument) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            document.errors.append(ConfigIssue(path, "a key must be plain text, and is a list or a mapping"))
            continue
        written: str = key_node.value
        position = position_of(key_node.start_mark)
        key = RENAMED_KEYS.get((*path, written), written)
        key_path = (*path, key)
        if key in data:
            first = document.key_positions[key_path][0]
            message = f"the key {key!r} is already given in line {first}; remove one"
            document.errors.append(ConfigIssue(key_path, message, is_on_key=True, position=position))
            continue
        document.key_positions[key_path] = position
        if key_node.tag == _TAG_PREFIX + "merge":
            document.errors.append(
                ConfigIssue(key_path, "merge keys are not supported; repeat the keys", is_on_key=True)
            )
            continue
        if key != written:
            document.renamed_keys[key_path] = written
        if key_node.style is None and (why := typographic_error(written)) is not None:
            document.errors.append(ConfigIssue(key_path, why, is_on_key=True))
        data[key] = _convert_node(value_node, key_path, document)
    return data


def _yaml11_number(node: yaml.ScalarNode) -> int | float | None:
    """Return the number that a YAML 1.1 parser reads, or None."""
    is_int = node.tag == _TAG_PREFIX + "int"
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_yaml_int(node) if is_int else loader.construct_yaml_float(node)
    except ValueError:
        return None
    finally:
        loader.dispose()


def _convert_scalar(node: yaml.ScalarNode, path: ConfigPath, document: YamlDocument) -> Any:
    text = node.value
    if node.style is not None:  # quoted, or a block scalar: always text
        return text
    if (why := typographic_error(text)) is not None:
        document.errors.append(ConfigIssue(path, why))
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) and len(text) < 20:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    kind = node.tag.removeprefix(_TAG_PREFIX)
    if kind in ("bool", "int", "float", "timestamp"):
        # YAML 1.1 parsers (and people) read a boolean, a base-60 number or a date here.
        quoted = f'"{text}"'
        right = f"write {quoted} for text, or true or false" if kind == "bool" else f"write {quoted} for text"
        if kind == "bool":
            document.yaml11_booleans[path] = text.lower()
        seen = {"bool": "a boolean", "timestamp": "a date"}.get(kind, "a special number")
        number = _yaml11_number(node) if kind in ("int", "float") else None
        if number is not None:
            seen, right = f"the number {number}", f"write {number} for the number, or {quoted} for text"
        if _is_secret(path):
            text, right = "this", "quote it"
        document.errors.append(ConfigIssue(path, f"{text} is {seen} to some YAML parsers; {right}"))
    return text
