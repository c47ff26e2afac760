"""Generates configuration.md, metrics.md and commands.md from the code: ``python docs/reference.py``.

A test fails when the files differ from what this module generates, so no key, metric or option stays
undocumented.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.cli.main import COMMANDS, command_parsers
from gateway.config.schema import config_json_schema
from gateway.observability.metrics.definitions import DEFINITIONS

FOLDER = Path(__file__).parent

_HEAD = """# Configuration

One YAML file configures a gateway. Its sections are:

{contents}

Two sections are required, `sources` and `channels`; all others have defaults.
[`config/gateway.yaml`](../config/gateway.yaml) shows every section in use. Editors complete and check the
file with [`config/schema.json`](../config/schema.json), which the first line of the shipped files names.
`sse-gateway check` reports every error with its position ([check.md](check.md)). This page is generated from
the model by `python docs/reference.py`.

## Values

- **Durations and sizes** have a unit: `250ms`, `15s`, `5m`, `12h`, `1d`; `512B`, `256KiB`, `16MiB`, `1GB`.
- **Variables**: `${{NAME}}` and `${{NAME:-default}}` are replaced by environment variables, in values only,
  after parsing. A variable that is unset or empty and has no default is an error, and so is `$NAME` without
  braces. `$${{` is a literal `${{`.
- **Secrets from files**: `file:/run/secrets/name` is replaced by the content of that file.
- **Relative paths** start at the folder of the configuration file.
- **Strictness**: unknown keys, duplicate keys, aliases, and words that YAML 1.1 and 1.2 read differently
  (`no`, `12:30`) are errors.
"""

_SECTIONS: dict[str, tuple[str, str, str]] = {
    "server": (
        "Ports and processes",
        "The public port serves streams and webhooks, the admin port metrics, health and status. Details:"
        " [operations.md](operations.md#what-the-ports-listen-on).",
        """
server:
  listen: 0.0.0.0:8080
  admin: 0.0.0.0:9090
  admin_token: "${ADMIN_TOKEN}"       # required where the admin port is not on loopback
  workers: auto                       # one process per core; they share the log
  trusted_proxies: [10.0.0.5/32]      # these may set X-Forwarded-For
  tls: {certificate: tls/server.pem, key: tls/server.key}
broker: {url: "${REDIS_URL}"}
""",
    ),
    "logging": (
        "Logging",
        "One JSON object per line on standard error. Events: [operations.md](operations.md#logs).",
        "logging: {level: info, format: console}\n",
    ),
    "check": (
        "Accepted warnings",
        "Warnings that are intended here; `check --strict` passes with them. All codes:"
        " [check.md](check.md#warnings).",
        "check: {allow: [drain-over-grace]}\n",
    ),
    "broker": (
        "The log",
        "Nodes with the same `broker.url` share one log. How to choose:"
        " [README](../README.md#choose-the-log).",
        """
broker:
  url: redis+sentinel://s1:26379,s2:26379,s3:26379/main
  prefix: shop                        # two gateways that share a Redis need a prefix each
  timeout: 2s
  pool: {max_connections: 20}
""",
    ),
    "cors": (
        "Pages of other origins",
        "Which pages may read. A channel's own `cors` replaces the list for that channel.",
        """
