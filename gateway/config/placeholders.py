"""Expressions: text with placeholders such as ``{key}``, ``{headers.x-event}``, ``{/order/id}``. Pure.

A placeholder that begins with ``/`` is a JSON pointer (RFC 6901) into the record's payload; any other is a
name that the source's format defines. An expression with a placeholder that has no value renders to None.
"""

import re

import msgspec

from gateway.core.event import Record

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}|([{}])|([^{}]+)")
_NAME = re.compile(r"[a-z_]+(\.[A-Za-z0-9_.\-]+)?")
_POINTER = re.compile(r"(/([^~/]|~[01])*)+")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])
_string = msgspec.json.Decoder(str)


class Expression:
    """A parsed expression. Raises ValueError with a message for the operator."""

    __slots__ = ("_pieces", "placeholder_names", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._pieces: list[tuple[str, bool]] = []  # text, and whether it is a placeholder
        for name, brace, literal in _PLACEHOLDER.findall(text):
            if brace:
                raise ValueError(f"{brace!r} is not part of a placeholder; write {{name}}")
            if not literal and not (_NAME.fullmatch(name) or _POINTER.fullmatch(name)):
                raise ValueError(
                    f"{{{name}}} is neither a name, such as {{headers.x-event}},"
                    " nor a JSON pointer, such as {/order/id}"
                )
            self._pieces.append((literal, False) if literal else (name, True))
        if not text:
            raise ValueError("must not be empty")
        self.placeholder_names = tuple(
            name for name, is_placeholder in self._pieces if is_placeholder and name[0] != "/"
        )

    def render(self, record: Record, *, exclude_shared: bool = False) -> str | None:
        """Return the text with all placeholders replaced, or None if one has no value.

        ``exclude_shared`` ignores values that the record shares with others of its request.
        """
        out = []
        for piece, is_placeholder in self._pieces:
            text = _placeholder_value(piece, record, exclude_shared) if is_placeholder else piece
            if text is None:
                return None
            out.append(text)
        return "".join(out)

    def render_unambiguous(self, record: Record, *, exclude_shared: bool = False) -> str | None:
        """Like `render`, but different values always give different texts.

        In `render`, ``{a}-{b}`` gives the same text for ``x-y`` and ``z`` as for ``x`` and ``y-z``.
        """
        found = [
            _placeholder_value(name, record, exclude_shared)
            for name, is_placeholder in self._pieces
            if is_placeholder
        ]
        texts = [text for text in found if text is not None]
        if len(texts) < len(found):
            return None
        if len(texts) == 1:
            return self.render(record, exclude_shared=exclude_shared)
        return "\0".join([self.text, *(f"{len(text)}:{text}" for text in texts)])

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


def _placeholder_value(name: str, record: Record, exclude_shared: bool) -> str | None:
    if name[0] == "/":
        return resolve_json_pointer(record.payload, name)
    if name == "topic":
        return record.topic
    text = record.placeholder_values.get(name)
    return record.shared_values.get(name) if text is None and not exclude_shared else text


def resolve_json_pointer(payload: bytes, pointer: str) -> str | None:
    """Return the string, number or boolean at a JSON pointer, or None.

    Only the path is decoded, and a number is returned as it was sent, so long ids stay exact.
    """
    raw = payload
    try:
        for token in pointer.split("/")[1:]:
            name = token.replace("~1", "/").replace("~0", "~")
            if raw.lstrip()[:1] == b"[":
                raw = bytes(_array.decode(raw)[int(name)]) if name.isdecimal() else b""
            else:
                raw = bytes(_object.decode(raw)[name])
    except (msgspec.MsgspecError, RecursionError, KeyError, IndexError, UnicodeDecodeError):
        return None
    return decode_json_scalar(raw)


def decode_json_scalar(raw: bytes) -> str | None:
    """Return a JSON string, or a number or boolean as it was written; None for anything else."""
    raw = bytes(raw).strip()
    if raw[:1] == b'"':
        try:
            return _string.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
    return raw.decode("ascii") if raw and raw[:1] in b"-0123456789tf" else None
