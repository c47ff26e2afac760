"""Types of command-line arguments that several commands share, for argparse."""

import argparse

from gateway.cli.http_client import client_tls_context, describe_network_error
from gateway.config.model.value_types import parse_duration


def parse_positive_duration(text: str) -> float:
    """Return the seconds of ``250ms``, ``15s`` or ``5m``."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def parse_count(text: str) -> int:
    """Return an integer from 1 to a billion."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:10]) <= 10**9):
        raise argparse.ArgumentTypeError("must be a number from 1 to 1000000000")
    return int(text)


def parse_ca_file(file: str) -> str:
    """Return a PEM file's name after loading its certificates once."""
    try:
        client_tls_context(file)
    except OSError as error:  # ssl.SSLError is one: the file holds no certificate
        raise argparse.ArgumentTypeError(f"{file}: {describe_network_error(error)}") from None
    return file


def is_bearer_token(text: str) -> bool:
    """Return whether a text can be sent as a bearer token."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
