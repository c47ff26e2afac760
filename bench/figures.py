"""Counts of times by their size, as the load client prints them, merged over processes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Times:
    """Times in seconds, each bucket by its least value; a percentile is off by 0.8 % at most."""

    buckets: tuple[tuple[float, int], ...] = ()
    longest: float = 0.0

    @classmethod
    def merged(cls, parts: Iterable[tuple[Sequence[tuple[int, int]], int]]) -> "Times":
        """Add up what several processes counted: buckets by nanoseconds, and the longest."""
        counts: Counter[int] = Counter()
        longest = 0
        for buckets, most in parts:
            for least, count in buckets:
                counts[least] += count
            longest = max(longest, most)
        return cls(tuple((least / 1e9, counts[least]) for least in sorted(counts)), longest / 1e9)

    @property
    def count(self) -> int:
        """How many times were counted."""
        return sum(count for _, count in self.buckets)

    def percentile(self, share: float) -> float:
        """Return the time in seconds that ``share`` of all are not above; 0 where there are none."""
        rank = share * self.count
        seen = 0
        for least, count in self.buckets:
            seen += count
            if seen >= rank:
                return least
        return self.longest
