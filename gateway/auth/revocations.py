"""What was revoked lately, so that nothing that was decided before opens or is remembered after."""

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import msgspec

from gateway.auth.grant import Grant
from gateway.config.catalog import Declared

REMEMBERED = 1000
"""Revocations that are remembered; whoever began before the oldest of them is taken to be meant."""


REVOKED = "revoked"


class Withdrawal(Protocol):
    """A reason for which some streams must not go on."""

    def means(self, grant: Grant, channels: Mapping[str, Declared], origin: str | None) -> str | None:
        """Return why a stream must end, as ``stream.close`` tells it, or None where it is not meant.

        ``channels`` are what it follows, declared names included; ``origin`` is the page that opened it.
        """


class Revocation(msgspec.Struct, frozen=True):
    """Streams of a subject, or of a channel, or of both together; of neither: of everybody with a grant."""

    subject: str | None
    channel: str | None

    def means(self, grant: Grant, channels: Mapping[str, Declared], origin: str | None) -> str | None:
        """Return ``revoked`` for a stream that is meant."""
        if self.subject is None and self.channel is None:
            is_meant = not grant.is_anybody
        else:
            is_meant = (self.subject is None or grant.subject == self.subject) and (
                self.channel is None or self.channel in channels
            )
        return REVOKED if is_meant else None


class Revocations:
    """All since the start, of which the last are remembered."""

    def __init__(self) -> None:
        self.number = 0
        """How many there were: note it before asking, and compare it after."""
        self._recent: deque[Withdrawal] = deque(maxlen=REMEMBERED)

    def add(self, revocation: Withdrawal) -> None:
        """Remember one."""
        self.number += 1
        self._recent.append(revocation)

    def hit(
        self, since: int, grant: Grant, channels: Mapping[str, Declared], origin: str | None = None
    ) -> str | None:
        """Return why what was begun at a ``number`` must not go on; None where nothing came after it."""
        later = self.number - since
        if later > len(self._recent):
            return None if grant.is_anybody else REVOKED
        recent = list(self._recent)[len(self._recent) - later :]
        return next((why for each in recent if (why := each.means(grant, channels, origin))), None)
