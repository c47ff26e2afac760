"""Translates pydantic's validation errors to issues with a path in the file, in YAML's terms, with a fix."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.loader.document import YamlDocument
from gateway.config.loader.issues import SECRET_KEYS, ConfigIssue, ConfigPath, suggest_nearest
from gateway.config.model.config import Config
from gateway.config.model.sources import SOURCE_TYPES
from gateway.config.model.value_types import describe_yaml_type
from gateway.config.schema import config_json_schema, description_at, known_keys_at, value_schemas_at
from gateway.config.validation.raw_data import value_at

_MISPLACED_VALUE_ERRORS = frozenset(
    {"extra_forbidden", "model_type", "model_attributes_type", "dict_type", "list_type"}
)
"""Errors whose value may be anything, such as a URL with its password below a misspelled key."""


def issues_of_validation_error(
    error: ValidationError, document: YamlDocument, data: Any
) -> Iterator[ConfigIssue]:
    """Yield the errors in ``data``, which is the document's with its references resolved."""
    for detail in error.errors(include_url=False, include_input=False):
        if any(str(part).startswith("literal[") for part in detail["loc"]):
            continue  # of "none or a mapping", the mapping's error is the helpful one
        issue = _issue_of_detail(detail, document, data)
        if detail["type"] in _MISPLACED_VALUE_ERRORS:
            document.hide_value(issue.path)
        yield issue


def yaml11_boolean_issues(document: YamlDocument) -> Iterator[ConfigIssue]:
    """Yield an error for each yes, no, on and off, with the value that the setting takes instead."""
    for path, word in document.yaml11_booleans.items():
        yield ConfigIssue(path, _boolean_word_message(word, path, document))


def _boolean_word_message(word: str, path: ConfigPath, document: YamlDocument) -> str:
    nodes = value_schemas_at(config_json_schema(), path, document.data)
    types = {str(node.get("type")) for node in nodes}
    listed = [each for node in nodes for each in node.get("enum", [node.get("const")]) if each is not None]
    title = next((node["title"] for node in nodes if node.get("title") in ("duration", "size", "rate")), "")
    is_on = word in ("yes", "on", "y")
    shown = "the word" if any(part in SECRET_KEYS for part in path) else word
    meant = f"{shown} is {'true' if is_on else 'false'} in YAML 1.1 only"
    if True in listed:
        return (
            f"{meant}; write true" if is_on else f"{meant}, and this setting can only be true; remove the key"
        )
    if "boolean" in types:
        return f"{meant}; write {'true' if is_on else 'false'}"
    if not is_on and "none" in listed:
        return f"{meant}; write none to disable this"
    if not is_on and "null" in types:
        is_documented = "null:" in description_at(config_json_schema(), path, document.data)
        return f"{meant}; {'write null to disable this' if is_documented else 'remove the key for none'}"
    if title:
        zero = any(str(node.get("pattern", "")).startswith("^(?:0s|") for node in nodes)
        off = "write 0s to disable it" if zero else "remove the key for the default, or choose a large value"
        example = next((str(each) for node in nodes for each in node.get("examples", ())), "15s")
        return f"must be a {title}, such as {example}, and is {shown}; {off}"
    if "integer" in types:
        return f"must be a whole number, and is {shown}"
    if "array" in types:
        return f"must be a list, such as [a, b], and is {shown}; remove the key for the default"
    if listed and listed != [None]:
        return f"must be {_join_alternatives([str(each) for each in listed])}, and is {shown}"
    if any("properties" in node or "additionalProperties" in node for node in nodes):
        return f"must be a mapping of keys to values, and is {shown}; remove the key for the default"
    quoted = "quote it" if shown != word else f'write "{word}"'
    return f"{meant}; {quoted} for text"


