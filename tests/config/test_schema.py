"""The JSON Schema that editors use."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.config.loader.issues import ConfigError
from gateway.config.loader.load import load_file
from gateway.config.schema import config_json_schema
from tests.config.test_load import BROKEN, GOOD
from tests.support.config import loads

ROOT = Path(__file__).parents[2]
ENVIRON = {
    "REDIS_URL": "redis://127.0.0.1",
    "WEBHOOK_TOKEN": "t" * 20,
    "ADMIN_TOKEN": "t" * 20,
    "JWT_SECRET": "s" * 32,
}


def test_the_file_is_current() -> None:
    """config/schema.json is what `sse-gateway schema` prints; `make docs` writes it."""
    assert json.loads((ROOT / "config/schema.json").read_text()) == config_json_schema()


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("*.yaml")), ids=lambda file: file.name)
def test_the_shipped_files_pass_both(file: Path) -> None:
    """An editor and `check` agree on every file that we ship."""
    load_file(file, ENVIRON).require_config()
    jsonschema.validate(yaml.safe_load(file.read_text()), config_json_schema())


@pytest.mark.parametrize(
    "more",
    [
        "",
        'limits: {connections: "${N:-5}", event_bytes: 1KB}',
        "timeouts: {heartbeat: 1.5s}",
        "timeouts: {heartbeat: 15}",
        "log: {level: loud}",
        "server: {listn: x}",
        "broker: {url: postgres://x}",
        "cors: {credentials: maybe}",
    ],
)
def test_the_schema_agrees_with_the_model(more: str) -> None:
    """A red line in the editor means an error in `check`, and the other way round."""
    text = GOOD + more
    try:
        loads(text, environ={})
        is_good = True
    except ConfigError:
        is_good = False
    assert jsonschema.Draft202012Validator(config_json_schema()).is_valid(yaml.safe_load(text)) is is_good


def test_the_broken_example_is_broken_for_editors_too() -> None:
    """Most errors show while typing."""
    assert not jsonschema.Draft202012Validator(config_json_schema()).is_valid(yaml.safe_load(BROKEN))
