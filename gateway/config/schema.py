"""The JSON Schema of the configuration, for editors and for hints."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from gateway.config.loader.faults import Path
from gateway.config.model import patterns
from gateway.config.model.config import Config


@cache
def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that ``config/schema.json`` holds."""
    schema = Config.model_json_schema(by_alias=True)
    _let_words_be_references(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _let_words_be_references(node: dict[str, Any]) -> None:
    """Let a reference stand for one of several words, but for the type of a source, which editors ask for."""
    for key, below in node.get("properties", {}).items():
        if key != "type":
            _let_word(below)
    for each in (node.get("items"), node.get("additionalProperties"), *node.get("anyOf", ())):
        if isinstance(each, dict):
            _let_word(each)
    for below in node.get("$defs", {}).values():
        _let_words_be_references(below)


def _let_word(node: dict[str, Any]) -> None:
    words = node.get("enum") or [node.get("const")]
    if isinstance(words[0], str):
        moved = {word: node.pop(word) for word in ("enum", "const", "type") if word in node}
        node["anyOf"] = [moved, {"type": "string", "pattern": f"^(?:{patterns.REFERENCE})$"}]
    else:
        _let_words_be_references(node)


def keys_at(schema: dict[str, Any], path: Path, data: Any) -> list[str]:
    """Return the keys that the schema knows at ``path``; ``data`` tells which source is meant."""
    return sorted({key for node in _nodes(schema, path, data) for key in node.get("properties", {})})


def kinds_at(schema: dict[str, Any], path: Path, data: Any) -> list[dict[str, Any]]:
    """Return what the value at ``path`` may be, one schema for each kind."""
    return _nodes(schema, path, data)


def described(schema: dict[str, Any], path: Path, data: Any) -> str:
    """Return what the schema says that the key at ``path`` is for; empty where it says nothing."""
    for node in _nodes(schema, path[:-1], data):
        below = node.get("properties", {}).get(path[-1], {})
        if "description" in below:
            return str(below["description"])
    return ""


def _nodes(schema: dict[str, Any], path: Path, data: Any) -> list[dict[str, Any]]:
    nodes = [schema]
    for part in path:
        nodes = [step for node in nodes for step in _step(node, part, schema)]
        data = data.get(part) if isinstance(data, dict) else None  # no list holds sources
        nodes = [branch for node in nodes for branch in _branches(node, schema)]
    return [node for node in nodes if _meant(node, data)]


def _step(node: dict[str, Any], part: str | int, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(part, int):
        below = node.get("items")
    else:
        below = node.get("properties", {}).get(part) or node.get("additionalProperties")
    if isinstance(below, dict):
        yield below


def _branches(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        yield from _branches(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
        return
    parts = [part for word in ("anyOf", "oneOf") for part in node.get(word, ())]
    for part in parts:
        yield from _branches(part, schema)
    if not parts:
        yield node


def _meant(node: dict[str, Any], data: Any) -> bool:
    tag = node.get("properties", {}).get("type", {}).get("const")
    return tag is None or not isinstance(data, dict) or "type" not in data or bool(data["type"] == tag)
