"""Parses Redis URLs: single servers, Sentinel and cluster. Pure: does not use the client library."""

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, urlsplit

DeploymentKind = Literal["single", "sentinel", "cluster"]

_URL = re.compile(r"(rediss?)\+(sentinel|cluster)://(?:([^@/]*)@)?([^/?#]+)(?:/([^?#]*))?(?:\?([^#]*))?")
_NODE = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")
_INVALID_URL = (
    "is not a Redis URL; write redis://host:6379, or rediss:// for TLS,"
    " and a password's special characters as %2F, %3A, %40, %23"
)
_INVALID_PORT = "has a port beyond 65535; write redis://host:6379, or omit the port if it is 6379"
_INVALID_DATABASE = (
    "has a database that is not a number; write redis://host:6379/0. Deployments that share a Redis need"
    " different broker.prefix values"
)


@dataclass(frozen=True)
class RedisUrl:
    """A parsed URL. ``server_url`` is the URL of one server in redis-py's syntax, for its options."""

    kind: DeploymentKind
    server_url: str = field(repr=False)
    nodes: tuple[tuple[str, int], ...] = ()
    master_name: str = ""

    @property
    def is_hostname_checked(self) -> bool:
        """Whether TLS checks the host name in the certificate; its CA is always checked."""
        return _query_option(self.server_url, "ssl_check_hostname") not in ("0", "f", "false", "n", "no")

    @classmethod
    def parse(cls, text: str) -> "RedisUrl":
        """Parse a URL. Raises ValueError, whose message quotes nothing that may be a password."""
        url = cls._parse(text)
        if _query_option(url.server_url, "ssl_cert_reqs") not in ("", "required"):
            raise ValueError(
                "switches the verification of certificates off; remove"
                " ssl_cert_reqs, and name the CA's or the server's own certificate:"
                " ssl_ca_certs=/path/to.pem"
            )
        return url

    @classmethod
    def _parse(cls, text: str) -> "RedisUrl":
        parts = _URL.fullmatch(text)
        if parts is None:
            return _parse_single(text)
        scheme, kind, credentials, hosts, path, query = parts.groups()
        nodes = tuple(_parse_node(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(","))
        user = f"{credentials}@" if credentials else ""
        if kind == "cluster":
            if path:
                raise ValueError("names a database, and a cluster has only one; remove it")
            return cls("cluster", f"{scheme}://{user}host:1/?{query or ''}", nodes)
        master, _, database = (path or "").partition("/")
        if not master:
            raise ValueError(
                "names no master; write redis+sentinel://host:26379,host:26379/name-of-the-master"
            )
        if not re.fullmatch(r"[0-9]{0,9}", database):
            raise ValueError(_INVALID_DATABASE)
        return cls("sentinel", f"{scheme}://{user}host:1/{database}?{query or ''}", nodes, master)


def _query_option(url: str, name: str) -> str:
    """Return an option's first value in lower case, as redis-py reads it."""
    return parse_qs(urlsplit(url).query).get(name, [""])[0].lower()


def _parse_single(text: str) -> RedisUrl:
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in ("redis", "rediss", "unix") and bool(parts.hostname or parts.path)
        is_good = is_good and text.startswith(f"{parts.scheme}://")
        is_good = is_good and (parts.port or 1) > 0 and not parts.fragment
    except ValueError:  # its message would quote a password that was parsed as the port
        is_good = False
    if not is_good:
        raise ValueError(_INVALID_PORT if _has_port_out_of_range(text) else _INVALID_URL)
    if parts.scheme == "unix":
        if parts.hostname or parts.path == "/":
            raise ValueError("names no socket; write unix:///run/redis.sock, with three slashes")
    elif not re.fullmatch(r"/?([0-9]{1,9}/?)?", parts.path):
        raise ValueError(_INVALID_DATABASE)
    if not re.fullmatch(r"[0-9]{0,9}", _query_option(text, "db")):
        raise ValueError(_INVALID_DATABASE)
    return RedisUrl("single", text)


def _has_port_out_of_range(text: str) -> bool:
    """Tell whether only the port is invalid. It must not be quoted: it may be a part of a password."""
    host = re.fullmatch(r"[a-z+]+://(?:[^@/]*@)?[^@/:\[\]]+:([0-9]{5,})(?:[/?].*)?", text)
    return host is not None and int(host[1][:6]) > 65535


def _parse_node(text: str, port: int) -> tuple[str, int]:
    parts = _NODE.fullmatch(text.strip())
    if parts is not None and int(parts[2] or port) > 65535:
        raise ValueError(_INVALID_PORT)
    if parts is None or not int(parts[2] or port):
        raise ValueError("is not a list of host:port")
    return parts[1].strip("[]"), int(parts[2] or port)
