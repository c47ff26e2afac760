"""Names with fields: channel templates (``user.{id}``), topic patterns (``orders.*``, ``user:{id}``). Pure.

A field captures printable characters of any script, except the one that follows it in the template: so
``t.{tenant}.{id}`` matches every name in one way only, found in linear time, and ``{id}`` at the end captures
the rest. Names that look alike must be equal: they are in NFC (Unicode UAX #15), without invisible characters
and those that change the direction of text. ``*`` is a wildcard in the claims of tokens, braces are fields.
"""

import re
import unicodedata
from collections.abc import Mapping

MAX_NAME_CHARS = 255
"""Longest channel name or topic that is matched, in characters."""

MAX_FIELD_CHARS = 128
"""Longest value of a field, in characters."""

_LITERAL_CHARS = r"[A-Za-z0-9_.~:@\-]"
_FIELD_CHARS = r"[ -)+-z|~\u00a1-\U0010ffff]"
_PIECE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}|([{}])|([^{}]+)")
_CHANNEL_LITERAL = re.compile(_LITERAL_CHARS + "+")
_INVISIBLE = re.compile(
    # Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties) as far as Python calls it printable, the
    # Braille blank, and the replacement character.
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufffd\U000e0000-\U000e0fff]"
)
_REDIS_SPECIAL = re.compile(r"([\\\[\]*?])")


class Template:
    """A name with ``{fields}`` that capture, and in topics with ``*`` and ``?`` as in a glob.

    Raises ValueError with a message for the operator.
    """

    __slots__ = ("_redis_glob", "_regex", "fields", "is_exact", "text")

    def __init__(self, text: str, *, glob: bool = False) -> None:
        if not text or len(text) > MAX_NAME_CHARS:
            raise ValueError(f"must have 1 to {MAX_NAME_CHARS} characters")
        self.text = text
        regex: list[str] = []
        source: list[str] = []
        fields: list[str] = []
        wild = False
        pieces = _PIECE.findall(text)
        for position, (field, brace, literal) in enumerate(pieces):
            if brace:
                raise ValueError(f"{brace!r} is not part of a field; write {{name}}")
            if field:
                if field in fields:
                    raise ValueError(f"the field {{{field}}} appears twice")
                if source and source[-1] == "*":
                    raise ValueError(f"the field {{{field}}} needs a separator before it")
                fields.append(field)
                stop = pieces[position + 1][2][:1] if position + 1 < len(pieces) else ""
                chars = f"(?!{re.escape(stop)}){_FIELD_CHARS}" if stop and stop not in "*?" else _FIELD_CHARS
                regex.append(f"(?P<{field}>(?:{chars}){{1,{MAX_FIELD_CHARS}}})")
                source.append("*")
            elif glob:
                for char in literal:
                    wild = wild or char in "*?"
                    if char == "*" and source and source[-1] == "*" and fields:
                        raise ValueError("a field and a '*' need a separator between them")
                    regex.append({"*": ".*", "?": "."}.get(char) or re.escape(char))
                    source.append(char if char in "*?" else _REDIS_SPECIAL.sub(r"\\\1", char))
            else:
                if not _CHANNEL_LITERAL.fullmatch(literal):
                    raise ValueError("may hold letters, digits, '_', '.', '~', ':', '@', '-' and {fields}")
                regex.append(re.escape(literal))
                source.append(literal)
        self.fields = tuple(fields)
        self.is_exact = not fields and not wild
        self._regex = re.compile("".join(regex), re.DOTALL)
        self._redis_glob = "".join(source)

    @property
    def redis_pattern(self) -> str:
        """A glob for Redis's PSUBSCRIBE and SCAN that matches at least the same names."""
        return self._redis_glob

    @property
    def skeleton(self) -> str:
        """The text with its fields unnamed: two templates with one skeleton match the same names."""
        return _PIECE.sub(lambda m: "{}" if m[1] else m[0], self.text)

    def may_overlap(self, other: "Template") -> bool:
        """Tell whether a name may match both, by the text before and after all fields."""
        ends = [(one.text.partition("{")[0], one.text.rpartition("}")[2]) for one in (self, other)]
        (first, last), (before, behind) = ends
        return (first.startswith(before) or before.startswith(first)) and (
            last.endswith(behind) or behind.endswith(last)
        )

    def match(self, name: str) -> dict[str, str] | None:
        """Return the captured fields, or None if ``name`` does not match."""
        if len(name) > MAX_NAME_CHARS:
            return None
        match = self._regex.fullmatch(name)
        if match is None or not (
            name.isascii() or all(invalid_field_reason(text) is None for text in match.groups())
        ):
            return None
        return match.groupdict()

    def render(self, fields: Mapping[str, str]) -> str:
        """Return the text with its fields replaced; ``fields`` must have each of them."""
        return fill_fields(self.text, fields)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def invalid_field_reason(text: str) -> str | None:
    """Return why a text cannot be part of a channel's name, without quoting it; None if it can."""
    for position, char in enumerate(text, 1):
        if not char.isprintable() or char in "*{}" or _INVISIBLE.match(char):
            name = unicodedata.name(char, "")
            shown = f"U+{ord(char):04X}" + (f" ({name})" if name else "")
            return f"the character {shown} at position {position} is not allowed in a channel's name"
    if not unicodedata.is_normalized("NFC", text):
        return "a channel's name must be in Unicode's normal form C (NFC)"
    return None


def invalid_channel_name_reason(name: str) -> str | None:
    """Return why a text cannot be a channel's name, without quoting it; None if it can."""
    if len(name) > MAX_NAME_CHARS:
        return f"a channel's name has at most {MAX_NAME_CHARS} characters"
    if name[:1] == " " or name[-1:] == " ":
        return "a channel's name cannot begin or end with a blank"
    return invalid_field_reason(name)


def fill_fields(text: str, fields: Mapping[str, str]) -> str:
    """Return a text with its ``{fields}`` replaced; ``fields`` must have each of them."""
    return _PIECE.sub(lambda m: fields[m[1]] if m[1] else m[0], text)


def field_names(text: str) -> list[str]:
    """Return the names of all ``{fields}`` in a text that need not be a template."""
    return [field for field, _, _ in _PIECE.findall(text) if field]
