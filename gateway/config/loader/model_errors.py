"""What the model refuses, told at the place in the file, in YAML's words and with the mend."""

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

_MISPLACED_VALUE_ERRORS = frozenset(
    {"extra_forbidden", "model_type", "model_attributes_type", "dict_type", "list_type"}
)
"""Faults of values that nobody knows: a URL with its password below a misspelled key, say."""


def issues_of_validation_error(
    error: ValidationError, document: YamlDocument, data: Any
) -> Iterator[ConfigIssue]:
    """Yield the mistakes in ``data``, which is the document's with its references resolved."""
    for detail in error.errors(include_url=False, include_input=False):
        if any(str(part).startswith("literal[") for part in detail["loc"]):
            continue  # the other half of "none or a mapping"; its mapping half is the one that was meant
        fault = _issue_of_detail(detail, document, data)
        if detail["type"] in _MISPLACED_VALUE_ERRORS:
            document.hide_value(fault.path)
        yield fault


def yaml11_boolean_issues(document: YamlDocument) -> Iterator[ConfigIssue]:
    """Yield a mistake for each yes, no, on and off, with what the setting takes in its place."""
    for path, word in document.yaml11_booleans.items():
        yield ConfigIssue(path, _boolean_word_message(word, path, document))


def _boolean_word_message(word: str, path: ConfigPath, document: YamlDocument) -> str:
    nodes = value_schemas_at(config_json_schema(), path, document.data)
    types = {str(node.get("type")) for node in nodes}
    listed = [each for node in nodes for each in node.get("enum", [node.get("const")]) if each is not None]
    title = next((node["title"] for node in nodes if node.get("title") in ("duration", "size", "rate")), "")
    is_on = word in ("yes", "on", "y")
    shown = "the word" if any(part in SECRET_KEYS for part in path) else word
    meant = f"{shown} is {'true' if is_on else 'false'} in YAML 1.1 alone"
    if True in listed:
        return (
            f"{meant}; write true" if is_on else f"{meant}, and this setting can be true only; leave it out"
        )
    if "boolean" in types:
        return f"{meant}; write {'true' if is_on else 'false'}"
    if not is_on and "none" in listed:
        return f"{meant}; none switches this off"
    if not is_on and "null" in types:
        is_told = "null:" in description_at(config_json_schema(), path, document.data)
        return f"{meant}; {'null switches this off' if is_told else 'leave it out, and there is none'}"
    if title:
        zero = any(str(node.get("pattern", "")).startswith("^(?:0s|") for node in nodes)
        off = "0s switches it off" if zero else "leave it out for the default, or choose a large one"
        example = next((str(each) for node in nodes for each in node.get("examples", ())), "15s")
        return f"must be a {title}, such as {example}, and is {shown}; {off}"
    if "integer" in types:
        return f"must be a whole number, and is {shown}"
    if "array" in types:
        return f"must be a list, such as [a, b], and is {shown}; leave it out, and it is the default"
    if listed and listed != [None]:
        return f"must be {_join_alternatives([str(each) for each in listed])}, and is {shown}"
    if any("properties" in node or "additionalProperties" in node for node in nodes):
        return f"must be a mapping of keys to values, and is {shown}; leave it out, and it is the default"
    quoted = "quote it" if shown != word else f'write "{word}"'
    return f"{meant}; {quoted} if text is meant"


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
            (*path, "type"), f"{tag!r} is not a type of source; {suggest_nearest(str(tag), SOURCE_TYPES)}"
        )
    value = _value_at(path, data)
    return ConfigIssue(path, _error_message(kind, detail["msg"], context, value, document, path))


def _suggest_key(path: ConfigPath, document: YamlDocument) -> str:
    """Return which key was meant: one of this section, or the section that this one belongs to."""
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
            "is required: a channel without a rule has no readers; write access: public, token or {claims: …}"
        )
    if path[-1] == "verify":
        return 'is required: nobody may post without a rule; write: {bearer: ["${TOKEN}"]} or {none: true}'
    if path == ("channels",):
        return "is required: what clients subscribe to, such as orders: {from: […], access: public}"
    text = description_at(config_json_schema(), path, document.data)
    return f"is required: {text}" if text else "is required"


def _error_message(
    kind: str, message: str, context: Mapping[str, Any], value: Any, document: YamlDocument, path: ConfigPath
) -> str:
    match kind:
        case "literal_error":
            expected = str(context["expected"])
            if expected == "True":
                return "must be true; leave it out otherwise"
            return f"must be {expected}{_suggest_literal(value, expected)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return _not_a_mapping_message(value)
        case "list_type":
            mend = "; put it in brackets" if isinstance(value, (str, int, float)) else ""
            return f"must be a list, such as [a, b], and is {describe_yaml_type(value)}{mend}"
        case "string_type":
            mend = "; quote it" if isinstance(value, (bool, int, float)) else ""
            return f"must be text, and is {describe_yaml_type(value)}{mend}"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return f"must be a whole number, and is {_describe_number(value)}"
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
        return "is empty; remove it, or write its keys below it, indented"
    text = f"must be a mapping of keys to values, and is {describe_yaml_type(value)}"
    if isinstance(value, str) and ":" in value:
        return f"{text}; is there a space missing after a colon?"
    return text


def _describe_number(value: Any) -> str:
    return "a fraction" if isinstance(value, float) else describe_yaml_type(value)


def _suggest_literal(value: Any, expected: str) -> str:
    """Return a hint that quotes the right word, and never the wrong one: that may be a secret."""
    words = expected.split("'")[1::2]
    close = suggest_nearest(value, words) if isinstance(value, str) else ""
    if isinstance(value, (int, float)) and str(value) in words:
        return f"; quote it: '{value}'"
    return f"; {close}" if close.startswith("did") else ""


def _value_at(path: ConfigPath, data: Any) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _document_path(loc: tuple[str | int, ...], document: YamlDocument) -> ConfigPath:
    """Return pydantic's location without what the file does not have: union tags and ``[key]``."""
    path: ConfigPath = ()
    for position, part in enumerate(loc):
        longer = (*path, part)
        if longer in document.value_positions or longer in document.key_positions or position == len(loc) - 1:
            path = longer
    return path[:-1] if path and path[-1] == "[key]" else path
