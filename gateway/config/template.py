"""Names with fields: channel templates (``user.{id}``), topic patterns (``orders.*``, ``user:{id}``). Pure.

A field captures one or more of the characters that a channel name may have, but for the one that follows
it in the template: so ``t.{tenant}.{id}`` has one reading of every name, found in linear time, and ``{id}``
at the end takes the rest.
"""

import re
from collections.abc import Mapping

MAX_NAME = 255
"""Longest channel name or topic that is matched, in characters."""

_FIELD_CHARS = r"[A-Za-z0-9_.~:@\-]"
_PIECE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}|([{}])|([^{}]+)")
_CHANNEL_LITERAL = re.compile(_FIELD_CHARS + "+")
_REDIS_SPECIAL = re.compile(r"([\\\[\]*?])")


class Template:
    """A name whose ``{fields}`` capture, and in a topic whose ``*`` and ``?`` match like a glob.

    Raises ValueError with a sentence that says what is wrong and what would be right.
    """

    __slots__ = ("_regex", "_source", "fields", "is_exact", "text")

    def __init__(self, text: str, *, glob: bool = False) -> None:
        if not text or len(text) > MAX_NAME:
            raise ValueError(f"must have 1 to {MAX_NAME} characters")
        self.text = text
        regex: list[str] = []
        source: list[str] = []
        fields: list[str] = []
        wild = False
        pieces = _PIECE.findall(text)
        for position, (field, brace, literal) in enumerate(pieces):
            if brace:
                raise ValueError(f"{brace!r} is not part of a field; a field is written {{name}}")
            if field:
                if field in fields:
                    raise ValueError(f"the field {{{field}}} appears twice")
                if source and source[-1] == "*":
                    raise ValueError(f"the field {{{field}}} needs a separator before it")
                fields.append(field)
                stop = pieces[position + 1][2][:1] if position + 1 < len(pieces) else ""
                chars = f"(?!{re.escape(stop)}){_FIELD_CHARS}" if stop and stop not in "*?" else _FIELD_CHARS
                regex.append(f"(?P<{field}>(?:{chars}){{1,128}})")
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
        self._source = "".join(source)

    @property
    def redis_pattern(self) -> str:
        """The glob that Redis's PSUBSCRIBE and SCAN understand, wide enough for every match."""
        return self._source

    @property
    def skeleton(self) -> str:
        """The text with its fields unnamed: two templates with one skeleton match the same names."""
        return _PIECE.sub(lambda m: "{}" if m[1] else m[0], self.text)

    def may_share(self, other: "Template") -> bool:
        """Tell whether a name may match both, as far as what stands before and behind all fields tells it."""
        ends = [(one.text.partition("{")[0], one.text.rpartition("}")[2]) for one in (self, other)]
        (first, last), (before, behind) = ends
        return (first.startswith(before) or before.startswith(first)) and (
            last.endswith(behind) or behind.endswith(last)
        )

    def match(self, name: str) -> dict[str, str] | None:
        """Return the captured fields, or None where ``name`` does not match."""
        if len(name) > MAX_NAME:
            return None
        match = self._regex.fullmatch(name)
        return match.groupdict() if match else None

    def render(self, fields: Mapping[str, str]) -> str:
        """Return the text with its fields filled in; each of them must be given."""
        return fill(self.text, fields)

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


def fill(text: str, fields: Mapping[str, str]) -> str:
    """Return a text with its ``{fields}`` replaced; each of them must be given."""
    return _PIECE.sub(lambda m: fields[m[1]] if m[1] else m[0], text)


def fields_of(text: str) -> list[str]:
    """Return the names of all ``{fields}`` in a text that need not be a template."""
    return [field for field, _, _ in _PIECE.findall(text) if field]
