"""The proxies of deploy/, each started from the file that is shipped.

Of the file only what a user changes is changed, and what cannot be the same on a test's machine: addresses,
ports, certificates, the folders of a package, and how long "idle" is. Each edit must find what it changes.
"""

import csv
import getpass
import grp
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.process import Process, free_port, running, wait_for_port
from tests.support.authority import Pair
from tests.support.deadline import SAFETY_SECONDS
from tests.support.needs import need
from tests.support.node import Node

DEPLOY = Path(__file__).parents[2] / "deploy"
GATEWAYS = ("127.0.0.11", "127.0.0.12")
"""Where the tests' gateways are, for 10.0.0.11 and 10.0.0.12."""

CHECK_SECONDS = 60
"""How long a gateway of a test may take to answer a health check: a slow machine must not look like a dead gateway."""


@dataclass(frozen=True)
class Place:
    """What a recipe is told about the machine that it runs on."""

    folder: Path
    port: int
    plain: int
    """The port for plain HTTP."""
    gateway: int
    admin: int
    pair: Pair
    idle: int
    """Seconds."""

    @property
    def pem(self) -> Path:
        """Return certificate and key in one file."""
        file = self.folder / "both.pem"
        file.write_bytes(self.pair.certificate.read_bytes() + self.pair.key.read_bytes())
        return file


@dataclass(frozen=True)
class Recipe:
    """One file of deploy/ and how it is run."""

    file: str
    edits: Callable[[Place], Mapping[str, str]]
    command: Callable[[Path], Sequence[str]]
    reload: Callable[[Process, Path], None] | None = None
    """Makes it read its file again, as an operator would; None for one that is replaced by another process."""
    environ: Callable[[Path], Mapping[str, str]] = lambda folder: {}
    faults: Callable[[Place], Sequence[str]] = lambda place: ()
    """Returns what it counted, or wrote into its log, against the gateways since it was started."""

    def text(self, place: Place) -> str:
        """Return the file as it is run. Raises AssertionError where an edit has nothing to change."""
        text = (DEPLOY / self.file).read_text()
        for number, host in enumerate(GATEWAYS):
            text = _edited(text, f"10.0.0.1{number + 1}", host)
        for old, new in self.edits(place).items():
            text = _edited(text, old, new)
        return text


def _edited(text: str, old: str, new: str) -> str:
    assert old in text, f"the recipe has no {old!r}"
    return text.replace(old, new)


def _nginx_edits(place: Place) -> Mapping[str, str]:
    kinds = ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    folders = " ".join(f"{kind}_temp_path {place.folder}/{kind};" for kind in kinds)
    return {
        "user www-data;": f"user {getpass.getuser()};",
        "/run/nginx.pid": f"{place.folder}/nginx.pid",
        "/var/log/nginx": str(place.folder),
        "worker_rlimit_nofile 65536": "worker_rlimit_nofile 4096",  # a test's machine has no more
        "worker_connections 30000": "worker_connections 2000",
        "http {\n": f"http {{ {folders}\n",
        "listen 80;": f"listen 127.0.0.1:{place.plain};",
        "listen 443 ": f"listen 127.0.0.1:{place.port} ",
        ":8080 ": f":{place.gateway} ",
        "/etc/ssl/events/tls.crt": str(place.pair.certificate),
        "/etc/ssl/events/tls.key": str(place.pair.key),
        "proxy_read_timeout 60s;": f"proxy_read_timeout {place.idle}s;",
    }


def _nginx_command(file: Path) -> Sequence[str]:
    return [
        need("nginx", "nginx-light"),
        "-c",
        str(file),
        "-e",
        f"{file.parent}/error.log",
        "-g",
        "daemon off;",
    ]


def _nginx_faults(place: Place) -> Sequence[str]:
    # With max_fails=1 each line about an upstream is a gateway that was taken out.
    return [line for line in (place.folder / "error.log").read_text().splitlines() if "upstream" in line]


