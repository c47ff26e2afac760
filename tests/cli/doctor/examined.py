"""What the tests of the walk share: a gateway to examine, and findings by the names of their checks."""

from dataclasses import dataclass
from typing import Any

from gateway.cli.doctor.probe import Probe
from gateway.cli.doctor.streaming import ProbeTimeouts
from gateway.cli.doctor.target import ProbeTarget
from gateway.cli.finding import Finding, Level
from gateway.cli.http_client import client_tls_context

APP = "https://app.example.com"
BEAT = 1.0
"""Seconds between heartbeats of `CONFIG`."""

CONFIG: dict[str, Any] = {
    "timeouts": {"heartbeat": f"{BEAT:g}s"},
    "cors": {"origins": [APP], "credentials": True},
}
BRIEF = ProbeTimeouts(
    listen_seconds=2.5 * BEAT, heartbeat_seconds=BEAT, connect_seconds=600.0, response_seconds=600.0
)


@dataclass(frozen=True)
class Examined:
    """The findings of one walk."""

    findings: list[Finding]

    def __getitem__(self, check: str) -> Finding:
        (found,) = (finding for finding in self.findings if finding.check == check)
        return found

    @property
    def bad(self) -> set[str]:
        """The checks that are bad."""
        return {finding.check for finding in self.findings if finding.level is Level.BAD}

    @property
    def checks(self) -> list[str]:
        """All checks, in their order."""
        return [finding.check for finding in self.findings]


async def examine(
    url: str,
    *,
    origin: str | None = APP,
    token: str | None = None,
    ca: str | None = None,
    patience: ProbeTimeouts = BRIEF,
) -> Examined:
    """Walk a URL."""
    findings: list[Finding] = []
    target = ProbeTarget.parse(url, origin=origin, token=token)
    await Probe(target, findings.append, client_tls_context(ca), patience).run()
    return Examined(findings)
