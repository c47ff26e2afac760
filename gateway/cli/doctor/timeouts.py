"""How long each step waits. Pure."""

from dataclasses import dataclass

COMMON_TIMEOUT = 60.0
"""Seconds after which nginx, many load balancers and CDNs cut a connection that is idle."""


@dataclass(frozen=True, slots=True)
class Patience:
    """All in seconds."""

    listen: float = 70.0
    """Longer than `COMMON_TIMEOUT`, or a timeout on the way would not show."""
    heartbeat: float = 15.0
    """What ``timeouts.heartbeat`` of the gateway is."""
    connect: float = 10.0
    """For a name, for a connection, for a handshake."""
    answer: float = 10.0
    """For the head of an answer, and for the first bytes of its body after that."""
    late: float = 2.0
    """First bytes that come later than this after the head were held back."""
