"""Explains YAML syntax errors by the mistake that most likely caused the parser's message. Pure.

Messages quote nothing of the text but its punctuation: in a broken line, any part may be a secret.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import yaml

_HAS_KEY = re.compile(r"""\s*(?:-\s+)*(?:"[^"]*"|'[^']*'|[^\s#'"][^#]*?):(?:\s|$)""")
_CLOSERS = {"mapping": ("{", "}"), "sequence": ("[", "]")}
_NO_COLON = "a key without its colon; write 'key: value', with a space after the colon"
_BLOCK_END = re.compile(r"expected <block end>, but found '(.*)'")
_INVALID_FIRST_CHAR = re.compile(r"found character '(.+)' that cannot start any token")


_TYPOGRAPHIC_QUOTES = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb\u2039\u203a\u2033\u2032"
_TYPOGRAPHIC_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_UNICODE_BLANKS = re.compile("[\u00a0\u1680\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff]")
_DASH_ITEM = re.compile(rf"[{_TYPOGRAPHIC_DASHES}]\s")


def typographic_error(text: str) -> str | None:
    """Return what is wrong with unquoted text that a word processor or a web page has changed, or None.

    The message quotes that one character only: the rest may be a secret.
    """
    if text[:1] and text[0] in _TYPOGRAPHIC_QUOTES:
        return (
            f"begins with the typographic quote {text[0]} ({_char_name(text[0])}), which is no quote in YAML;"
            " write \" or '"
        )
    if _DASH_ITEM.match(text):
        return f"begins with the dash {text[0]} ({_char_name(text[0])}); write a hyphen, -, for a list item"
    blank = _UNICODE_BLANKS.search(text)
    if blank is not None:
        return (
            f"contains {_char_name(blank[0])}, which looks like a space; write a space, or quote the"
            " text to keep it"
        )
    return None


def _char_name(char: str) -> str:
    return f"U+{ord(char):04X}, {unicodedata.name(char, 'no name').lower()}"


class YamlProblem(NamedTuple):
    """A syntax error with its position, counted from 1."""

    line: int
    column: int
    message: str


def explain_yaml_error(error: Exception, text: str, lines: Sequence[str]) -> YamlProblem:
    """Return the problem behind an error of PyYAML, or a RecursionError in it."""
    if isinstance(error, RecursionError):
        return YamlProblem(1, 1, "not valid YAML: nested too deeply")
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        column = len(before) - (before.rfind("\n") + 1) + 1
        sentence = f"not valid YAML: the character U+{error.character:04X} is not allowed; remove it"
        return YamlProblem(before.count("\n") + 1, column, sentence)
    assert isinstance(error, yaml.MarkedYAMLError)
    found = _explain_marked_error(error, lines)
    return YamlProblem(found.line, found.column, f"not valid YAML: {found.message}")


def _explain_marked_error(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> YamlProblem:
    problem, context = str(error.problem or ""), str(error.context or "")
    here = position_of(error.problem_mark)
    began = position_of(error.context_mark) if error.context_mark else here
    line = lines[here[0] - 1] if here[0] <= len(lines) else ""
    strange = _INVALID_FIRST_CHAR.fullmatch(problem)
    if strange is not None:
        if strange[1] == r"\t":
            return YamlProblem(*here, "a tab; YAML is indented with spaces, two per level")
        return YamlProblem(*here, f"a value cannot begin with {strange[1]!r}; quote it")
    if problem == "mapping values are not allowed here":
        return _explain_second_colon(here, lines)
    if problem == "could not find expected ':'":
        return YamlProblem(*began, _NO_COLON)
    if problem == "found unexpected end of stream" and "quoted scalar" in context:
        return YamlProblem(*began, "the quote that opens here is not closed")
    if problem.startswith("sequence entries are not allowed"):
        return YamlProblem(*here, "a list item after a key on the same line; begin the list on the next line")
    if context.startswith("while scanning an a"):  # alias, anchor
        return YamlProblem(*began, f"a value cannot begin with {line[began[1] - 1 : began[1]]!r}; quote it")
    if "escape" in problem:
        return YamlProblem(
            *here, "an unknown escape in double quotes; write \\\\ for a backslash, or use single quotes"
        )
    for kind, (opens, closes) in _CLOSERS.items():
        if context == f"while parsing a flow {kind}":
            return _explain_unclosed(here, began, problem, lines, opens, closes)
    block = _BLOCK_END.fullmatch(problem)
    if block is not None:
        return _explain_block_end(here, block[1])
    if "but found another document" in problem:
        return YamlProblem(*here, "a second document, and a configuration is one; remove the line ---")
    return YamlProblem(*here, " ".join(part for part in (context, problem) if part))


def _explain_second_colon(here: tuple[int, int], lines: Sequence[str]) -> YamlProblem:
    number, column = here
    line = lines[number - 1]
    if _HAS_KEY.match(line[: column - 1]):
        return YamlProblem(
            *here, "a second colon in one value; quote the value, or begin the mapping on the next line"
        )
    above = next((at for at in range(number - 1, 0, -1) if lines[at - 1].split("#")[0].strip()), None)
    if above is None:
        return YamlProblem(*here, "a colon without a key before it (of at most 1024 characters)")
    indent = len(lines[above - 1]) - len(lines[above - 1].lstrip()) + 1
    if not _HAS_KEY.match(lines[above - 1]):
        return YamlProblem(above, indent, _NO_COLON)
    return YamlProblem(
        number,
        len(line) - len(line.lstrip()) + 1,
        f"indented deeper than line {above}, which already has a value; align the two",
    )


def _explain_unclosed(
    here: tuple[int, int],
    began: tuple[int, int],
    problem: str,
    lines: Sequence[str],
    opens: str,
    closes: str,
) -> YamlProblem:
    line = lines[here[0] - 1] if here[0] <= len(lines) else ""
    if problem.endswith("'{'") and line[: here[1] - 1].endswith("$"):
        return YamlProblem(
            here[0],
            here[1] - 1,
            f'an unquoted reference within {opens} {closes}; write "${{NAME}}"',
        )
    if here[0] == began[0] and "stream end" not in problem:
        return YamlProblem(
            *here, f"a comma is missing before this, or quotes around a value in {opens} {closes}"
        )
    return YamlProblem(*began, f"the {opens} that opens here is not closed; a {closes} is missing")


def _explain_block_end(here: tuple[int, int], found: str) -> YamlProblem:
    if found in ("}", "]"):
        return YamlProblem(*here, f"a {found} without an opening bracket; remove it")
    if found == "<scalar>" and here[1] > 1:
        return YamlProblem(
            *here, "text after the end of a value; quote the whole value, or align the line with its key"
        )
    return YamlProblem(
        *here, "indented differently from the keys above; align it with the keys of its section"
    )


def position_of(mark: yaml.Mark | None) -> tuple[int, int]:
    """Return line and column, counted from 1; the start of the text for no mark."""
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
