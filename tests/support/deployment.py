"""What the files of deploy/ say, read as those that use them read it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gateway.config.model.config import Config
from gateway.config.model.value_types import parse_duration
from tests.support.config import loads

DEPLOY = Path(__file__).parents[2] / "deploy"
MOUNTED = "/run/secrets/sse-gateway"
"""Where the manifests mount a Secret."""

CLOSING_SECONDS = 10.0
"""What an end may take beyond the timeouts of the configuration: 5 s, and 5 s more of a parent of workers."""

ENVIRON = {
    "REDIS_URL": "redis://redis:6379",
    "WEBHOOK_TOKEN": "w" * 32,
    "GATEWAY_LISTEN": "0.0.0.0:8080",
    "GATEWAY_ADMIN": "0.0.0.0:9090",
}


def documents(file: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all(file.read_text()))


def text_of(file: Path, secrets: Path) -> str:
    """Return a gateway's configuration with the folder of its secrets moved to one that is here."""
    return file.read_text().replace(MOUNTED, str(secrets))


def secrets_in(folder: Path) -> Path:
    """Write a secret of each name that the files of deploy/ use."""
    for name in ("admin-token", "jwt-secret", "webhook-token"):
        (folder / name).write_text(f"{name}-".ljust(40, "x") + "\n")
    return folder


def load(file: Path, secrets: Path, environ: Mapping[str, str] = ENVIRON) -> Config:
    """Load a gateway's configuration with the real model. Raises ConfigError."""
    both = {**environ, "CREDENTIALS_DIRECTORY": str(secrets)}
    return loads(text_of(file, secrets), file=str(file), environ=both)


def closing_seconds(file: Path) -> float:
    """Return how long a gateway with this configuration may take to end."""
    (data,) = documents(file)
    timeouts = data["timeouts"]
    return CLOSING_SECONDS + sum(
        0 if timeouts[key] == "0s" else parse_duration(timeouts[key])
        for key in ("pre_drain", "drain", "request")
    )
