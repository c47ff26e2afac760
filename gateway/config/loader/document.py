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

from gateway.config.loader.faults import SECRET_KEYS, ConfigError, Fault, Located, Path
from gateway.config.loader.yaml_errors import trouble, typographic

MAX_BYTES = 16 * 2**20
"""Largest configuration file."""

_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset({"map", "seq", "str", "null", "bool", "int", "float", "timestamp", "merge", "value"})
_REFERENCES = re.compile(r"(\$\{[^}]*\}|file:.*)*")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class _Loader(yaml.SafeLoader):
    """Composes nodes; notes aliases and returns an empty scalar in their place."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases: list[yaml.Mark] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it bare
            self.aliases.append(event.start_mark)
            return yaml.ScalarNode(_TAG + "alias", "", event.start_mark, event.end_mark, style="'")
        return super().compose_node(parent, index)


@dataclass
class Document:
    """``data`` as plain values; ``keys`` and ``values`` map a path to its (line, column) from 1."""

    file: str
    lines: list[str]
    data: Any = None
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    secret_lines: set[int] = field(default_factory=set)
    """Lines that hold a secret itself and not a reference to it; messages do not show them."""
    words: dict[Path, str] = field(default_factory=dict)
    """Where a word stands that only YAML 1.1 takes for a boolean: yes, no, on, off."""
    ends: dict[Path, int] = field(default_factory=dict)
    """The line after each value."""

    def hide(self, path: Path) -> None:
        """Show nothing of what stands at ``path``: it is not what belongs there, and may be a secret."""
        place = self.keys.get(path) or self.values.get(path)
        if place is not None:
            self.secret_lines.update(range(place[0], self.ends.get(path, place[0]) + 1))

    def locate(self, faults: Iterable[Fault]) -> list[Located]:
        """Return these faults at their places, in file order, one per path and kind."""
        located: dict[object, Located] = {}
        for fault in faults:
            located.setdefault((fault.path, fault.at, fault.code), self._locate(fault))
        return sorted(located.values(), key=lambda at: (at.line, at.column))

    def _locate(self, fault: Fault) -> Located:
        path, place = fault.path, fault.at
        first, second = (self.keys, self.values) if fault.on_key else (self.values, self.keys)
        while place is None:
            place = first.get(path) or second.get(path) or (None if path else (1, 1))
            path = path[:-1]
        line, column = place
        is_secret = line in self.secret_lines or any(part in SECRET_KEYS for part in fault.path)
        source = self.lines[line - 1] if line <= len(self.lines) and not is_secret else None
        return Located(fault, line, column, source or self._masked(fault.path, (line, column)))

    def _masked(self, path: Path, place: tuple[int, int]) -> str | None:
        """Return the key in this line that a value belongs to, and nothing of the value."""
        line, column = place
        while path and (path not in self.keys or self.keys[path] > place):
            path = path[:-1]
        if not path or self.keys[path][0] != line:
            return None
        begin = self.keys[path][1]
        shown = f"{' ' * (begin - 1)}{path[-1]}: "
        return f"{shown:<{column - 1}}…"


def _at(mark: yaml.Mark) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def parse(text: str, file: str) -> Document:
    """Return the document in ``text``. Its ``faults`` are what can be told without the model.

    Raises ConfigError where the text is no YAML at all.
    """
    document = Document(file, text.splitlines())
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError) as error:
        line, column, message = trouble(error, text, document.lines)
        raise ConfigError(file, [Located(Fault((), message), line, column, None)]) from None
    if node is None:
        document.faults.append(
            Fault((), "the file is empty; the least that it needs is sources and channels")
        )
    elif not isinstance(node, yaml.MappingNode):
        document.faults.append(Fault((), "must be a mapping of sections: server, sources, channels, …"))
    else:
        document.data = _convert(node, (), document)
    return document


def _convert(node: Any, path: Path, document: Document) -> Any:
    document.values[path] = _at(node.start_mark)
    document.ends[path] = node.end_mark.line + 1
    if any(part in SECRET_KEYS for part in path) and not _REFERENCES.fullmatch(str(node.value)):
        document.secret_lines.update(range(node.start_mark.line + 1, node.end_mark.line + 2))
    if node.tag == _TAG + "alias":
        document.faults.append(Fault(path, "aliases are not allowed; write the value out"))
        return None
    if node.tag.removeprefix(_TAG) not in _TAGS:
        # A password that begins with ! is a tag to YAML.
        shown = "a tag" if any(part in SECRET_KEYS for part in path) else f"the tag {node.tag}"
        document.faults.append(Fault(path, f"{shown} is not allowed; write a plain value, or quote it"))
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item, (*path, index), document) for index, item in enumerate(node.value)]
    return _scalar(node, path, document)


def _mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            document.faults.append(Fault(path, "a key must be plain text"))
            continue
        key = key_node.value
        place = (*path, key)
        if key_node.tag == _TAG + "merge":
            document.keys[place] = _at(key_node.start_mark)
            document.faults.append(
                Fault(place, "merge keys are not allowed; write the keys out", on_key=True)
            )
            continue
        if key in data:
            first = document.keys[place][0]
            message = f"the key {key!r} is already given in line {first}; remove one"
            document.faults.append(Fault(place, message, on_key=True, at=_at(key_node.start_mark)))
            continue
        document.keys[place] = _at(key_node.start_mark)
        if key_node.style is None and (why := typographic(key)) is not None:
            document.faults.append(Fault(place, why, on_key=True))
        data[key] = _convert(value_node, place, document)
    return data


def _number(node: yaml.ScalarNode) -> int | float | None:
    """Return what a reader of YAML 1.1 makes of digits."""
    read = yaml.SafeLoader("")
    try:
        return read.construct_yaml_int(node) if node.tag == _TAG + "int" else read.construct_yaml_float(node)
    except ValueError:
        return None
    finally:
        read.dispose()


def _scalar(node: yaml.ScalarNode, path: Path, document: Document) -> Any:
    text = node.value
    if node.style is not None:  # quoted, or a block scalar: text whatever it looks like
        return text
    if (why := typographic(text)) is not None:
        document.faults.append(Fault(path, why))
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) and len(text) < 20:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    kind = node.tag.removeprefix(_TAG)
    if kind in ("bool", "int", "float", "timestamp"):
        # YAML 1.1 readers (and people) see a boolean, a base-60 number or a date here.
        quoted = f'"{text}"'
        right = f"write {quoted} for text, or true or false" if kind == "bool" else f"write {quoted} for text"
        if kind == "bool":
            document.words[path] = text.lower()
        seen = {"bool": "a boolean", "timestamp": "a date"}.get(kind, "a number of its own kind")
        number = _number(node) if kind in ("int", "float") else None
        if number is not None:
            seen, right = f"the number {number}", f"write {number} if that is meant, or {quoted} for text"
        if any(part in SECRET_KEYS for part in path):
            text, right = "this", "quote it"
        document.faults.append(Fault(path, f"{text} is {seen} to some YAML readers; {right}"))
    return text
