"""Redis URLs: what is valid, and what it says. Pure: knows nothing of the library that connects."""

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
_INVALID_PORT = "has a port beyond 65535; write redis://host:6379, or leave the port out where it is 6379"
_INVALID_DATABASE = (
    "has a database that is not a number: redis://host:6379/0; deployments that share a Redis have each a"
    " broker.prefix of their own"
)


@dataclass(frozen=True)
class RedisUrl:
    """Where the servers are. ``server`` is a URL of one of them as redis-py takes it, for its options."""

    kind: DeploymentKind
    server_url: str = field(repr=False)
    nodes: tuple[tuple[str, int], ...] = ()
    master_name: str = ""

    @property
    def is_hostname_checked(self) -> bool:
        """Whether TLS asks for a certificate of this very host; its authority is asked for always."""
        return _query_option(self.server_url, "ssl_check_hostname") not in ("0", "f", "false", "n", "no")

    @classmethod
    def parse(cls, text: str) -> "RedisUrl":
        """Return what a URL says. Raises ValueError, whose words quote nothing that may be a password."""
        url = cls._parse(text)
        if _query_option(url.server_url, "ssl_cert_reqs") not in ("", "required"):
            raise ValueError(
                "switches the verification of certificates off, so anybody on the way could answer; take"
                " ssl_cert_reqs out, and name the authority, or the server's own certificate:"
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
                raise ValueError("names a database, and a cluster has only one")
            return cls("cluster", f"{scheme}://{user}host:1/?{query or ''}", nodes)
        master, _, database = (path or "").partition("/")
        if not master:
            raise ValueError("names no master: redis+sentinel://host:26379,host:26379/name-of-the-master")
        if not re.fullmatch(r"[0-9]{0,9}", database):
            raise ValueError(_INVALID_DATABASE)
        return cls("sentinel", f"{scheme}://{user}host:1/{database}?{query or ''}", nodes, master)


def _query_option(url: str, name: str) -> str:
    """Return an option's value in lower case; redis-py takes the first."""
    return parse_qs(urlsplit(url).query).get(name, [""])[0].lower()


def _parse_single(text: str) -> RedisUrl:
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in ("redis", "rediss", "unix") and bool(parts.hostname or parts.path)
        is_good = is_good and text.startswith(f"{parts.scheme}://")
        is_good = is_good and (parts.port or 1) > 0 and not parts.fragment
    except ValueError:  # its words would quote a password that was taken for a port
        is_good = False
    if not is_good:
        raise ValueError(_INVALID_PORT if _has_port_out_of_range(text) else _INVALID_URL)
    if parts.scheme == "unix":
        if parts.hostname or parts.path == "/":
            raise ValueError("names no socket: unix:///run/redis.sock, with three slashes")
    elif not re.fullmatch(r"/?([0-9]{1,9}/?)?", parts.path):
        raise ValueError(_INVALID_DATABASE)
    if not re.fullmatch(r"[0-9]{0,9}", _query_option(text, "db")):
        raise ValueError(_INVALID_DATABASE)
    return RedisUrl("single", text)


def _has_port_out_of_range(text: str) -> bool:
    """Tell whether all that is wrong is a port that there is not. The number is not quoted: see `_parse_single`."""
    host = re.fullmatch(r"[a-z+]+://(?:[^@/]*@)?[^@/:\[\]]+:([0-9]{5,})(?:[/?].*)?", text)
    return host is not None and int(host[1][:6]) > 65535


def _parse_node(text: str, port: int) -> tuple[str, int]:
    parts = _NODE.fullmatch(text.strip())
    if parts is not None and int(parts[2] or port) > 65535:
        raise ValueError(_INVALID_PORT)
    if parts is None or not int(parts[2] or port):
        raise ValueError("is not a list of host:port")
    return parts[1].strip("[]"), int(parts[2] or port)