def _join_alternatives(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _issue_of_detail(detail: ErrorDetails, document: YamlDocument, data: Any) -> ConfigIssue:
    path = _document_path(detail["loc"], document)
    kind, context = detail["type"], detail.get("ctx", {})
    if detail["loc"] and detail["loc"][-1] == "[key]":
        return ConfigIssue(path, detail["msg"], is_on_key=True)
    if kind == "extra_forbidden":
        return ConfigIssue(path, f"unknown key; {_suggest_key(path, document)}", is_on_key=True)
    if kind == "missing":
        return ConfigIssue(path, _missing_message(path, document), is_on_key=True)
    if kind == "union_tag_not_found":
        return ConfigIssue((*path, "type"), f"is required: one of {', '.join(SOURCE_TYPES)}", is_on_key=True)
    if kind == "union_tag_invalid":
        tag = context["tag"]
        return ConfigIssue(
            (*path, "type"), f"{tag!r} is not a source type; {suggest_nearest(str(tag), SOURCE_TYPES)}"
        )
    value = value_at(path, data)
    return ConfigIssue(path, _error_message(kind, detail["msg"], context, value, document, path))


def _suggest_key(path: ConfigPath, document: YamlDocument) -> str:
    """Return a hint for an unknown key: a similar key of this section, or the section that has it."""
    key = str(path[-1])
    known = known_keys_at(config_json_schema(), path[:-1], document.data)
    close = suggest_nearest(key, known)
    if close.startswith("did"):
        return close
    homes = [
        name for name in Config.model_fields if key in known_keys_at(config_json_schema(), (name,), None)
    ]
    if homes and len(path) <= 2:
        return f"it belongs in {' or '.join(homes)}"
    return close


def _missing_message(path: ConfigPath, document: YamlDocument) -> str:
    if path[-1] == "access":
        return (
            "is required: without a rule nobody may read; write access: public, token, forward or {claims: …}"
        )
    if path[-1] == "verify":
        return 'is required: without a rule nobody may post; write {bearer: ["${TOKEN}"]}, or {none: true}'
    if path == ("channels",):
        return "is required: clients subscribe to them; write for example orders: {from: […], access: public}"
    text = description_at(config_json_schema(), path, document.data)
    return f"is required: {text}" if text else "is required"


def _error_message(
    kind: str, message: str, context: Mapping[str, Any], value: Any, document: YamlDocument, path: ConfigPath
) -> str:
    match kind:
        case "literal_error":
            expected = str(context["expected"])
            if expected == "True":
                return "must be true, or the key removed"
            return f"must be {expected}{_suggest_literal(value, expected)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return _not_a_mapping_message(value)
        case "list_type":
            fix = "; put it in brackets" if isinstance(value, (str, int, float)) else ""
            return f"must be a list, such as [a, b], and is {describe_yaml_type(value)}{fix}"
        case "string_type":
            fix = "; quote it" if isinstance(value, (bool, int, float)) else ""
            return f"must be text, and is {describe_yaml_type(value)}{fix}"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            shown = "a fraction" if isinstance(value, float) else describe_yaml_type(value)
            return f"must be a whole number, and is {shown}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "too_short" | "string_too_short":
            text = description_at(config_json_schema(), path, document.data)
            return f"must not be empty: {text}" if text else "must not be empty"
    return message


def _not_a_mapping_message(value: Any) -> str:
    if value is None:
        return "is empty; remove it, or indent its keys below it"
    text = f"must be a mapping of keys to values, and is {describe_yaml_type(value)}"
    if isinstance(value, str) and ":" in value:
        return f"{text}; is a space missing after a colon?"
    return text


def _suggest_literal(value: Any, expected: str) -> str:
    """Return a hint that quotes the expected word, and never the value: that may be a secret."""
    words = expected.split("'")[1::2]
    close = suggest_nearest(value, words) if isinstance(value, str) else ""
    if isinstance(value, (int, float)) and str(value) in words:
        return f"; quote it: '{value}'"
    return f"; {close}" if close.startswith("did") else ""


def _document_path(loc: tuple[str | int, ...], document: YamlDocument) -> ConfigPath:
    """Return pydantic's location without parts that are not in the file: union tags and ``[key]``."""
    path: ConfigPath = ()
    for position, part in enumerate(loc):
        longer = (*path, part)
        if longer in document.value_positions or longer in document.key_positions or position == len(loc) - 1:
            path = longer
    return path[:-1] if path and path[-1] == "[key]" else path
