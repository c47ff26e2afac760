"""What the tests of the walk share: a gateway to examine, and findings by the names of their checks."""

from dataclasses import dataclass
from typing import Any

from gateway.cli.doctor import network
from gateway.cli.doctor.finding import Finding, Level
from gateway.cli.doctor.probe import Walk
from gateway.cli.doctor.target import Target
from gateway.cli.doctor.timeouts import Patience

APP = "https://app.example.com"
BEAT = 1.0
"""Seconds between heartbeats of `CONFIG`."""

CONFIG: dict[str, Any] = {
    "timeouts": {"heartbeat": f"{BEAT:g}s"},
    "cors": {"origins": [APP], "credentials": True},
}
BRIEF = Patience(listen=2.5 * BEAT, heartbeat=BEAT, connect=600.0, answer=600.0)


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
    patience: Patience = BRIEF,
) -> Examined:
    """Walk a URL."""
    findings: list[Finding] = []
    target = Target.parse(url, origin=origin, token=token)
    await Walk(target, findings.append, network.trusting(ca), patience).run()
    return Examined(findings)
