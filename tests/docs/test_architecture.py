"""The two paths in docs/architecture.md name files that exist, and stay short."""

import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()

_STEP = re.compile(r"^\d+\. `(gateway/[\w/]+\.py)` ", re.MULTILINE)


def section(start: str) -> str:
    """Return the section whose heading begins with this text."""
    (found,) = re.findall(rf"^## {re.escape(start)}.*?(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.parametrize(("start", "most"), [("An event", 12), ("A subscription", 13)])
def test_paths_are_short_and_exist(start: str, most: int) -> None:
    """A newcomer follows a path to a file that is gone, or gives up because there are too many."""
    text = section(start)
    files = _STEP.findall(text)
    steps = re.findall(r"^\d+\. ", text, re.MULTILINE)
    assert len(files) == len(steps), f"each step of {start!r} begins with the file that it is about"
    assert 5 < len(files) <= most
    assert not [file for file in files if not (ROOT / file).is_file()]
