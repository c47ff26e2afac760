"""Words that this project once used in a private sense stay out of prose.

CONTRIBUTING.md: name a thing by the field's noun, and say what it does with a precise verb.
"""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name, prose

CODE: tuple[str, ...] = ()
"""Folders whose Python files are checked too. To be added when their prose follows the style:
gateway/core, gateway/config, gateway/observability, gateway/net, gateway/webhooks, gateway/sources,
gateway/broker, gateway/auth, gateway/hub, gateway/streams, gateway/http, gateway/admin, gateway/server, gateway/cli.
"""

GENERATED = ("docs/configuration.md", "docs/metrics.md", "docs/commands.md", "docs/benchmarks/")
"""Pages that are written from the code's or the benchmark's texts: to be dropped from here with `CODE`."""

WORDS = {
    r"\bseldom\b": "rarely, or the rate",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bwhoever\b": "the noun: caller, client, reader, operator",
    r"\btold\b": "reported, notified",
    r"\bwhat is behind\b": "the noun",
    r"\bgiv(?:e|es|ing) way\b": "yield",
    r"\blet(?:s|ting)? go\b": "release, drop",
    r"\b(?:can|could) (?:no longer |not )?be had\b": "is unavailable, can be fetched",
    r"\bmistakes?\b": "error",
    r"\bwho asks\b": "the caller, the client",
}
"""Patterns, and what to write instead."""

NAMES = re.compile(r"\b(?:seldom|whose|told|whoever)\b")
"""What no identifier may be called."""

_SPAN = re.compile(r"`[^`\n]*`|<!--.*?-->|\]\([^)]*\)")


def faults(where: str, text: str) -> list[str]:
    """Return ``where:line: word`` for each word that prose should not have."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = _SPAN.sub(lambda match: " " * len(match[0]), line)
        for pattern, instead in WORDS.items():
            found += [
                f"{where}:{number}: {match[0]!r}: write {instead}"
                for match in re.finditer(pattern, words, re.I)
            ]
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if not name(page).startswith(GENERATED)], ids=name)
def test_prose_has_no_private_words(page: Path) -> None:
    """A newcomer has to decode the page."""
    assert not faults(name(page), prose(page))


def test_code_has_no_private_words() -> None:
    """A newcomer has to decode docstrings, comments, messages and names."""
    found = []
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            found += faults(name(path), text)
            for number, line in enumerate(text.splitlines(), 1):
                found += [f"{name(path)}:{number}: {match[0]} as a name" for match in NAMES.finditer(line)]
    assert not found, "\n".join(found)


def test_words_are_found() -> None:
    """The other tests of this file find nothing to check, and pass."""
    assert faults("a", "What can no longer be had is told by whoever asks.\nA `mend` in code is fine.") == [
        "a:1: 'whoever': write the noun: caller, client, reader, operator",
        "a:1: 'told': write reported, notified",
        "a:1: 'can no longer be had': write is unavailable, can be fetched",
    ]
