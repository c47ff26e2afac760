"""How long each step waits. Pure."""

from dataclasses import dataclass

COMMON_PROXY_TIMEOUT_SECONDS = 60.0
"""Seconds after which nginx, many load balancers and CDNs cut a connection that is idle."""


@dataclass(frozen=True, slots=True)
class ProbeTimeouts:
    """All in seconds."""

    listen_seconds: float = 70.0
    """Longer than `COMMON_PROXY_TIMEOUT_SECONDS`, or a timeout on the way would not show."""
    heartbeat_seconds: float = 15.0
    """What ``timeouts.heartbeat`` of the gateway is."""
    connect_seconds: float = 10.0
    """For a name, for a connection, for a handshake."""
    response_seconds: float = 10.0
    """For the head of an answer, and for the first bytes of its body after that."""
    late_seconds: float = 2.0
    """First bytes that come later than this after the head were held back."""
