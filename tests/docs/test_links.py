"""Links, anchors and paths of all pages lead to something."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, name, prose, spans

FOLDERS = ("gateway", "config", "docs", "deploy", "tests", "bench", "release")
_PATH = re.compile(rf"(?<![\w-])(?:{'|'.join(FOLDERS)})/[\w./*-]*")
_WRITTEN_BY_RUNS = ("bench/build", "config/tls")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_exist(page: Path) -> None:
    """Whoever follows one at night must arrive."""
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose(page)):
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), f"{name(page)}: the link {link} leads to no file"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), (
                f"{name(page)}: {link}: there is no such heading; {anchors(target)}"
            )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_exist(page: Path) -> None:
    """A file that was renamed, and is still named."""
    for line, span in spans(page):
        for path in _PATH.findall(span):
            if span.startswith(("/", "http")) or f"/{path}" in span or path.startswith(_WRITTEN_BY_RUNS):
                continue
            found = list(ROOT.glob(path.rstrip("/."))) if path.rstrip("/.") else []
            assert found, f"{name(page)}:{line}: there is no file {path}"
