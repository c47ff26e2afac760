"""Some sections of a file, for commands that need no others: what is missing for the others stops nothing.

A file that is good is loaded as a whole. Only where a variable or a file that it refers to is missing, the
sections that a command does not use are left out, and with them what is wrong there.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from gateway.config.loader.document import parse_yaml
from gateway.config.loader.environment import resolve_references
from gateway.config.loader.issues import ConfigError, ConfigIssue, ConfigPath
from gateway.config.loader.load import locate_issues, read_config_text, try_loads
from gateway.config.loader.model_errors import issues_of_validation_error, yaml11_boolean_issues
from gateway.config.model.config import Config
from gateway.config.model.paths import FOLDER_CONTEXT_KEY, config_folder
from gateway.config.validation.cross_section_rules import check_rules

PUBLIC_ENDPOINT_KEYS = (("server", "listen"), ("server", "tls"), ("server", "base_path"))
"""Where the public port is."""

HEARTBEAT_KEYS = ("timeouts", "heartbeat")
"""How long silence may last."""

TOKEN_KEYS = (("auth", "jwt"), ("channels",))
"""Who signs, and what tokens open."""

ROUTING_KEYS = (("channels",), ("sources",), ("limits", "event_bytes"))
"""How events get to channels."""

_STREAM_ONLY_KEYS = ("cors", "ack", "stale_after", "critical")
"""Keys of a channel that no command but `run` uses."""

_DISABLED_SOURCES: Mapping[str, Mapping[str, Any]] = {
    "redis-pubsub": {"url": ""},
    "redis-stream": {"url": ""},
    "kafka": {"brokers": ""},
    "webhook": {"verify": {"none": True}},
}


@dataclass(frozen=True, slots=True)
class PartialConfig:
    """The sections, with the defaults of all others.

    ``lacking`` says what is missing for some sources; those stand in ``config`` as if they were off.
    """

    config: Config
    missing_by_source: Mapping[str, str] = field(default_factory=dict)


def load_sections(
    file: str | FilePath, *needed: ConfigPath, environ: Mapping[str, str] = os.environ
) -> PartialConfig:
    """Return these sections of a file.

    Raises ConfigError with every mistake in them, StartupError where the file cannot be read.
    """
    text, folder = read_config_text(file), config_folder(file)
    reading = try_loads(text, file=str(file), folder=folder, environ=environ)
    if reading.config is not None:
        return PartialConfig(reading.config)
    try:
        document = parse_yaml(text, str(file))
    except ConfigError as error:
        raise ConfigError(str(file), error.errors) from None
    missing: list[ConfigIssue] = []
    data = {} if document.data is None else resolve_references(document.data, environ, folder, missing)
    lacking = {
        str(fault.path[1]): fault.message
        for fault in reversed(missing)
        if fault.path[:1] == ("sources",) and len(fault.path) > 2
    }
    if all(_is_needed(each.path, needed) and not _is_below_source(each.path, lacking) for each in missing):
        raise ConfigError(str(file), reading.errors)  # what is missing is needed, or nothing is
    faults = [*yaml11_boolean_issues(document), *document.errors, *missing]
    kept = _select_sections(data, needed, lacking)
    config: Config | None = None
    try:
        config = Config.model_validate(kept, context={FOLDER_CONTEXT_KEY: folder})
    except ValidationError as error:
        faults += issues_of_validation_error(error, document, kept)
    faults += check_rules(data)
    wrong = [
        each for each in faults if _is_needed(each.path, needed) and not _is_below_source(each.path, lacking)
    ]
    if config is None or wrong:
        raise ConfigError(str(file), locate_issues(wrong or faults, document, data))
    return PartialConfig(config, lacking)


def _is_needed(path: ConfigPath, needed: tuple[ConfigPath, ...]) -> bool:
    if path[:1] == ("channels",) and path[2:3] and path[2] in _STREAM_ONLY_KEYS:
        return False
    if path[:2] == ("server", "tls") and len(path) > 2:
        return False  # whether there is TLS is all that commands need to know
    return any(path[: len(each)] == each for each in needed)


def _is_below_source(path: ConfigPath, sources: Mapping[str, str]) -> bool:
    return path[:1] == ("sources",) and len(path) > 1 and str(path[1]) in sources


def _select_sections(data: Any, needed: tuple[ConfigPath, ...], lacking: Mapping[str, str]) -> dict[str, Any]:
    """Return the raw data of the sections, with stand-ins for what is not used and must be there."""
    kept: dict[str, Any] = {}
    for first, *more in needed:
        section = data.get(first) if isinstance(data, dict) else None
        if section is None:
            continue
        if not more:
            kept[str(first)] = section
        elif isinstance(section, dict) and section.get(more[0]) is not None:
            kept.setdefault(str(first), {})[more[0]] = section[more[0]]
    if kept.get("server", {}).get("tls"):
        kept["server"]["tls"] = {"certificate": "-", "key": "-"}
    if isinstance(kept.get("sources"), dict):
        kept["sources"] = dict(_disable_incomplete_sources(kept["sources"], lacking))
    if ("channels",) not in needed:
        route = {"source": "-", "topic": "-"}
        kept["channels"] = {"-": {"from": [route], "access": "public"}}
    elif isinstance(kept.get("channels"), dict):
        kept["channels"] = {
            name: {key: value for key, value in each.items() if key not in _STREAM_ONLY_KEYS}
            if isinstance(each, dict)
            else each
            for name, each in kept["channels"].items()
        }
    return kept


def _disable_incomplete_sources(
    sources: Mapping[str, Any], lacking: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    for name, each in sources.items():
        if name in lacking and isinstance(each, dict) and each.get("type") in _DISABLED_SOURCES:
            yield name, {"type": each["type"], **_DISABLED_SOURCES[each["type"]]}
        else:
            yield name, each
