"""What this machine lacks of what a file names: PEM files, the log's file, extras. No server is asked.

`run` looks at the same before it starts, and at a reload, so that both refuse with the same line.
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

from gateway.config.loader.faults import Fault, Path
from gateway.config.model.config import Config
from gateway.config.model.paths import SQLITE_URL, absolute
from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.sources import Kafka, RedisPubSub, RedisStream, why_off
from gateway.config.model.tls import Tls
from gateway.config.validation.relations import issuers
from gateway.core.errors import StartupError
from gateway.net.pem import Trouble, load_authority, load_identity

_PLACES = {"authority": "client_ca", "certificate": "certificate", "key": "key"}


def faults(config: Config, data: Any, *, log: bool = True) -> Iterator[Fault]:
    """Yield everything that `run` could not use; ``data`` is the file's, with paths as they are written.

    ``log``: whether to look at the file of ``broker.url`` too. Blocks on the disk.
    """
    if config.server.tls is not None:
        yield from _server(config.server.tls)
    url = config.broker.url.get_secret_value()
    if (sqlite := re.fullmatch(SQLITE_URL, url, re.DOTALL)) is not None:
        if log:
            yield from _sqlite(sqlite[1], data)
    elif url != "memory://":
        yield from _redis(url, ("broker", "url"))
    yield from _keys(config, data)
    for name, source in config.sources.items():
        if why_off(source):
            continue
        if isinstance(source, (RedisPubSub, RedisStream)):
            yield from _redis(source.url.get_secret_value(), ("sources", name, "url"))
        elif isinstance(source, Kafka):
            yield from _kafka(source, ("sources", name))


def _server(tls: Tls) -> Iterator[Fault]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found = [*load_identity(context, tls.certificate, tls.key)]
    if tls.client_ca is not None:
        found += load_authority(context, tls.client_ca)
    for part, message in found:
        yield Fault(("server", "tls", _PLACES[part]), message)


def _keys(config: Config, data: Any) -> Iterator[Fault]:
    jwts = (config.auth.jwt if config.auth is not None else None) or ()
    for (path, _), jwt in zip(issuers(data.get("auth") or {}), jwts, strict=True):
        if jwt.public_key_file is None:
            continue
        from gateway.auth.keys import PREFIX, read_pem  # noqa: PLC0415 -- cryptography takes a while

        try:
            read_pem(jwt.public_key_file, jwt.algorithms)
        except StartupError as error:
            yield Fault((*path, "public_key_file"), error.message.removeprefix(PREFIX))


def _kafka(source: Kafka, path: Path) -> Iterator[Fault]:
    try:
        import_module("aiokafka")
    except ImportError:
        yield Fault((*path, "type"), "needs the extra for Kafka: pip install 'sse-gateway[kafka]'")
    tls = source.tls
    if tls is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    found: list[Trouble] = []
    if tls.ca_file is not None:
        found += load_authority(context, tls.ca_file)
    if tls.certificate is not None:
        found += load_identity(context, tls.certificate, tls.key)
    for part, message in found:
        yield Fault((*path, "tls", "ca_file" if part == "authority" else part), message)


def _redis(url: str, path: Path) -> Iterator[Fault]:
    """Check the options of a Redis URL, and the files among them."""
    parsed = RedisUrl.parse(url)
    options = {name: values[0] for name, values in parse_qs(urlsplit(parsed.server).query).items()}
    if not options:
        return
    from gateway.net.redis_target import check_options  # noqa: PLC0415 -- redis-py takes a while

    try:
        check_options(parsed)
    except ValueError as error:
        yield Fault(path, str(error))
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    names = {"authority": "ssl_ca_certs", "certificate": "ssl_certfile", "key": "ssl_keyfile"}
    found: list[Trouble] = []
    if "ssl_ca_certs" in options:
        found += load_authority(context, options["ssl_ca_certs"])
    if "ssl_certfile" in options:
        found += load_identity(context, options["ssl_certfile"], options.get("ssl_keyfile"))
    elif "ssl_keyfile" in options:
        yield Fault(path, "names a key (ssl_keyfile), and no certificate (ssl_certfile)")
    for part, message in found:
        yield Fault(path, f"{names[part]}: {message}")
    folder = options.get("ssl_ca_path")
    if folder is not None and not FilePath(folder).is_dir():
        yield Fault(path, f"ssl_ca_path: {folder} is no folder")


def _sqlite(file: str, data: Any) -> Iterator[Fault]:
    why = log_trouble(FilePath(file))
    if why:
        yield Fault(("broker", "url"), f"the log {file} cannot be used: {why}")
        return
    written = re.fullmatch(SQLITE_URL, str((data.get("broker") or {}).get("url", "")), re.DOTALL)
    if written is None or FilePath(file).exists():
        return
    # Until now relative paths started at the working folder. A new log would look like a good start.
    older = absolute(written[1])
    if older != file and _is_log(FilePath(older)):
        yield Fault(
            ("broker", "url"),
            f"is {file}, which does not exist, and there is a log at {older}: relative paths start at the"
            " configuration's folder, no longer at the working folder; move the log there, or write"
            f" sqlite:///{older}",
        )


def _is_log(path: FilePath) -> bool:
    return path.is_file() and not log_trouble(path) and path.stat().st_size > 0


def log_trouble(path: FilePath) -> str:
    """Return why a file cannot be the log, or cannot become one; empty where it can. Nothing is made."""
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
    from gateway.broker.sqlite.store import foreign  # noqa: PLC0415 -- only where a log is a file

    # By SQLite and not by hand: closing a file drops the locks that this process has on it (fcntl(2)).
    try:
        database = sqlite3.connect(f"file:{quote(path.as_posix())}?mode=rw", uri=True, timeout=2)
        try:
            return foreign(database)
        finally:
            database.close()
    except sqlite3.Error as error:
        return str(error)