def _haproxy_edits(place: Place) -> Mapping[str, str]:
    return {
        "user haproxy": f"stats socket {place.folder}/stats.sock\n    user {getpass.getuser()}",
        "group haproxy": f"group {grp.getgrgid(os.getgid()).gr_name}",
        "maxconn 60000": "maxconn 2000",  # a test's machine has no more
        "bind :443 ": f"bind 127.0.0.1:{place.port} ",
        "bind :80\n": f"bind 127.0.0.1:{place.plain}\n",
        ":8080": f":{place.gateway}",
        "port 9090\n": f"port {place.admin}\n",
        "/etc/haproxy/events.pem": str(place.pem),
        "timeout client 60s": f"timeout client {place.idle}s",
        "timeout queue 5s\n": f"timeout queue 5s\n    timeout check {CHECK_SECONDS}s\n",
        "timeout server 60s": f"timeout server {place.idle}s",
    }


def _haproxy_faults(place: Place) -> Sequence[str]:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(place.folder / "stats.sock"))
        asking.sendall(b"show stat\n")
        text = b"".join(iter(lambda: asking.recv(65536), b"")).decode()
    rows = [
        row for row in csv.DictReader(text.removeprefix("# ").splitlines()) if row["svname"] in ("one", "two")
    ]
    bad = ("econ", "eresp", "wretr", "wredis", "chkfail", "chkdown", "hrsp_5xx")
    return [
        f"{row['pxname']}/{row['svname']}: {name} {row[name]}"
        for row in rows
        for name in bad
        if row[name] not in ("", "0")
    ] + [f"{row['svname']} is {row['status']}" for row in rows if not row["status"].startswith("UP")]


def _caddy_edits(place: Place) -> Mapping[str, str]:
    return {
        "{\n\tservers": f"{{\n\tadmin unix/{place.folder}/admin.sock\n\tauto_https disable_redirects\n\tservers 127.0.0.1:{place.port}",
        "events.example.com {": f"https://127.0.0.1:{place.port} {{\n\tbind 127.0.0.1",
        "/etc/caddy/tls.crt": str(place.pair.certificate),
        "/etc/caddy/tls.key": str(place.pair.key),
        ":8080": f":{place.gateway}",
        "health_port 9090": f"health_port {place.admin}",
        "health_timeout 1s": f"health_timeout {CHECK_SECONDS}s",
        "read_timeout 60s": f"read_timeout {place.idle}s",
    }


def _caddy_reload(process: Process, file: Path) -> None:
    command = [need("caddy", "caddy"), "reload", "--config", str(file), "--adapter", "caddyfile", "--force"]
    subprocess.run(
        [*command, "--address", f"unix/{file.parent}/admin.sock"], check=True, timeout=SAFETY_SECONDS
    )


def _caddy_faults(place: Place) -> Sequence[str]:
    transport = httpx.HTTPTransport(uds=str(place.folder / "admin.sock"))
    with httpx.Client(transport=transport, timeout=SAFETY_SECONDS) as asking:
        # On a Unix socket it wants no host (RFC 9112 §3.2).
        upstreams = asking.get("http://caddy/reverse_proxy/upstreams", headers={"Host": ""}).json()
    said = (place.folder / "caddy.log").read_text().splitlines()
    return [f"{each['address']}: {each['fails']} fails" for each in upstreams if each["fails"]] + [
        line for line in said if '"level":"error"' in line or "unhealthy" in line or "\tERROR\t" in line
    ]


def _envoy_edits(place: Place) -> Mapping[str, str]:
    admin = f"admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {place.plain}}}}}}}"
    return {
        "static_resources:": f"{admin}\nstatic_resources:",
        "address: 0.0.0.0, port_value: 443": f"address: 127.0.0.1, port_value: {place.port}",
        "/etc/envoy/tls.crt": str(place.pair.certificate),
        "/etc/envoy/tls.key": str(place.pair.key),
        "port_value: 8080": f"port_value: {place.gateway}",
        "port_value: 9090": f"port_value: {place.admin}",
        "stream_idle_timeout: 60s": f"stream_idle_timeout: {place.idle}s",
        "- timeout: 1s\n": f"- timeout: {CHECK_SECONDS}s\n",
    }


