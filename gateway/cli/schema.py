"""``sse-gateway schema``: prints the JSON Schema of the configuration."""

import argparse
import json

from gateway.config.schema import config_json_schema

EPILOG = """exit status:
  0  printed"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: it has no options."""


def run(options: argparse.Namespace) -> int:
    """Print the schema, and return 0."""
    print(json.dumps(config_json_schema(), indent=2))
    return 0
