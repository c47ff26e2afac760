"""What the model refuses, told at the place in the file, in YAML's words and with the mend."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.loader.document import Document
from gateway.config.loader.faults import SECRET_KEYS, Fault, Path, nearest
from gateway.config.model.config import Config
from gateway.config.model.sources import TYPES
from gateway.config.model.units import kind_of
from gateway.config.schema import described, json_schema, keys_at, kinds_at

_MISPLACED = frozenset({"extra_forbidden", "model_type", "model_attributes_type", "dict_type", "list_type"})
"""Faults of values that nobody knows: a URL with its password below a misspelled key, say."""


def refusals(error: ValidationError, document: Document, data: Any) -> Iterator[Fault]:
    """Yield the mistakes in ``data``, which is the document's with its references resolved."""
    for detail in error.errors(include_url=False, include_input=False):
        if any(str(part).startswith("literal[") for part in detail["loc"]):
            continue  # the other half of "none or a mapping"; its mapping half is the one that was meant
        fault = _fault(detail, document, data)
        if detail["type"] in _MISPLACED:
            document.hide(fault.path)
        yield fault


def words(document: Document) -> Iterator[Fault]:
    """Yield a mistake for each yes, no, on and off, with what the setting takes in its place."""
    for path, word in document.words.items():
        yield Fault(path, _right_word(word, path, document))


def _right_word(word: str, path: Path, document: Document) -> str:
    nodes = kinds_at(json_schema(), path, document.data)
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
        is_told = "null:" in described(json_schema(), path, document.data)
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
        return f"must be {_either([str(each) for each in listed])}, and is {shown}"
    if any("properties" in node or "additionalProperties" in node for node in nodes):
        return f"must be a mapping of keys to values, and is {shown}; leave it out, and it is the default"
    quoted = "quote it" if shown != word else f'write "{word}"'
    return f"{meant}; {quoted} if text is meant"


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _fault(detail: ErrorDetails, document: Document, data: Any) -> Fault:
    path = _path(detail["loc"], document)
    kind, context = detail["type"], detail.get("ctx", {})
    if detail["loc"] and detail["loc"][-1] == "[key]":
        return Fault(path, detail["msg"], on_key=True)
    if kind == "extra_forbidden":
        return Fault(path, f"unknown key; {_meant(path, document)}", on_key=True)
    if kind == "missing":
        return Fault(path, _missing(path, document), on_key=True)
    if kind == "union_tag_not_found":
        return Fault((*path, "type"), f"is required: one of {', '.join(TYPES)}", on_key=True)
    if kind == "union_tag_invalid":
        tag = context["tag"]
        return Fault((*path, "type"), f"{tag!r} is not a type of source; {nearest(str(tag), TYPES)}")
    value = _at(path, data)
    return Fault(path, _sentence(kind, detail["msg"], context, value, document, path))


def _meant(path: Path, document: Document) -> str:
    """Return which key was meant: one of this section, or the section that this one belongs to."""
    key = str(path[-1])
    known = keys_at(json_schema(), path[:-1], document.data)
    close = nearest(key, known)
    if close.startswith("did"):
        return close
    homes = [name for name in Config.model_fields if key in keys_at(json_schema(), (name,), None)]
    if homes and len(path) <= 2:
        return f"it belongs in {' or '.join(homes)}"
    return close


def _missing(path: Path, document: Document) -> str:
    if path[-1] == "access":
        return (
            "is required: a channel without a rule has no readers; write access: public, token or {claims: …}"
        )
    if path[-1] == "verify":
        return 'is required: nobody may post without a rule; write: {bearer: ["${TOKEN}"]} or {none: true}'
    if path == ("channels",):
        return "is required: what clients subscribe to, such as orders: {from: […], access: public}"
    text = described(json_schema(), path, document.data)
    return f"is required: {text}" if text else "is required"


def _sentence(
    kind: str, message: str, context: Mapping[str, Any], value: Any, document: Document, path: Path
) -> str:
    match kind:
        case "literal_error":
            expected = str(context["expected"])
            if expected == "True":
                return "must be true; leave it out otherwise"
            return f"must be {expected}{_near(value, expected)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return _no_mapping(value)
        case "list_type":
            mend = "; put it in brackets" if isinstance(value, (str, int, float)) else ""
            return f"must be a list, such as [a, b], and is {kind_of(value)}{mend}"
        case "string_type":
            mend = "; quote it" if isinstance(value, (bool, int, float)) else ""
            return f"must be text, and is {kind_of(value)}{mend}"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return f"must be a whole number, and is {_number(value)}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "too_short" | "string_too_short":
            text = described(json_schema(), path, document.data)
            return f"must not be empty: {text}" if text else "must not be empty"
    return message


def _no_mapping(value: Any) -> str:
    if value is None:
        return "is empty; remove it, or write its keys below it, indented"
    text = f"must be a mapping of keys to values, and is {kind_of(value)}"
    if isinstance(value, str) and ":" in value:
        return f"{text}; is there a space missing after a colon?"
    return text


def _number(value: Any) -> str:
    return "a fraction" if isinstance(value, float) else kind_of(value)


def _near(value: Any, expected: str) -> str:
    """Return a hint that quotes the right word, and never the wrong one: that may be a secret."""
    words = expected.split("'")[1::2]
    close = nearest(value, words) if isinstance(value, str) else ""
    if isinstance(value, (int, float)) and str(value) in words:
        return f"; quote it: '{value}'"
    return f"; {close}" if close.startswith("did") else ""


def _at(path: Path, data: Any) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _path(loc: tuple[str | int, ...], document: Document) -> Path:
    """Return pydantic's location without what the file does not have: union tags and ``[key]``."""
    path: Path = ()
    for position, part in enumerate(loc):
        longer = (*path, part)
        if longer in document.values or longer in document.keys or position == len(loc) - 1:
            path = longer
    return path[:-1] if path and path[-1] == "[key]" else path
