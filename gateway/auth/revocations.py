"""What was revoked lately, so that nothing that was decided before opens or is remembered after."""

from collections import deque
from collections.abc import Container

import msgspec

from gateway.auth.grant import Grant

REMEMBERED = 1000
"""Revocations that are remembered; whoever began before the oldest of them is taken to be meant."""


class Revocation(msgspec.Struct, frozen=True):
    """Streams of a subject, or of a channel, or of both together; of neither: of everybody with a grant."""

    subject: str | None
    channel: str | None

    def means(self, grant: Grant, channels: Container[str]) -> bool:
        """Tell whether a stream is meant; ``channels`` are its names, declared names included."""
        if self.subject is None and self.channel is None:
            return not grant.is_anybody
        return (self.subject is None or grant.subject == self.subject) and (
            self.channel is None or self.channel in channels
        )


class Revocations:
    """All since the start, of which the last are remembered."""

    def __init__(self) -> None:
        self.number = 0
        """How many there were: note it before asking, and compare it after."""
        self._recent: deque[Revocation] = deque(maxlen=REMEMBERED)

    def add(self, revocation: Revocation) -> None:
        """Remember one."""
        self.number += 1
        self._recent.append(revocation)

    def hit(self, since: int, grant: Grant, channels: Container[str]) -> bool:
        """Tell whether what was begun at a ``number`` was revoked after it."""
        later = self.number - since
        if later > len(self._recent):
            return not grant.is_anybody
        return any(each.means(grant, channels) for each in list(self._recent)[len(self._recent) - later :])
