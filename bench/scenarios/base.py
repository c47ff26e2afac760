"""What a scenario is, and the rows that it gives."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Figure = float | int | str


@dataclass(frozen=True, slots=True)
class Options:
    """How much is to be run."""

    quick: bool = False
    """Small runs that show that all works; their figures mean nothing."""
    minutes: float = 2.0
    """How long memory is watched."""

    def pick(self, whole: int, quick: int) -> int:
        """Return the size of a whole run or of a quick one."""
        return quick if self.quick else whole


@dataclass(frozen=True, slots=True)
class Target:
    """What a row should reach, and whether it did."""

    text: str
    met: bool


def at_most(what: str, figure: float, limit: float, unit: str = "") -> Target:
    """Return the target that a figure does not exceed a limit."""
    return Target(f"{what} {figure:.3g}{unit} <= {limit:g}{unit}", figure <= limit)


def at_least(what: str, figure: float, limit: float, unit: str = "") -> Target:
    """Return the target that a figure reaches a limit."""
    return Target(f"{what} {figure:.3g}{unit} >= {limit:g}{unit}", figure >= limit)


def all_delivered(failed: int, missing: int) -> Target:
    """Return the target that every stream came to life and every event arrived."""
    return Target(f"streams failed {failed}, events missing {missing}", not failed and not missing)


@dataclass(frozen=True, slots=True)
class Row:
    """One server in one scenario."""

    server: str
    workers: int | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """By column; a column's name tells the unit."""
    targets: tuple[Target, ...] = ()
    note: str = ""
    series: Sequence[tuple[float, float]] = ()
    """For a chart over time: seconds, and the value."""

    @property
    def met(self) -> bool:
        """Whether no target was missed."""
        return all(target.met for target in self.targets)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something that is measured."""

    name: str
    title: str
    how: str
    """What was done and what the columns are, for a reader of the report."""
    measure: Callable[[Options], Iterator[Row]]
    limit: float = 300.0
    """Seconds after which it is ended."""
