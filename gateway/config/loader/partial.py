"""Loads some sections of a configuration, for commands that do not need the rest.

A complete file is loaded as a whole. Only if a variable or a referenced file is missing, the sections that
the command does not use are left out, together with the errors in them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.config.loader.document import parse_yaml
from gateway.config.loader.environment import resolve_references
from gateway.config.loader.issues import ConfigError, ConfigIssue, ConfigPath
from gateway.config.loader.load import load_text, locate_issues, read_config_text, validate_model
from gateway.config.loader.model_errors import yaml11_boolean_issues
from gateway.config.model.config import Config
from gateway.config.model.paths import config_folder
from gateway.config.validation.raw_data import as_mapping
from gateway.config.validation.rules import check_rules

PUBLIC_ENDPOINT_KEYS = (("server", "listen"), ("server", "tls"), ("server", "base_path"))
"""The address of the public port."""

HEARTBEAT_KEYS = ("timeouts", "heartbeat")
"""The longest silence of a healthy stream."""

TOKEN_KEYS = (("auth", "jwt"), ("channels",))
"""The issuer's keys, and the channels that tokens grant."""

ROUTING_KEYS = (("channels",), ("sources",), ("limits", "event_bytes"))
"""How records are routed to channels."""

_STREAM_ONLY_KEYS = ("cors", "ack", "stale_after", "critical")
"""Keys of a channel that only `run` uses."""

_DISABLED_SOURCES: Mapping[str, Mapping[str, Any]] = {
    "redis-pubsub": {"url": ""},
    "redis-stream": {"url": ""},
    "kafka": {"brokers": ""},
    "webhook": {"verify": {"none": True}},
}
"""By type of source: the settings with which it is valid and inactive."""


@dataclass(frozen=True, slots=True)
class PartialConfig:
    """The requested sections; everything else has its default.

    ``missing_by_source`` says what is missing for a source, which ``config`` then has as a disabled one.
    """

    config: Config
    missing_by_source: Mapping[str, str] = field(default_factory=dict)


def load_sections(
    file: str | Path, *needed: ConfigPath, environ: Mapping[str, str] = os.environ
) -> PartialConfig:
    """Return the sections ``needed`` of a file.

    Raises ConfigError with every error in them, StartupError if the file cannot be read.
    """
    text, folder = read_config_text(file), config_folder(file)
    result = load_text(text, file=str(file), folder=folder, environ=environ)
    if result.config is not None:
        return PartialConfig(result.config)
    document = parse_yaml(text, str(file))
    missing: list[ConfigIssue] = []
    data = {} if document.data is None else resolve_references(document.data, environ, folder, missing)
    missing_by_source = {
        str(issue.path[1]): issue.message
        for issue in reversed(missing)
        if issue.path[:1] == ("sources",) and len(issue.path) > 2
    }

    def is_needed(issue: ConfigIssue) -> bool:
        is_of_disabled = issue.path[:1] == ("sources",) and str((*issue.path, "")[1]) in missing_by_source
        return _is_in_sections(issue.path, needed) and not is_of_disabled

    if all(map(is_needed, missing)):  # nothing is missing, or only what the command needs
        raise ConfigError(str(file), result.errors)
    issues = [*yaml11_boolean_issues(document), *document.errors, *missing]
    selected = _select_sections(data, needed, missing_by_source)
    config = validate_model(selected, document, folder, issues)
    issues += check_rules(data)
    errors = [*filter(is_needed, issues)]
    if config is None or errors:
        raise ConfigError(str(file), locate_issues(errors or issues, document, data))
    return PartialConfig(config, missing_by_source)


def _is_in_sections(path: ConfigPath, needed: tuple[ConfigPath, ...]) -> bool:
    if path[:1] == ("channels",) and path[2:3] and path[2] in _STREAM_ONLY_KEYS:
        return False
    if path[:2] == ("server", "tls") and len(path) > 2:
        return False  # commands only need to know whether there is TLS
    return any(path[: len(each)] == each for each in needed)


def _select_sections(
    data: Any, needed: tuple[ConfigPath, ...], missing_by_source: Mapping[str, str]
) -> dict[str, Any]:
    """Return the raw data of the sections, with valid stand-ins for required settings that are not used."""
    selected: dict[str, Any] = {}
    for first, *more in needed:
        section = as_mapping(data).get(str(first))
        if section is None:
            continue
        if not more:
            selected[str(first)] = section
        elif (value := as_mapping(section).get(key := str(more[0]))) is not None:
            selected.setdefault(str(first), {})[key] = value
    if selected.get("server", {}).get("tls"):
        selected["server"]["tls"] = {"certificate": "-", "key": "-"}
    if isinstance(sources := selected.get("sources"), dict):
        selected["sources"] = {
            name: {"type": kind, **_DISABLED_SOURCES[kind]}
            if name in missing_by_source and (kind := str(as_mapping(each).get("type"))) in _DISABLED_SOURCES
            else each
            for name, each in sources.items()
        }
    if ("channels",) not in needed:
        selected["channels"] = {"-": {"from": [{"source": "-", "topic": "-"}], "access": "public"}}
    elif isinstance(channels := selected.get("channels"), dict):
        selected["channels"] = {
            name: {key: value for key, value in each.items() if key not in _STREAM_ONLY_KEYS}
            if isinstance(each, dict)
            else each
            for name, each in channels.items()
        }
    return selected