def _envoy_command(file: Path) -> Sequence[str]:
    program = str(Path(sys.executable).with_name("envoy"))
    return [program, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]


def _envoy_faults(place: Place) -> Sequence[str]:
    asked = httpx.get(
        f"http://127.0.0.1:{place.plain}/stats?filter=^cluster.gateways", timeout=SAFETY_SECONDS
    )
    found = dict(
        line.split(": ") for line in asked.text.splitlines() if not line.endswith("No recorded values")
    )
    bad = (
        *("upstream_rq_5xx", "upstream_rq_retry", "upstream_cx_connect_fail", "health_check.failure"),
        *("upstream_cx_destroy_remote_with_active_rq", "upstream_rq_pending_failure_eject"),
    )
    counts = {name: int(found.get(f"cluster.gateways.{name}", 0)) for name in bad}
    return [f"{name}: {count}" for name, count in counts.items() if count]


RECIPES = {
    "nginx": Recipe(
        "nginx/nginx.conf",
        _nginx_edits,
        _nginx_command,
        lambda process, file: process.signal(signal.SIGHUP),
        faults=_nginx_faults,
    ),
    "haproxy": Recipe(
        "haproxy/haproxy.cfg",
        _haproxy_edits,
        lambda file: [need("haproxy", "haproxy"), "-W", "-db", "-f", str(file)],
        lambda process, file: process.signal(signal.SIGUSR2),
        faults=_haproxy_faults,
    ),
    "caddy": Recipe(
        "caddy/Caddyfile",
        _caddy_edits,
        lambda file: [need("caddy", "caddy"), "run", "--config", str(file), "--adapter", "caddyfile"],
        _caddy_reload,
        lambda folder: {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        _caddy_faults,
    ),
    "envoy": Recipe("envoy/envoy.yaml", _envoy_edits, _envoy_command, faults=_envoy_faults),
}


@dataclass(frozen=True)
class Proxy:
    """One that runs. ``port`` is its port for TLS."""

    recipe: Recipe
    file: Path
    port: int
    process: Process
    place: Place

    def faults(self) -> Sequence[str]:
        """Return what it counted, or wrote into its log, against the gateways since it was started."""
        return self.recipe.faults(self.place)

    @property
    def pids(self) -> set[int]:
        """Its processes: a reload adds some, where it does not happen in the one that there is."""
        return set(self.process.family())

    def reload(self) -> None:
        """Make it read its file again."""
        assert self.recipe.reload is not None
        self.recipe.reload(self.process, self.file)


@contextmanager
def proxy_running(
    name: str, folder: Path, nodes: Sequence[Node], pair: Pair, *, idle: int = 60
) -> Iterator[Proxy]:
    """Run a proxy in front of the two nodes. ``idle`` is its timeout in seconds."""
    recipe = RECIPES[name]
    (gateway,), (admin,) = {node.port for node in nodes}, {node.admin for node in nodes}
    place = Place(folder, free_port(), free_port(), gateway, admin, pair, idle)
    file = folder / Path(recipe.file).name
    file.write_text(recipe.text(place))
    said = folder / f"{name}.log"
    with (
        said.open("w") as stderr,
        running(*recipe.command(file), stderr=stderr, **recipe.environ(folder)) as process,
    ):
        try:
            wait_for_port(place.port, alive=process.is_running)
        except (RuntimeError, TimeoutError) as error:
            raise AssertionError(f"{name} does not run: {said.read_text()[-2000:]}") from error
        yield Proxy(recipe, file, place.port, process, place)
