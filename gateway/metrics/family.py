"""One metric with its samples, as processes tell it to each other and to Prometheus."""

from typing import Literal

import msgspec

Labels = tuple[tuple[str, str], ...]
Merge = Literal["sum", "min", "max"]
"""How the gauges of several workers become one; counters and histograms are added up."""


class Family(msgspec.Struct, frozen=True):
    """One metric with its samples: (name, labels, value)."""

    name: str
    type: str
    text: str
    merge: Merge
    samples: list[tuple[str, Labels, float]]
