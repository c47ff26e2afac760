"""Links, anchors and paths of all pages exist."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, name, prose, spans

FOLDERS = ("gateway", "config", "docs", "deploy", "tests", "bench", "release")
_PATH = re.compile(rf"(?<![\w-])(?:{'|'.join(FOLDERS)})/[\w./*-]*")
_CREATED_AT_RUNTIME = ("bench/build", "config/tls")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_exist(page: Path) -> None:
    """A reader follows a link that leads nowhere."""
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
    """A page names a file that was renamed."""
    for line, span in spans(page):
        for path in _PATH.findall(span):
            if span.startswith(("/", "http")) or f"/{path}" in span or path.startswith(_CREATED_AT_RUNTIME):
                continue
            found = list(ROOT.glob(path.rstrip("/."))) if path.rstrip("/.") else []
            assert found, f"{name(page)}:{line}: there is no file {path}"
