"""The gateway itself, with every feature on."""

import contextlib
import functools
import json
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.process import Process, gateway
from bench.servers.base import SECRET, MissingError, Server, Setup, with_last_id
from bench.servers.certificate import certificate
from gateway.config.model.config import ServerConfig as ServerSection

CONNECTIONS = 19_700
"""Streams of one process: 20,000 descriptors less what the gateway keeps."""

_START = 30.0
"""Seconds that all workers may take to be ready."""


class Gateway(Server):
    """A gateway with one or more workers, fed by its webhook."""

    name = "sse-gateway"
    version = version("sse-gateway")
    batch = 1000

    def __init__(self, setup: Setup, port: int, admin: int, process: Process) -> None:
        super().__init__(setup, port, [process])
        self.admin = admin

    def target(self, channel: str, last_event_id: str | None = None) -> str:
        """Return the path and, where the channel asks for one, a token."""
        target = with_last_id(f"/events/{channel}", last_event_id)
        if not self.setup.token:
            return target
        return f"{target}\tAuthorization: Bearer {token(self.setup.channels, self.setup.token)}"

    def targets(self, channel: str, streams: int) -> Sequence[str]:
        """Return what so many users ask for, each with a token of his own."""
        if not self.setup.token:
            return super().targets(channel, streams)
        kind = self.setup.token
        tokens = (token(self.setup.channels, kind, subject=str(number)) for number in range(streams))
        return [f"/events/{channel}\tAuthorization: Bearer {each}" for each in tokens]

    def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """Post one event, or several as a JSON array."""
        body = payloads[0] if len(payloads) == 1 else b"[" + b",".join(payloads) + b"]"
        self._posting.post(f"/hooks/hooks?topic={channel}", body)

    def thrown_out(self) -> int:
        """Return what its metric says of clients that took nothing for too long, or were reset."""
        # Its own timer and the kernel's run for the same time; the kernel's shows as client_lost.
        reasons = "write_timeout|slow_client|client_lost"
        found = re.findall(
            rf'disconnects_total\{{reason="(?:{reasons})"\}} ([0-9.e+]+)', self._ask("/metrics")
        )
        return round(sum(map(float, found)))

    def await_workers(self) -> None:
        """Wait until all workers are ready: the port is open with the first. Raises TimeoutError."""
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.HTTPError):
                workers = json.loads(self._ask("/readyz")).get("workers", {})
                ready = sum(each.get("ready", False) for each in workers.values())
                if ready == self.workers or self.workers == 1:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"{self.workers} workers were not ready within {_START:.0f} s")

    def lines(self) -> int:
        """Return how many lines it has logged."""
        words = self._processes[0].words
        return 0 if words is None else words.read_bytes().count(b"\n")

    def metric(self, name: str) -> float:
        """Return a metric without labels."""
        found = re.search(rf"^sse_gateway_{name} (\S+)$", self._ask("/metrics"), re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def _ask(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text


def token(channels: Sequence[str], algorithm: str, subject: str = "bench") -> str:
    """Return a bearer token for some channels that is good for an hour."""
    claims = {"sub": subject, "exp": int(time.time()) + 3600, "channels": list(channels)}
    return jwt.encode(claims, SECRET if algorithm == "HS256" else _rsa_key(), algorithm)


@functools.cache
def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _jwt(algorithm: str, folder: str) -> dict[str, Any]:
    if algorithm != "RS256":
        return {"algorithms": ["HS256"], "secret": SECRET}
    file = Path(folder) / "public.pem"
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    file.write_bytes(_rsa_key().public_key().public_bytes(serialization.Encoding.PEM, public))
    return {"algorithms": ["RS256"], "public_key_file": str(file)}


@contextlib.contextmanager
def start(setup: Setup) -> Iterator[Server]:
    """Run a gateway."""
    if setup.workers > 1 and "workers" not in ServerSection.model_fields:
        raise MissingError("this gateway has no server.workers")
    with tempfile.TemporaryDirectory() as folder, _running(setup, folder) as (process, port, admin):
        server = Gateway(setup, port, admin, process)
        try:
            server.await_workers()
            yield server
        finally:
            server.close()


def _running(setup: Setup, folder: str) -> contextlib.AbstractContextManager[tuple[Process, int, int]]:
    own: dict[str, Any] = {"workers": setup.workers} if setup.workers > 1 else {}
    if setup.tls:
        chain, key = certificate(folder)
        own["tls"] = {"certificate": str(chain), "key": str(key)}
    # All clients share a few addresses and one token, and are counted for them: loopback is no proxy here.
    own["trusted_proxies"] = ["192.0.2.1"]
    alike = {
        "connections_per_user": CONNECTIONS * 8,
        "connections_per_address": CONNECTIONS * 8,
        "connect_rate_per_address": "1000000/s",
    }
    if setup.trusted:
        own["trusted_proxies"] = list(setup.trusted)
        alike = {}
    log = "memory://" if setup.workers == 1 else f"sqlite:///{folder}/log.db"
    channel = {"access": "token" if setup.token else "public", "history": {"events": setup.history}}
    return gateway(
        {
            "server": own,
            "logging": {"level": setup.log},
            "broker": {"url": setup.broker or log},
            "timeouts": {"heartbeat": f"{setup.heartbeat * 1000:.0f}ms", "drain": "1s"},
            "limits": {"connections": CONNECTIONS, **alike},
            "auth": {"jwt": _jwt(setup.token, folder)},
            "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
            "channels": {
                name: {**channel, "from": [{"source": "hooks", "topic": name}]} for name in setup.channels
            },
        }
    )
