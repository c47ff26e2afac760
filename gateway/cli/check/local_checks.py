"""Checks the files and extras that a configuration needs on this machine, without contacting servers.

`run` performs the same checks at its start and at a reload, so that all report the same error.
"""

import os
import re
import sqlite3
import ssl
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from gateway.config.loader.issues import ConfigIssue, ConfigPath
from gateway.config.model.config import Config
from gateway.config.model.paths import SQLITE_URL, absolute_path
from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.sources import KafkaConfig, RedisPubSubConfig, RedisStreamConfig, disabled_reason
from gateway.config.model.tls import TlsConfig
from gateway.config.validation.rules import jwt_issuers
from gateway.core.errors import StartupError
from gateway.net.pem import PemProblem, load_ca_file, load_certificate_and_key

_TLS_KEYS = {"authority": "client_ca", "certificate": "certificate", "key": "key"}


def find_local_issues(config: Config, data: Any, *, check_log: bool = True) -> Iterator[ConfigIssue]:
    """Yield an issue for each file and extra that `run` could not use. Blocks on the disk.

    ``data`` is the parsed document, with paths as written. ``check_log`` includes the file of a SQLite log.
    """
    if config.server.tls is not None:
        yield from _server_tls_issues(config.server.tls)
    url = config.broker.url.get_secret_value()
    if (sqlite := re.fullmatch(SQLITE_URL, url, re.DOTALL)) is not None:
        if check_log:
            yield from _sqlite_issues(sqlite[1], data)
    elif url != "memory://":
        yield from _redis_issues(url, ("broker", "url"))
    yield from _public_key_issues(config, data)
    for name, source in config.sources.items():
        if disabled_reason(source):
            continue
        if isinstance(source, (RedisPubSubConfig, RedisStreamConfig)):
            yield from _redis_issues(source.url.get_secret_value(), ("sources", name, "url"))
        elif isinstance(source, KafkaConfig):
            yield from _kafka_issues(source, ("sources", name))


def _server_tls_issues(tls: TlsConfig) -> Iterator[ConfigIssue]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found = [*load_certificate_and_key(context, tls.certificate, tls.key)]
    if tls.client_ca is not None:
        found += load_ca_file(context, tls.client_ca)
    for part, message in found:
        yield ConfigIssue(("server", "tls", _TLS_KEYS[part]), message)


def _public_key_issues(config: Config, data: Any) -> Iterator[ConfigIssue]:
    jwts = (config.auth.jwt if config.auth is not None else None) or ()
    for (path, _), jwt in zip(jwt_issuers(data.get("auth") or {}), jwts, strict=True):
        if jwt.public_key_file is None:
            continue
        from gateway.auth.keys import ERROR_PREFIX, read_pem  # noqa: PLC0415 -- slow import

        try:
            read_pem(jwt.public_key_file, jwt.algorithms)
        except StartupError as error:
            yield ConfigIssue((*path, "public_key_file"), error.message.removeprefix(ERROR_PREFIX))


def _kafka_issues(source: KafkaConfig, path: ConfigPath) -> Iterator[ConfigIssue]:
    try:
        import_module("aiokafka")
    except ImportError:
        yield ConfigIssue((*path, "type"), "needs the extra for Kafka: pip install 'sse-gateway[kafka]'")
    tls = source.tls
    if tls is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    found: list[PemProblem] = []
    if tls.ca_file is not None:
        found += load_ca_file(context, tls.ca_file)
    if tls.certificate is not None:
        found += load_certificate_and_key(context, tls.certificate, tls.key)
    for part, message in found:
        yield ConfigIssue((*path, "tls", "ca_file" if part == "authority" else part), message)


def _redis_issues(url: str, path: ConfigPath) -> Iterator[ConfigIssue]:
    """Check the options of a Redis URL, and the files among them."""
    parsed = RedisUrl.parse(url)
    options = {name: values[0] for name, values in parse_qs(urlsplit(parsed.server_url).query).items()}
    if not options:
        return
    from gateway.net.redis_locator import validate_url_options  # noqa: PLC0415 -- slow import

    try:
        validate_url_options(parsed)
    except ValueError as error:
        yield ConfigIssue(path, str(error))
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    names = {"authority": "ssl_ca_certs", "certificate": "ssl_certfile", "key": "ssl_keyfile"}
    found: list[PemProblem] = []
    if "ssl_ca_certs" in options:
        found += load_ca_file(context, options["ssl_ca_certs"])
    if "ssl_certfile" in options:
        found += load_certificate_and_key(context, options["ssl_certfile"], options.get("ssl_keyfile"))
    elif "ssl_keyfile" in options:
        yield ConfigIssue(path, "names a key (ssl_keyfile) without a certificate (ssl_certfile)")
    for part, message in found:
        yield ConfigIssue(path, f"{names[part]}: {message}")
    folder = options.get("ssl_ca_path")
    if folder is not None and not FilePath(folder).is_dir():
        yield ConfigIssue(path, f"ssl_ca_path: {folder} is no folder")


def _sqlite_issues(file: str, data: Any) -> Iterator[ConfigIssue]:
    why = sqlite_problem(FilePath(file))
    if why:
        yield ConfigIssue(("broker", "url"), f"the log {file} cannot be used: {why}")
        return
    written = re.fullmatch(SQLITE_URL, str((data.get("broker") or {}).get("url", "")), re.DOTALL)
    if written is None or FilePath(file).exists():
        return
    # Relative paths used to start at the working folder. A new, empty log would hide the old one.
    old_file = absolute_path(written[1])
    old_path = FilePath(old_file)
    if (
        old_file != file
        and old_path.is_file()
        and not sqlite_problem(old_path)
        and old_path.stat().st_size > 0
    ):
        yield ConfigIssue(
            ("broker", "url"),
            f"is {file}, which does not exist, and there is a log at {old_file}: relative paths start at the"
            " configuration's folder, no longer at the working folder; move the log there, or write"
            f" sqlite:///{old_file}",
        )


def sqlite_problem(path: FilePath) -> str:
    """Return why a file cannot be used as the log; empty if it can. Creates nothing."""
    folder = next(each for each in (path.parent, *path.parents) if each.exists())
    if not folder.is_dir():
        return f"{folder} is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} is read-only, or not this user's"
    if not path.exists():
        return ""
    if not path.is_file():
        return "is no file"
    if not os.access(path, os.R_OK | os.W_OK):
        return "this user may not write it"
    from gateway.broker.sqlite.event_log import explain_incompatibility  # noqa: PLC0415 -- only if the log is a file

    # By SQLite itself: closing a file drops the locks that this process has on it (fcntl(2)).
    try:
        database = sqlite3.connect(f"file:{quote(path.as_posix())}?mode=rw", uri=True, timeout=2)
        try:
            return explain_incompatibility(database)
        finally:
            database.close()
    except sqlite3.Error as error:
        return str(error)
