"""YAML text to plain data, with the position of every key and value, and nothing silently wrong.

PyYAML speaks YAML 1.1, where ``no`` is False, ``12:30`` is 750 and the last of two equal keys wins.
This loader composes the node tree (which has positions), gives scalars the types of the YAML 1.2
core schema, and reports whatever the two versions read differently.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from gateway.config.loader.issues import SECRET_KEYS, ConfigError, ConfigIssue, ConfigPath, LocatedIssue
from gateway.config.loader.yaml_errors import explain_yaml_error, typographic_error

MAX_CONFIG_BYTES = 16 * 2**20
"""Largest configuration file."""

_TAG_PREFIX = "tag:yaml.org,2002:"
_ALLOWED_TAGS = frozenset(
    {"map", "seq", "str", "null", "bool", "int", "float", "timestamp", "merge", "value"}
)
_ONLY_REFERENCES = re.compile(r"(\$\{[^}]*\}|file:.*)*")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class _AliasRejectingLoader(yaml.SafeLoader):
    """Composes nodes; notes aliases and returns an empty scalar in their place."""

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
    """``data`` as plain values; ``keys`` and ``values`` map a path to its (line, column) from 1."""

    file: str
    lines: list[str]
    data: Any = None
    key_positions: dict[ConfigPath, tuple[int, int]] = field(default_factory=dict)
    value_positions: dict[ConfigPath, tuple[int, int]] = field(default_factory=dict)
    errors: list[ConfigIssue] = field(default_factory=list)
    secret_lines: set[int] = field(default_factory=set)
    """Lines that hold a secret itself and not a reference to it; messages do not show them."""
    yaml11_booleans: dict[ConfigPath, str] = field(default_factory=dict)
    """Where a word stands that only YAML 1.1 takes for a boolean: yes, no, on, off."""
    end_lines: dict[ConfigPath, int] = field(default_factory=dict)
    """The line after each value."""

    def hide_value(self, path: ConfigPath) -> None:
        """Show nothing of what stands at ``path``: it is not what belongs there, and may be a secret."""
        place = self.key_positions.get(path) or self.value_positions.get(path)
        if place is not None:
            self.secret_lines.update(range(place[0], self.end_lines.get(path, place[0]) + 1))

    def locate(self, issues: Iterable[ConfigIssue]) -> list[LocatedIssue]:
        """Return these faults at their places, in file order, one per path and kind."""
        located: dict[object, LocatedIssue] = {}
        for fault in issues:
            located.setdefault((fault.path, fault.position, fault.warning_code), self._locate(fault))
        return sorted(located.values(), key=lambda at: (at.line, at.column))

    def _locate(self, fault: ConfigIssue) -> LocatedIssue:
        path, place = fault.path, fault.position
        first, second = (
            (self.key_positions, self.value_positions)
            if fault.is_on_key
            else (self.value_positions, self.key_positions)
        )
        while place is None:
            place = first.get(path) or second.get(path) or (None if path else (1, 1))
            path = path[:-1]
        line, column = place
        is_secret = line in self.secret_lines or any(part in SECRET_KEYS for part in fault.path)
        source = self.lines[line - 1] if line <= len(self.lines) and not is_secret else None
        return LocatedIssue(fault, line, column, source or self._masked_line(fault.path, (line, column)))

    def _masked_line(self, path: ConfigPath, place: tuple[int, int]) -> str | None:
        """Return the key in this line that a value belongs to, and nothing of the value."""
        line, column = place
        while path and (path not in self.key_positions or self.key_positions[path] > place):
            path = path[:-1]
        if not path or self.key_positions[path][0] != line:
            return None
        begin = self.key_positions[path][1]
        shown = f"{' ' * (begin - 1)}{path[-1]}: "
        return f"{shown:<{column - 1}}…"


def _position_of(mark: yaml.Mark) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def parse_yaml(text: str, file: str) -> YamlDocument:
    """Return the document in ``text``. Its ``faults`` are what can be told without the model.

    Raises ConfigError where the text is no YAML at all.
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
        document.errors.append(
            ConfigIssue((), "the file is empty; the least that it needs is sources and channels")
        )
    elif not isinstance(node, yaml.MappingNode):
        document.errors.append(ConfigIssue((), "must be a mapping of sections: server, sources, channels, …"))
    else:
        document.data = _convert_node(node, (), document)
    return document


def _convert_node(node: Any, path: ConfigPath, document: YamlDocument) -> Any:
    document.value_positions[path] = _position_of(node.start_mark)
    document.end_lines[path] = node.end_mark.line + 1
    if any(part in SECRET_KEYS for part in path) and not _ONLY_REFERENCES.fullmatch(str(node.value)):
        document.secret_lines.update(range(node.start_mark.line + 1, node.end_mark.line + 2))
    if node.tag == _TAG_PREFIX + "alias":
        document.errors.append(ConfigIssue(path, "aliases are not allowed; write the value out"))
        return None
    if node.tag.removeprefix(_TAG_PREFIX) not in _ALLOWED_TAGS:
        # A password that begins with ! is a tag to YAML.
        shown = "a tag" if any(part in SECRET_KEYS for part in path) else f"the tag {node.tag}"
        document.errors.append(ConfigIssue(path, f"{shown} is not allowed; write a plain value, or quote it"))
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
            document.errors.append(ConfigIssue(path, "a key must be plain text"))
            continue
        key = key_node.value
        place = (*path, key)
        if key_node.tag == _TAG_PREFIX + "merge":
            document.key_positions[place] = _position_of(key_node.start_mark)
            document.errors.append(
                ConfigIssue(place, "merge keys are not allowed; write the keys out", is_on_key=True)
            )
            continue
        if key in data:
            first = document.key_positions[place][0]
            message = f"the key {key!r} is already given in line {first}; remove one"
            document.errors.append(
                ConfigIssue(place, message, is_on_key=True, position=_position_of(key_node.start_mark))
            )
            continue
        document.key_positions[place] = _position_of(key_node.start_mark)
        if key_node.style is None and (why := typographic_error(key)) is not None:
            document.errors.append(ConfigIssue(place, why, is_on_key=True))
        data[key] = _convert_node(value_node, place, document)
    return data


def _yaml11_number(node: yaml.ScalarNode) -> int | float | None:
    """Return what a reader of YAML 1.1 makes of digits."""
    read = yaml.SafeLoader("")
    try:
        return (
            read.construct_yaml_int(node)
            if node.tag == _TAG_PREFIX + "int"
            else read.construct_yaml_float(node)
        )
    except ValueError:
        return None
    finally:
        read.dispose()


def _convert_scalar(node: yaml.ScalarNode, path: ConfigPath, document: YamlDocument) -> Any:
    text = node.value
    if node.style is not None:  # quoted, or a block scalar: text whatever it looks like
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
        # YAML 1.1 readers (and people) see a boolean, a base-60 number or a date here.
        quoted = f'"{text}"'
        right = f"write {quoted} for text, or true or false" if kind == "bool" else f"write {quoted} for text"
        if kind == "bool":
            document.yaml11_booleans[path] = text.lower()
        seen = {"bool": "a boolean", "timestamp": "a date"}.get(kind, "a number of its own kind")
        number = _yaml11_number(node) if kind in ("int", "float") else None
        if number is not None:
            seen, right = f"the number {number}", f"write {number} if that is meant, or {quoted} for text"
        if any(part in SECRET_KEYS for part in path):
            text, right = "this", "quote it"
        document.errors.append(ConfigIssue(path, f"{text} is {seen} to some YAML readers; {right}"))
    return text
