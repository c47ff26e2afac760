"""Writes the generated docs from the code: ``python docs/reference.py``.

They are configuration.md, metrics.md, commands.md, and the table of ``/status`` in operations.md.

A test fails when the files are not what this prints, so a key or a metric cannot go undocumented.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec.inspect import Field, ListType, Metadata, NoneType, StructType, UnionType, type_info

from gateway.admin.status_report import StatusReport
from gateway.cli.main import COMMANDS, command_parsers
from gateway.config.schema import config_json_schema
from gateway.observability.metrics.definitions import DEFINITIONS

FOLDER = Path(__file__).parent

STATUS_TABLE = re.compile(r"(?s)(## Status\n.*?\n\n)\| key.*?(?=\n\n)")
"""The generated table of operations.md, with what stands above it."""

_HEAD = """# Configuration

Generated from the model by `python docs/reference.py`. `config/gateway.yaml` shows every section in use;
`config/schema.json` makes editors complete and check it (the first line of the shipped files names it).

Values: durations and sizes carry a unit: `250ms`, `15s`, `5m`, `12h`, `1d`; `512B`, `256KiB`, `16MiB`, `1GB`.
`${NAME}` and `${NAME:-default}` stand for environment variables and `file:/run/secrets/name` for a file's
content, in values only, after parsing; `$${` writes a literal `${`. An unset or empty variable without a
default is a mistake, and so is `$NAME` without braces. Relative paths of files start at the folder of the
configuration. Unknown keys, duplicate keys, aliases, and words that YAML 1.1 and 1.2 read differently
(`no`, `12:30`) are mistakes too.

| key | value | default | |
|---|---|---|---|
"""

_NAMED = {"sources": "<name>", "channels": "<name>", "claims": "<claim>", "fields": "<field>"}


_OF_NAMED = {
    "claims": "must be this, or be in the token's list",
    "fields": "names places of the record: `{key}`, `{headers.x}`, `{/json/pointer}`",
}


def configuration() -> str:
    """Return docs/configuration.md."""
    schema = config_json_schema()
    return _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in _rows(schema, schema, ""))


def _rows(node: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[tuple[str, str, str, str]]:
    for key, below in node.get("properties", {}).items():
        place = f"{path}.{key}" if path else key
        kinds = list(_kinds(below, schema))
        leaves = [kind for kind in kinds if "properties" not in kind and "additionalProperties" not in kind]
        if leaves:
            values = " or ".join(dict.fromkeys(text for kind in leaves for text in _value(kind, schema)))
            default = "required" if key in node.get("required", ()) else _default(below.get("default"))
            yield f"`{place}`", values, default, below.get("description", "")
        for kind in kinds:
            yield from _rows(kind, schema, place)
            items = kind.get("items")
            if isinstance(items, dict):
                for item in _kinds(items, schema):
                    yield from _rows(item, schema, f"{place}[]")
            named = kind.get("additionalProperties")
            if isinstance(named, dict):
                for each in _kinds(named, schema):
                    if "properties" not in each:
                        yield f"`{place}.{_NAMED[key]}`", "text", "", _OF_NAMED[key]
                    tag = each.get("properties", {}).get("type", {}).get("const")
                    yield from _rows(each, schema, f"{place}.{_NAMED[key]}" + (f" ({tag})" if tag else ""))


def _kinds(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        yield from _kinds(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
        return
    parts = [part for word in ("anyOf", "oneOf") for part in node.get(word, ())]
    for part in parts:
        yield from _kinds(part, schema)
    if not parts and node.get("type") != "null":
        yield node


def _value(kind: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    if "enum" in kind or "const" in kind:
        yield ", ".join(
            f"`{value}`".replace("True", "true") for value in kind.get("enum", [kind.get("const")])
        )
    elif kind.get("type") == "array":
        inner = ", ".join(
            dict.fromkeys(text for item in _kinds(kind["items"], schema) for text in _value(item, schema))
        )
        yield f"list of {inner}" if inner else "list"
    elif "examples" in kind:
        yield f"{kind['title']} (`{kind['examples'][0]}`)"
    elif kind.get("type") == "string" and "pattern" in kind:
        return  # the reference to a variable, which stands for the type beside it
    else:
        yield {"integer": "number", "boolean": "`true`, `false`", "string": "text"}.get(
            kind.get("type", ""), "mapping"
        )


def _default(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`{', '.join(value)}`" if value else "none"
    return f"`{value}`"


def metrics() -> str:
    """Return docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Generated by `python docs/reference.py`. All of them are on `GET /metrics` of the admin port.",
        "",
        "With workers one scrape tells of all: counters and histograms are added up, gauges as *of workers*",
        "says. `channel` is always the declared name (`user.{id}`), never an instance. No address, user or",
        "id is ever a label. Where reasons or results are listed here, they are there at 0 from the start.",
        "",
        "[`deploy/grafana/sse-gateway.json`](../deploy/grafana/sse-gateway.json) shows them,",
        "[`deploy/prometheus/alerts.yaml`](../deploy/prometheus/alerts.yaml) pages on them, and",
        "[runbook.md](runbook.md) says what to do then.",
        "",
        "| metric | type | of workers | labels | |",
        "|---|---|---|---|---|",
    ]
    for each in sorted(DEFINITIONS, key=lambda each: each.name):
        labels = ", ".join(f"`{label}`" for label in each.labels)
        values = ", ".join(f"`{value}`" for value in each.label_values)
        text = ". ".join(filter(None, (each.help_text, values, each.note.removesuffix("."))))
        merge = each.merge_rule if each.type == "gauge" else "sum"
        lines.append(f"| `{each.name}` | {each.type} | {merge} | {labels} | {text} |")
    return "\n".join(lines) + "\n"


