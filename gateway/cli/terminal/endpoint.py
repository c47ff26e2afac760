"""Options of ``tail`` and ``publish`` for the gateway's URL, its certificate and the caller's token."""

import argparse
import os
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from gateway.cli.arguments import is_bearer_token, parse_ca_file
from gateway.cli.http_client import LOOPBACK_HOSTS, client_tls_context
from gateway.config.loader.partial import PUBLIC_ENDPOINT_KEYS, PartialConfig
from gateway.config.model.config import Config
from gateway.core.errors import StartupError

TOKEN_VARIABLE = "SSE_GATEWAY_TOKEN"  # noqa: S105  # only its name
MAX_TOKEN_FILE_BYTES = 64 * 1024
"""Bytes that are read of a file with a token."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The URL of a gateway's public port, with the caller's trust and token."""

    url: str
    """Without a slash at its end; the gateway's paths are appended."""
    tls_context: ssl.SSLContext | None
    token: str | None = field(default=None, repr=False)


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the gateway's URL and certificate."""
    parser.add_argument(
        "--url",
        metavar="URL",
        type=parse_base_url,
        help="the gateway's URL, as clients reach it: https://events.example.com; default: this machine,"
        " on the configuration's port",
    )
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument(
        "--ca", metavar="FILE", type=parse_ca_file, help="PEM file of additional certificates to trust"
    )
    trust.add_argument(
        "--insecure",
        action="store_true",
        help="do not verify the certificate: anybody on the network path may answer",
    )


def add_token_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the caller's token."""
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"file with a bearer token; - reads standard input; default: ${TOKEN_VARIABLE}, if it is set",
    )
    given.add_argument(
        "--token",
        metavar="TOKEN",
        help="the bearer token; every user of this machine can see it in the process list",
    )


def resolve_endpoint(
    options: argparse.Namespace, load_sections: Callable[..., PartialConfig], *, token: str | None = None
) -> Endpoint:
    """Return the endpoint of the options. Reads the configuration only without --url. Raises StartupError."""
    url = options.url or local_url(load_sections(*PUBLIC_ENDPOINT_KEYS).config)
    parts = urlsplit(url)
    if parts.scheme == "http" and token is not None and parts.hostname not in LOOPBACK_HOSTS:
        print_warning(f"{url} is not https: the token is sent in plain text")
    if options.insecure and token is not None and parts.scheme == "https":
        print_warning("--insecure: the token is sent to a server whose certificate is not verified")
    tls = client_tls_context(options.ca, is_insecure=options.insecure) if parts.scheme == "https" else None
    return Endpoint(url, tls, token)


def read_token(options: argparse.Namespace) -> str | None:
    """Return the token of the options or the environment. Raises StartupError."""
    if options.token is not None:
        print_warning("--token is visible in the process list; $SSE_GATEWAY_TOKEN and --token-file are not")
        return _checked_token(options.token, "--token")
    if options.token_file is not None:
        return _checked_token(_read_token_file(options.token_file), f"--token-file {options.token_file}")
    found = os.environ.get(TOKEN_VARIABLE, "")
    return _checked_token(found, f"${TOKEN_VARIABLE}") if found.strip() else None


def local_url(config: Config) -> str:
    """Return the public port's URL on this machine. Raises StartupError."""
    port = config.server.listen.port
    if config.server.listen.first_tcp is None:
        raise StartupError(f"server.listen has Unix sockets only ({config.server.listen}): use --url")
    if port == 0:
        raise StartupError("server.listen has port 0, which is a different one at each start: use --url")
    return config.server.public_url(port)


def print_warning(text: str) -> None:
    """Print a warning that does not stop the command."""
    print(f"sse-gateway: {text}", file=sys.stderr, flush=True)


def parse_base_url(text: str) -> str:
    """Return a gateway's URL without a slash at its end, for argparse."""
    try:
        parts = urlsplit(text.strip())
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or "@" in parts.netloc:
        # With a ValueError, argparse would print the argument, which may hold a password.
        raise argparse.ArgumentTypeError(
            "must be a URL without user and password: https://events.example.com"
        )
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith(("/events", "/hooks")):
        raise argparse.ArgumentTypeError(
            "must be the gateway's own URL, to which /events and /hooks are appended: https://events.example.com"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _read_token_file(file: str) -> str:
    try:
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as opened:
            return opened.read(MAX_TOKEN_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise StartupError(f"cannot read --token-file {file}: {error.strerror}") from None


def _checked_token(text: str, where: str) -> str:
    token = text.strip().removeprefix("Bearer ")
    if not is_bearer_token(token):
        raise StartupError(f"{where} is not a bearer token: expected printable ASCII without spaces")
    return token
