"""Figures in the docs are those that the benchmark measured last.

A comment after the number, invisible to readers, names where the figure is in
docs/benchmarks/latest.json: ``12.7 us<!-- fanout/sse-gateway/1/CPU us per delivery -->``: scenario,
server, workers (- for none), figure; then a factor where the unit is another one (``*0.001``).
"""

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name, prose

SCENARIOS = json.loads((ROOT / "docs/benchmarks/latest.json").read_text())["scenarios"]
ALL_MARKED = ("docs/sizing.md",)
"""Pages on which every figure with such a unit has a mark, or is marked as ``<!-- computed -->``."""

_MARK = re.compile(
    r"(?P<number>[0-9][0-9,]*(?:\.[0-9]+)?) ?(?P<unit>[^\s<|]*)<!-- "
    r"(?P<scenario>[\w-]+)/(?P<server>[^/>]+)/(?P<workers>\d+|-)/(?P<figure>[^>]+?)(?: \*(?P<factor>[0-9.]+))? -->"
)
_FIGURE = re.compile(r"[0-9][0-9,.]* (?:us|ms|KB|MB|s|events/s)(?![\w/])(?!<!--)")
MARKS = [(page, match) for page in PAGES for match in _MARK.finditer(prose(page))]


def measured(match: re.Match[str]) -> float:
    """Return the measured figure. Raises AssertionError if there is none."""
    workers = None if match["workers"] == "-" else int(match["workers"])
    rows = [
        row["figures"]
        for row in SCENARIOS.get(match["scenario"], {"rows": []})["rows"]
        if (row["server"], row["workers"]) == (match["server"], workers) and match["figure"] in row["figures"]
    ]
    assert rows, f"{match[0]}: latest.json has no such figure"
    return float(rows[0][match["figure"]]) * float(match["factor"] or 1)


@pytest.mark.parametrize(
    ("page", "match"), MARKS, ids=[f"{name(page)}:{match[0][:60]}" for page, match in MARKS]
)
def test_figures_are_those_that_were_measured(page: Path, match: re.Match[str]) -> None:
    """Users plan with a figure that the last run no longer shows."""
    shown = match["number"].replace(",", "")
    if "." in shown:
        half = 0.5 * 10 ** -len(shown.partition(".")[2])
    else:
        digits = shown.rstrip("0") or shown
        half = 0.5 * 10 ** (len(shown) - max(len(digits), min(2, len(shown))))
    found = measured(match)
    assert abs(found - float(shown)) <= half * 1.0001, f"{name(page)}: {match[0]}: it measured {found:g}"


def test_marks_are_found() -> None:
    """The other tests of this file find nothing to check, and pass."""
    assert len(MARKS) > 10


@pytest.mark.parametrize("page", ALL_MARKED)
def test_no_figure_is_without_its_mark(page: str) -> None:
    """A figure without a mark becomes outdated unnoticed."""
    text = re.sub(r"<!--.*?-->", "<!---->", prose(ROOT / page))
    unmarked = [match[0] for line in text.splitlines() for match in _FIGURE.finditer(line)]
    assert not unmarked, f"{page}: mark their origin as described in the docstring of this module"
