"""Where the gateway is, and who asks: the options that ``tail`` and ``publish`` share."""

import argparse
import os
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from gateway.cli.doctor import network
from gateway.config.loader.partial import PUBLIC_ENDPOINT_KEYS, PartialConfig
from gateway.config.model.config import Config
from gateway.config.model.value_types import parse_duration
from gateway.core.errors import StartupError

TOKEN_VARIABLE = "SSE_GATEWAY_TOKEN"  # noqa: S105  # the name of it
MAX_TOKEN_FILE_BYTES = 64 * 1024
"""Bytes of a file that holds a token."""

_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A gateway's public port, and what opens it."""

    url: str
    """Without a slash at its end; paths of the gateway are appended."""
    tls_context: ssl.SSLContext | None
    token: str | None = field(default=None, repr=False)


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the gateway is."""
    parser.add_argument(
        "--url",
        metavar="URL",
        type=parse_base_url,
        help="the gateway's, as its clients reach it: https://events.example.com; default: this machine,"
        " on the port of the configuration",
    )
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument(
        "--ca", metavar="FILE", type=_ca_file, help="certificates to trust beside the system's, as PEM"
    )
    trust.add_argument(
        "--insecure", action="store_true", help="take any certificate: whoever is on the way may answer"
    )


def add_token_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say who asks."""
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"holds a bearer token; - is standard input; default: ${TOKEN_VARIABLE}, if it is set",
    )
    given.add_argument(
        "--token", metavar="TOKEN", help="the token itself; every user of this machine can see it in ps"
    )


def resolve_endpoint(
    options: argparse.Namespace, load_sections: Callable[..., PartialConfig], *, token: str | None = None
) -> Endpoint:
    """Return where the options lead. ``config`` is asked only without --url. Raises StartupError."""
    url = options.url or local_url(load_sections(*PUBLIC_ENDPOINT_KEYS).config)
    parts = urlsplit(url)
    if parts.scheme == "http" and token is not None and parts.hostname not in _LOOPBACK_HOSTS:
        print_warning(f"{url} is not https: the token can be read on the way")
    if options.insecure and token is not None and parts.scheme == "https":
        print_warning("--insecure: whoever answers gets the token")
    return Endpoint(url, _tls_context(options) if parts.scheme == "https" else None, token)


def read_token(options: argparse.Namespace) -> str | None:
    """Return the token that the options or the environment give. Raises StartupError."""
    if options.token is not None:
        print_warning(
            "--token can be seen in the list of processes; $SSE_GATEWAY_TOKEN or --token-file cannot"
        )
        return _checked_token(options.token, "--token")
    if options.token_file is not None:
        return _checked_token(_read_token_file(options.token_file), f"--token-file {options.token_file}")
    found = os.environ.get(TOKEN_VARIABLE, "")
    return _checked_token(found, f"${TOKEN_VARIABLE}") if found.strip() else None


def local_url(config: Config) -> str:
    """Return the public port's URL on this machine. Raises StartupError."""
    port = config.server.listen.port
    if config.server.listen.first_tcp is None:
        raise StartupError(f"server.listen has Unix sockets only ({config.server.listen}): say --url")
    if port == 0:
        raise StartupError("server.listen has port 0, which is another one at each start: say --url")
    return config.server.public_url(port)


def print_warning(text: str) -> None:
    """Tell something that need not stop the command."""
    print(f"sse-gateway: {text}", file=sys.stderr, flush=True)


def parse_base_url(text: str) -> str:
    """Return a gateway's URL without a slash at its end, for argparse."""
    try:
        parts = urlsplit(text.strip())
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or "@" in parts.netloc:
        # argparse would repeat the text of a ValueError's argument, which may hold a password.
        raise argparse.ArgumentTypeError(
            "must be a URL without user and password: https://events.example.com"
        )
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith(("/events", "/hooks")):
        raise argparse.ArgumentTypeError(
            "must be the gateway's own URL, to which /events and /hooks are appended: https://events.example.com"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def parse_positive_duration(text: str) -> float:
    """Return the seconds of ``250ms``, ``15s``, ``5m``, for argparse."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError("must be more than nothing")
    return seconds


def parse_count(text: str) -> int:
    """Return a number from 1 on, for argparse."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:10]) <= 10**9):
        raise argparse.ArgumentTypeError("must be a number from 1 on")
    return int(text)


def _tls_context(options: argparse.Namespace) -> ssl.SSLContext:
    context = network.client_tls_context(options.ca)
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _ca_file(file: str) -> str:
    try:
        network.client_tls_context(file)
    except OSError as error:  # ssl.SSLError is one: the file holds no certificate
        raise argparse.ArgumentTypeError(f"{file}: {network.describe_network_error(error)}") from None
    return file


def _read_token_file(file: str) -> str:
    try:
        if file == "-":
            return sys.stdin.buffer.read(MAX_TOKEN_FILE_BYTES).decode("utf-8", "replace")
        with Path(file).open("rb") as opened:
            return opened.read(MAX_TOKEN_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise StartupError(f"cannot read --token-file {file}: {error.strerror}") from None


def _checked_token(text: str, where: str) -> str:
    token = text.strip().removeprefix("Bearer ")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise StartupError(f"what {where} gives cannot be a bearer token")
    return token
