"""The JSON Schema of the configuration, for editors and for hints."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from gateway.config.faults import Path
from gateway.config.model import Config


@cache
def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that ``config/schema.json`` holds."""
    schema = Config.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def keys_at(schema: dict[str, Any], path: Path, data: Any) -> list[str]:
    """Return the keys that the schema knows at ``path``; ``data`` tells which source is meant."""
    nodes = [schema]
    for part in path:
        nodes = [step for node in nodes for step in _step(node, part, schema)]
        data = data.get(part) if isinstance(data, dict) else None  # no list holds sources
        nodes = [branch for node in nodes for branch in _branches(node, schema)]
    return sorted({key for node in nodes if _meant(node, data) for key in node.get("properties", {})})


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
    parts = [part for word in ("anyOf", "oneOf", "allOf") for part in node.get(word, ())]
    for part in parts:
        yield from _branches(part, schema)
    if not parts:
        yield node


def _meant(node: dict[str, Any], data: Any) -> bool:
    tag = node.get("properties", {}).get("type", {}).get("const")
    return tag is None or not isinstance(data, dict) or "type" not in data or bool(data["type"] == tag)
