"""The documentation pages, their fenced blocks, code spans and anchors."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.exists()
]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```\s*$", re.S | re.M
)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page and first line, its language, and its text."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def position(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"


def name(page: Path) -> str:
    """Return a page's path as messages name it."""
    return str(page.relative_to(ROOT))


def blocks(*kinds: str) -> list[Block]:
    """Return the fenced blocks of these kinds in all pages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            if match["kind"] in kinds:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Block(name(page), line, match["kind"], match["text"]))
    return found


def prose(page: Path) -> str:
    """Return a page without its fenced blocks, lines kept."""
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())


def spans(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the code spans of the prose, with their lines."""
    text = prose(page)
    for match in _SPAN.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match[1]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        if number:
            found.setdefault(f"{slug}-{number}", 1)
    return set(found)
