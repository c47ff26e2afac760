"""Configurations in the docs load, whole or as parts; other YAML and all JSON parses."""

import base64
import json
import re
from typing import Any

import pytest
import yaml

from gateway.config.model.config import Config
from tests.docs.pages import Block, blocks
from tests.support.config import loads

SECTIONS = {field.alias or key for key, field in Config.model_fields.items()}

_WHSEC = "whsec_" + base64.b64encode(b"w" * 32).decode()
_VALUES = (
    (r"REDIS", "redis://127.0.0.1"),
    (r"KAFKA_BROKERS", "127.0.0.1:9092"),
    (r"(WEBHOOK|STANDARD)_SECRET", _WHSEC),
    (r"ISSUER|URL$", "https://id.example.com"),
    (r"", "x" * 64),
)


def is_config(data: Any) -> bool:
    """Return whether a document is a configuration, or a part of one."""
    return isinstance(data, dict) and bool(data) and set(data) <= SECTIONS


def environ(text: str) -> dict[str, str]:
    """Return a value of the right type for each variable in a text."""
    names = re.findall(r"\$\{([A-Za-z_]\w*)", text)
    return {each: next(value for pattern, value in _VALUES if re.search(pattern, each)) for each in names}


def completed(data: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a configuration, completed with the minimum of other sections."""
    whole = dict(data)
    sources = dict(whole.get("sources") or {})
    for channel in (whole.get("channels") or {}).values():
        for route in channel.get("from", ()):
            sources.setdefault(route["source"], {"type": "webhook", "verify": {"none": True}})
    if not sources:
        sources["hooks"] = {"type": "webhook", "verify": {"none": True}}
    whole["sources"] = sources
    if not whole.get("channels"):
        routes = [{"source": source, "topic": "orders"} for source in sources]
        whole["channels"] = {"orders": {"from": routes, "access": "public"}}
    rules = [channel.get("access") for channel in whole["channels"].values()]
    auth = dict(whole.get("auth") or {})
    if any(rule == "token" or isinstance(rule, dict) for rule in rules):
        auth.setdefault("jwt", {"algorithms": ["HS256"], "secret": "s" * 64})
    if "forward" in rules:
        auth.setdefault("forward", {"url": "https://app.example.com/may-read"})
    if auth:
        whole["auth"] = auth
    if any("client_certificate" in (source.get("verify") or {}) for source in sources.values()):
        tls = {"certificate": "a", "key": "b", "client_ca": "c"}
        whole["server"] = {
            **whole.get("server", {}),
            "tls": {**tls, **whole.get("server", {}).get("tls", {})},
        }
    return whole


YAML = blocks("yaml", "yml")


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.position)
def test_yaml_parses_and_configurations_load(block: Block) -> None:
    """Ops paste an example that the gateway rejects."""
    for data in yaml.safe_load_all(block.text):
        if is_config(data):
            # JSON is YAML. The parts are completed, so only keys and values matter, not positions.
            loads(json.dumps(completed(data)), file=block.position, environ=environ(block.text))


def test_configurations_are_recognised() -> None:
    """The other tests of this file find nothing to check, and pass."""
    found = [block for block in YAML if any(map(is_config, yaml.safe_load_all(block.text)))]
    assert len(found) > 5


def test_json_parses() -> None:
    """A script is written for JSON that the gateway never sends."""
    for block in blocks("json"):
        for document in re.split(r"\n(?=\{)", block.text.strip()):
            try:
                json.loads(document)
            except ValueError as error:
                pytest.fail(f"{block.position}: {error}")