_COMMANDS = """# Commands

Generated from the parsers by `python docs/reference.py`; `sse-gateway COMMAND --help` says the same.

`--config` is where it is not given `$SSE_GATEWAY_CONFIG`, else `config/gateway.yaml`. Wrong usage exits 2,
with the usage on standard error. Options may stand before, between and after the other arguments.
"""


def commands() -> str:
    """Return docs/commands.md."""
    parts = [_COMMANDS]
    for name, command in command_parsers().items():
        actions = [action for action in command._actions if action.dest != "help"]
        positional = [_shape(action) for action in actions if not action.option_strings]
        usage = " ".join(
            [f"sse-gateway {name}", *positional, *(["[OPTION]..."] if len(actions) > len(positional) else [])]
        )
        told = COMMANDS[name][1]
        parts += [f"\n## `{name}`\n\n{told[:1].upper()}{told[1:]}.\n\n```\n{usage}\n```\n"]
        if actions:
            parts += ["\n| argument | |\n|---|---|\n", *(_argument(action) for action in actions)]
        if command.epilog:
            parts.append(f"\n```\n{command.epilog}\n```\n")
    return "".join(parts)


def _shape(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return {"?": f"[{name}]", "+": f"{name}...", "*": f"[{name}]..."}.get(str(action.nargs), name)


def _argument(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or _shape(action)
    if action.option_strings and action.nargs != 0:
        names += " " + (f"{{{','.join(action.choices)}}}" if action.choices else str(action.metavar))
    told = (action.help or "").replace("|", "\\|").replace("%%", "%")
    return f"| `{names}` | {told} |\n"


def status() -> str:
    """Return the table of the keys of ``/status``, which stands in docs/operations.md."""
    report = type_info(StatusReport)
    assert isinstance(report, StructType)
    rows = (f"| `{field.encode_name}{suffix}` | {about} |" for field, suffix, about in _described(report))
    return "\n".join(["| key | value |", "|---|---|", *rows])


def _described(section: StructType) -> Iterator[tuple[Field, str, str]]:
    """Yield the fields of a section, [] for a list, and the description with the keys below."""
    for field in section.fields:
        kind, text, suffix = field.type, "", ""
        while isinstance(kind, Metadata | UnionType | ListType):
            if isinstance(kind, Metadata):
                text = (kind.extra_json_schema or {}).get("description", text)
                kind = kind.type
            elif isinstance(kind, UnionType):
                kind = next(each for each in kind.types if not isinstance(each, NoneType))
            else:
                kind, suffix = kind.item_type, "[]"
        keys = ""
        if isinstance(kind, StructType):
            keys = ", ".join(
                f"`{key.encode_name}{more}`" + (f" ({about})" if about else "")
                for key, more, about in _described(kind)
            )
        yield field, suffix, ": ".join(filter(None, (text, keys)))


_SMALL = """
sources: {hooks: {type: webhook, verify: {none: true}}}
channels: {orders: {from: [{source: hooks, topic: orders}], access: public}}
"""

if __name__ == "__main__":
    (FOLDER / "configuration.md").write_text(configuration())
    (FOLDER / "metrics.md").write_text(metrics())
    (FOLDER / "commands.md").write_text(commands())
    operations = (FOLDER / "operations.md").read_text()
    (FOLDER / "operations.md").write_text(STATUS_TABLE.sub(lambda found: found[1] + status(), operations))
