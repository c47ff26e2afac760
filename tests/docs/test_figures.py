"""Figures that the docs take from the benchmark are those that it measured last.

A figure is marked behind its number by a comment that readers do not see, and that names where it is in
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
"""Pages on which every figure with such a unit is marked, or says that it is computed: ``<!-- computed -->``."""

_MARK = re.compile(
    r"(?P<number>[0-9][0-9,]*(?:\.[0-9]+)?) ?(?P<unit>[^\s<|]*)<!-- "
    r"(?P<scenario>[\w-]+)/(?P<server>[^/>]+)/(?P<workers>\d+|-)/(?P<figure>[^>]+?)(?: \*(?P<factor>[0-9.]+))? -->"
)
_FIGURE = re.compile(r"[0-9][0-9,.]* (?:us|ms|KB|MB|s|events/s)(?![\w/])(?!<!--)")
MARKS = [(page, match) for page in PAGES for match in _MARK.finditer(prose(page))]


def measured(match: re.Match[str]) -> float:
    """Return what the benchmark measured. Raises AssertionError where the mark leads nowhere."""
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
    """Rounded as it is shown, the figure is the one of the last run."""
    shown = match["number"].replace(",", "")
    if "." in shown:
        half = 0.5 * 10 ** -len(shown.partition(".")[2])
    else:
        digits = shown.rstrip("0") or shown
        half = 0.5 * 10 ** (len(shown) - max(len(digits), min(2, len(shown))))
    found = measured(match)
    assert abs(found - float(shown)) <= half * 1.0001, f"{name(page)}: {match[0]}: it measured {found:g}"


def test_marks_are_found() -> None:
    """A test that finds nothing proves nothing."""
    assert len(MARKS) > 10


@pytest.mark.parametrize("page", ALL_MARKED)
def test_no_figure_is_without_its_mark(page: str) -> None:
    """A figure that nobody compares gets old unseen."""
    text = re.sub(r"<!--.*?-->", "<!---->", prose(ROOT / page))
    unmarked = [match[0] for line in text.splitlines() for match in _FIGURE.finditer(line)]
    assert not unmarked, f"{page}: say where these are from, as the docstring of this module tells"
