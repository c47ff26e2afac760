"""What nodes share beside the log: notes and seats. Small, and gone by itself.

**Notes.** A name can hold a value for a while. Every node sees the newest.

**Seats.** A name has members, each for so many seconds since it was last asked for, and takes new ones up to
a limit: a count over all nodes that heals by itself when a node dies. Who is a member already stays one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class QuotaSlot(NamedTuple):
    """A place of one member under a name; with ``limit`` None it is taken however many there are."""

    name: str
    member: str
    limit: int | None


class SharedStore(ABC):
    """Every method raises Unavailable for temporary trouble; cancelled, it may be done or not."""

    is_shared: ClassVar[bool] = True
    """Whether other processes may have the same board."""

    @abstractmethod
    async def put(self, name: str, value: bytes, seconds: float) -> None:
        """Hold a value under a name, in place of the one before."""

    @abstractmethod
    async def get(self, name: str) -> bytes | None:
        """Return what a name holds; None where it holds nothing any more."""

    @abstractmethod
    async def acquire_slots(self, slots: Sequence[QuotaSlot], seconds: float) -> list[bool]:
        """Take or keep seats, in order, and return which of them are had."""

    @abstractmethod
    async def release_slots(self, slots: Sequence[QuotaSlot]) -> None:
        """Give seats back."""
