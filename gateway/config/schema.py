"""The JSON Schema of the configuration, for editors and for hints."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from gateway.config.loader.issues import ConfigPath
from gateway.config.model import patterns
from gateway.config.model.config import Config


@cache
def config_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that ``config/schema.json`` holds."""
    schema = Config.model_json_schema(by_alias=True)
    _allow_references_for_enums(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _allow_references_for_enums(node: dict[str, Any]) -> None:
    """Allow a reference in place of an enum's words, except for the type of a source, which editors need."""
    for key, below in node.get("properties", {}).items():
        if key != "type":
            _allow_reference(below)
    for each in (node.get("items"), node.get("additionalProperties"), *node.get("anyOf", ())):
        if isinstance(each, dict):
            _allow_reference(each)
    for below in node.get("$defs", {}).values():
        _allow_references_for_enums(below)


def _allow_reference(node: dict[str, Any]) -> None:
    words = node.get("enum") or [node.get("const")]
    if isinstance(words[0], str):
        moved = {word: node.pop(word) for word in ("enum", "const", "type") if word in node}
        node["anyOf"] = [moved, {"type": "string", "pattern": f"^(?:{patterns.REFERENCE})$"}]
    else:
        _allow_references_for_enums(node)


def known_keys_at(schema: dict[str, Any], path: ConfigPath, data: Any) -> list[str]:
    """Return the keys that are valid at ``path``; the type of a source is taken from ``data``."""
    return sorted(
        {key for node in value_schemas_at(schema, path, data) for key in node.get("properties", {})}
    )


def value_schemas_at(schema: dict[str, Any], path: ConfigPath, data: Any) -> list[dict[str, Any]]:
    """Return the schemas of the value at ``path``, one for each alternative."""
    nodes = [schema]
    for part in path:
        nodes = [step for node in nodes for step in _child_schemas(node, part, schema)]
        data = data.get(part) if isinstance(data, dict) else None  # no list holds sources
        nodes = [branch for node in nodes for branch in _flatten_unions(node, schema)]
    return [node for node in nodes if _matches_source_type(node, data)]


def description_at(schema: dict[str, Any], path: ConfigPath, data: Any) -> str:
    """Return the description of the key at ``path``, or the empty text."""
    for node in value_schemas_at(schema, path[:-1], data):
        below = node.get("properties", {}).get(path[-1], {})
        if "description" in below:
            return str(below["description"])
    return ""


def _child_schemas(node: dict[str, Any], part: str | int, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(part, int):
        below = node.get("items")
    else:
        below = node.get("properties", {}).get(part) or node.get("additionalProperties")
    if isinstance(below, dict):
        yield below


def _flatten_unions(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        yield from _flatten_unions(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
        return
    parts = [part for word in ("anyOf", "oneOf") for part in node.get(word, ())]
    for part in parts:
        yield from _flatten_unions(part, schema)
    if not parts:
        yield node


def _matches_source_type(node: dict[str, Any], data: Any) -> bool:
    tag = node.get("properties", {}).get("type", {}).get("const")
    return tag is None or not isinstance(data, dict) or "type" not in data or bool(data["type"] == tag)
