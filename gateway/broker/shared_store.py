"""The interface of the shared store: small state that nodes share beside the log, and that expires by itself.

**Entries.** A name holds a value for a limited time. Every node reads the newest value.

**Quota slots.** A quota (a name) has slots, each held by a member and valid for so many seconds since it was
last acquired. New members are accepted up to a limit; a member that holds a slot keeps it. So the count
covers all nodes, and corrects itself when a node dies.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class QuotaSlot(NamedTuple):
    """A member's slot of the quota ``name``; with ``limit`` None it is always granted."""

    name: str
    member: str
    limit: int | None


class SharedStore(ABC):
    """Every method raises Unavailable for a temporary failure. A cancelled call may have had its effect."""

    is_shared: ClassVar[bool] = True
    """Whether other processes may use the same store."""

    @abstractmethod
    async def put(self, name: str, value: bytes, seconds: float) -> None:
        """Store a value under a name, in place of the one before."""

    @abstractmethod
    async def get(self, name: str) -> bytes | None:
        """Return the value of a name; None if there is none, or it expired."""

    @abstractmethod
    async def acquire_slots(self, slots: Sequence[QuotaSlot], seconds: float) -> list[bool]:
        """Acquire or renew slots, in order, and return for each whether it was granted."""

    @abstractmethod
    async def release_slots(self, slots: Sequence[QuotaSlot]) -> None:
        """Release slots; harmless for one that is not held."""
