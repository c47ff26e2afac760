"""JSON objects that follow each other in a stream of bytes, cut where each one ends. Pure."""

import re

from gateway.core.errors import GatewayError, PayloadTooLarge, Rejected
from gateway.webhooks.formats.base import too_many

_OUTSIDE = re.compile(rb'["{}\[\]]')
_INSIDE = re.compile(rb'["\\]')
_WHITE = b" \t\r\n"
_BACKSLASH, _QUOTE, _OPEN = b'\\"{'


class Splitter:
    """Given parts of a stream, returns the objects that are whole by then; ``largest`` is bytes of one.

    ``most`` is how many one part may complete.
    """

    def __init__(self, largest: int, most: int | None = None) -> None:
        self._largest = largest
        self._most = most
        self._buffer = bytearray()
        self._position = 0
        self._depth = 0
        self._is_in_string = False
        self._error: GatewayError | None = None

    @property
    def held(self) -> int:
        """Bytes of an object that is not whole yet."""
        return len(self._buffer)

    def clear(self) -> None:
        """Let go of what is held."""
        self._buffer.clear()
        self._position = 0

    def feed(self, part: bytes) -> list[bytes]:
        """Return the objects that ``part`` completes.

        Raises Rejected for what is no object, PayloadTooLarge for one that is too large, once what came
        before it was returned. Takes time in proportion to ``part``, however long the object is.
        """
        if self._error is not None:
            raise self._error
        found: list[bytes] = []
        try:
            self._cut(part, found)
        except GatewayError as error:
            if not found:
                raise
            self._error = error
        return found

    def end(self) -> None:
        """Say that nothing more comes. Raises Rejected where an object was cut off, or what `feed` would."""
        if self._error is not None:
            raise self._error
        if self._buffer.strip(_WHITE):
            raise Rejected("the last record is not whole", code="bad_records")

    def _cut(self, part: bytes, found: list[bytes]) -> None:
        data = self._buffer
        data += part
        start, position = 0, self._position
        while True:
            match = (_INSIDE if self._is_in_string else _OUTSIDE).search(data, position)
            if match is None:
                position = len(data)
                break
            position = match.end()
            char = data[position - 1]
            if self._depth == 0 and (char != _OPEN or data[start : position - 1].strip(_WHITE)):
                raise _not_objects()
            if char == _BACKSLASH:
                if position == len(data):  # what is escaped is still to come
                    position -= 1
                    break
                position += 1
            elif char == _QUOTE:
                self._is_in_string = not self._is_in_string
            elif char in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    if self._most is not None and len(found) >= self._most:
                        raise too_many()
                    found.append(self._object(bytes(data[start:position])))
                    start = position
        del match
        del data[:start]
        self._position = position - start
        if self._depth == 0:
            if data.strip(_WHITE):
                raise _not_objects()
            data.clear()  # white space, which would be looked at again with every part
            self._position = 0
        if len(data) > self._largest:
            raise PayloadTooLarge(f"a record is larger than limits.webhook_body ({self._largest} bytes)")

    def _object(self, text: bytes) -> bytes:
        text = text.strip(_WHITE)
        if text[-1:] != b"}":
            raise _not_objects()
        return text


def _not_objects() -> Rejected:
    return Rejected("the body must be JSON objects, one after another", code="bad_records")
