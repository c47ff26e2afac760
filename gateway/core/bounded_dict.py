"""A mapping for keys and values from outside, bounded in entries and in bytes. Pure."""

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

MAX_KEY_CHARS = 256
"""Longest text that is used as a key as it is, in characters; a longer one is replaced by its digest."""

ENTRY_OVERHEAD_BYTES = 250
"""Memory of an entry beside its key and value, in bytes: measured, rounded up."""

ENTRY_SIZE_DIVISOR = 16
"""An entry may take one 16th of the bytes, or is not stored: one entry must not evict many."""

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """Holds at most ``max_entries`` and ``max_bytes``; evicts the oldest. Change it by its own methods only.

    What is in it must not change: an entry is weighed when it comes and when it goes. ``max_bytes`` None is for
    entries whose size cannot vary much: they are not weighed.
    """

    def __init__(self, max_entries: int, max_bytes: int | None = None) -> None:
        super().__init__()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self.total_bytes = 0

    def put(self, key: K, value: V) -> None:
        """Store an entry as the newest one."""
        if self._max_bytes is None:
            self[key] = value
            self.move_to_end(key)
            if len(self) > self._max_entries:
                self.popitem(last=False)
            return
        self.remove(key)
        size = _entry_bytes(key, value)
        if size > self._max_bytes // ENTRY_SIZE_DIVISOR:
            return
        self[key] = value
        self.total_bytes += size
        while len(self) > self._max_entries or self.total_bytes > self._max_bytes:
            self.total_bytes -= _entry_bytes(*self.popitem(last=False))

    def remove(self, key: K) -> None:
        """Remove an entry if there is one."""
        if key in self:
            if self._max_bytes is not None:
                self.total_bytes -= _entry_bytes(key, self[key])
            del self[key]

    def clear(self) -> None:
        """Remove all entries."""
        super().clear()
        self.total_bytes = 0


def _entry_bytes(key: object, value: object) -> int:
    return estimate_bytes(key) + estimate_bytes(value) + ENTRY_OVERHEAD_BYTES


def estimate_bytes(value: object) -> int:
    """Return the approximate memory of a value in bytes: text, numbers, collections and structs of them."""
    total = 0
    left: list[Any] = [value]
    while left:
        each = left.pop()
        total += sys.getsizeof(each)
        if isinstance(each, (str, bytes, int, float)) or each is None:
            continue
        if isinstance(each, Mapping):
            left += each.keys()
            left += each.values()
        elif isinstance(each, (list, tuple, set, frozenset)):
            left += each
        else:
            left += [getattr(each, name) for name in getattr(type(each), "__struct_fields__", ())]
    return total


def bounded_key(text: str) -> str:
    """Return a text for use in a key: itself, or its digest if it is longer than `MAX_KEY_CHARS`."""
    if len(text) <= MAX_KEY_CHARS:
        return text
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
