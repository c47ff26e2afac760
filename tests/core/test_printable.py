"""Untrusted text in terminals and logs."""

import sys
import unicodedata

from gateway.core.sanitize import escape_unprintable, escape_unprintable_lines

STEERS = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of control and format characters, surrogates, and separators of lines."""


def test_no_character_that_steers_is_left() -> None:
    """A character that moves the cursor, turns text around or is not seen lets a stranger forge what is read."""
    every = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in STEERS]
    assert len(every) > 2000
    assert [hex(ord(char)) for char in every if char in escape_unprintable(f"a{char}b")] == []
    assert [hex(ord(char)) for char in every if char in escape_unprintable_lines(f"a{char}b")] == [
        "0x9",
        "0xa",
    ]


def test_words_of_all_languages_are_left_alone() -> None:
    """Names of channels are in the language of those who gave them."""
    text = "Bestellungen für Zoë, заказы, 注文, طلبات, 😀"
    assert escape_unprintable(text) == text
    assert escape_unprintable(f"{text}\x9b") == f"{text}\\u009b"