cors:
  origins: [https://app.example.com, "https://*.app.example.com"]
  credentials: true                   # cookies, with EventSource's withCredentials
""",
    ),
    "timeouts": (
        "Timeouts",
        "Deadlines of streams, requests and the shutdown.",
        """
timeouts:
  heartbeat: 15s                      # well below the idle timeout of proxies, often 60 s
  connection: 1h
  pre_drain: 5s                       # longer than load balancers take to see /readyz fail
  drain: 20s
""",
    ),
    "limits": (
        "Limits",
        "Per node, except `connections_per_user`. What happens beyond them:"
        " [operations.md](operations.md#limits-and-quotas).",
        """
limits:
  connections: 15000
  connections_per_user: 10
  connect_rate: 500/s
  event_bytes: 64KiB
""",
    ),
    "ack": (
        "Answered heartbeats",
        "Detects clients that are gone behind a proxy: [operations.md](operations.md#clients-that-answer)."
        " Off unless configured.",
        "ack: {interval: 30s, timeout: 60s, retry_limit: 3}\n",
    ),
    "auth": (
        "Authentication",
        "How clients are authenticated; a channel's `access` says who may read. Guide:"
        " [guides/auth.md](guides/auth.md)."
        " `auth.jwt` is one issuer, or a list of issuers with the same keys.",
        """
auth:
  jwt:
    algorithms: [RS256]
    jwks_url: https://id.example.com/.well-known/jwks.json
    issuer: https://id.example.com
    audience: sse
  tickets: {lifetime: 5m}             # POST /tickets, for native EventSources
  cookie: session
  forward: {url: "https://app.example.com/may-read", on_outage: retry}
""",
    ),
    "sources": (
        "Sources",
        "Upstreams by name. `type` decides which keys a source has. Details: [sources.md](sources.md).",
        "",
    ),
    "sources.<name> (redis-pubsub)": (
        "Redis pub/sub",
        "",
        """
sources:
  app: {type: redis-pubsub, url: "${REDIS_URL}", stale_after: 10m}
""",
    ),
    "sources.<name> (redis-stream)": (
        "Redis streams",
        "",
        """
sources:
  orders:
    type: redis-stream
    url: "${REDIS_URL}"
    start: oldest
    payload: data                     # the field with the payload
    event: {type: "{fields.kind}"}
""",
    ),
    "sources.<name> (kafka)": (
        "Kafka",
        "",
        """
sources:
  kafka:
    type: kafka
    brokers: "k1:9092,k2:9092"
    tls: {ca_file: kafka-ca.pem}
    sasl: {mechanism: SCRAM-SHA-512, username: gateway, password: "${KAFKA_PASSWORD}"}
    critical: true                    # unready while it is down
""",
    ),
    "sources.<name> (webhook)": (
        "Webhooks",
        "Formats and signatures: [webhooks.md](webhooks.md).",
        """
sources:
  github:
    type: webhook
    verify: {github: ["${GITHUB_SECRET}"]}
    topic: "github.{headers.x-github-event}"
    rate: 100/s
""",
    ),
    "channels": (
        "Channels",
        "What clients subscribe to. A name is fixed (`orders`) or a template (`user.{id}`).",
        """
channels:
  orders:
    from: [{source: app, topic: "orders.*"}]
    history: {events: 5000, age: 1h}
    access: public
  prices:
    from: [{source: app, topic: prices}]
    slow_client: {conflate: "{/symbol}"}      # a slow client gets the newest of each symbol
    access: token
  user.{id}:
    from: [{source: app, topic: "user:{id}"}]
    payload: envelope
    access: {claims: {sub: "{id}"}}           # each user reads only their own
""",
    ),
}
"""Of each section, by the beginning of its keys: heading, introduction, example."""

_NAMED = {"sources": "<name>", "channels": "<name>", "claims": "<claim>", "fields": "<field>"}


_OF_NAMED = {
    "claims": "the claim must have this value, or be a list that contains it",
    "fields": "placeholders of the record: `{key}`, `{headers.x}`, `{/json/pointer}`",
}


def configuration() -> str:
    """Return docs/configuration.md."""
    schema = config_json_schema()
    tables: dict[str, list[tuple[str, str, str, str]]] = {section: [] for section in _SECTIONS}
    for row in _rows(schema, schema, ""):
        key = row[0].strip("`")
        section = next(
            each for each in reversed(_SECTIONS) if key == each or key.startswith((f"{each}.", f"{each} "))
        )
        tables[section].append(row)
    contents = "\n".join(
        f"- [`{section}`](#{_anchor(section)})"
        + ("" if _title(section) == section else f": {_title(section)}")
        for section in _SECTIONS
        if "." not in section
    )
    parts = [_HEAD.format(contents=contents)]
    for section, rows in tables.items():
        title, introduction, example = _SECTIONS[section]
        parts.append(f"\n### {title}\n" if "." in section else f"\n## {_heading(section)}\n")
        if introduction:
            parts.append(f"\n{introduction}\n")
        if example:
            parts.append(f"\n```yaml\n{example.lstrip()}```\n")
        if rows:
            parts.append("\n| key | value | default | |\n|---|---|---|---|\n")
            parts += (f"| {' | '.join(row)} |\n" for row in rows)
    return "".join(parts)


def _title(section: str) -> str:
    title = _SECTIONS[section][0]
    return title[:1].lower() + title[1:]


def _heading(section: str) -> str:
    return f"`{section}`" if _title(section) == section else f"`{section}`: {_title(section)}"


def _anchor(section: str) -> str:
    """Return the anchor of a section's heading, as GitHub makes it."""
    return _heading(section).replace("`", "").replace(":", "").replace(" ", "-")


def _rows(node: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[tuple[str, str, str, str]]:
    for key, below in node.get("properties", {}).items():
        full_key = f"{path}.{key}" if path else key
        kinds = list(_kinds(below, schema))
        leaves = [kind for kind in kinds if "properties" not in kind and "additionalProperties" not in kind]
        if leaves:
            values = " or ".join(dict.fromkeys(text for kind in leaves for text in _value(kind, schema)))
            default = "required" if key in node.get("required", ()) else _default(below.get("default"))
            yield f"`{full_key}`", values, default, below.get("description", "")
        for kind in kinds:
            yield from _rows(kind, schema, full_key)
            items = kind.get("items")
            if isinstance(items, dict):
                for item in _kinds(items, schema):
                    if item not in kinds:  # a list of what may stand alone has the same keys
                        yield from _rows(item, schema, f"{full_key}[]")
            named = kind.get("additionalProperties")
            if isinstance(named, dict):
                for each in _kinds(named, schema):
                    if "properties" not in each:
                        yield f"`{full_key}.{_NAMED[key]}`", "text", "", _OF_NAMED[key]
                    tag = each.get("properties", {}).get("type", {}).get("const")
                    yield from _rows(each, schema, f"{full_key}.{_NAMED[key]}" + (f" ({tag})" if tag else ""))


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
        "All metrics of `GET /metrics` on the admin port. Generated by `python docs/reference.py`.",
        "",
        "With workers, one scrape covers all of them: counters and histograms are summed, gauges are merged",
        "as the column *of workers* says. `channel` is always the declared name (`user.{id}`), never an",
        "instance. No address, user or id is ever a label. Reasons and results that are listed here start at",
        "0.",
        "",
        "[`deploy/grafana/sse-gateway.json`](../deploy/grafana/sse-gateway.json) is a dashboard,",
        "[`deploy/prometheus/alerts.yaml`](../deploy/prometheus/alerts.yaml) has the alerts, and",
        "[runbook.md](runbook.md) a section for each alert.",
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

All commands and options of `sse-gateway`; `sse-gateway COMMAND --help` prints the same. Generated by
`python docs/reference.py`.

Without `--config`, commands read `$SSE_GATEWAY_CONFIG`, else `config/gateway.yaml`. Wrong usage exits 2 with
the usage on standard error. Options may stand before, between and after the other arguments.
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
        summary = COMMANDS[name][1]
        parts += [f"\n## `{name}`\n\n{summary[:1].upper()}{summary[1:]}.\n\n```\n{usage}\n```\n"]
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
    text = (action.help or "").replace("|", "\\|").replace("%%", "%")
    return f"| `{names}` | {text} |\n"


if __name__ == "__main__":
    (FOLDER / "configuration.md").write_text(configuration())
    (FOLDER / "metrics.md").write_text(metrics())
    (FOLDER / "commands.md").write_text(commands())
