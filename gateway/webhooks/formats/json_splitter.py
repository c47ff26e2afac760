"""JSON objects that follow each other in a stream of bytes, cut where each one ends. Pure."""

import re

from gateway.core.errors import GatewayError, PayloadTooLarge, RecordRejected
from gateway.webhooks.formats.base import too_many_records_error

_OUTSIDE_STRING = re.compile(rb'["{}\[\]]')
_INSIDE_STRING = re.compile(rb'["\\]')
_WHITESPACE = b" \t\r\n"
_BACKSLASH, _QUOTE, _OPEN_BRACE = b'\\"{'


class JsonSplitter:
    """Given parts of a stream, returns the objects that are whole by then; ``largest`` is bytes of one.

    ``most`` is how many one part may complete.
    """

    def __init__(self, max_object_bytes: int, max_objects: int | None = None) -> None:
        self._max_object_bytes = max_object_bytes
        self._max_objects = max_objects
        self._buffer = bytearray()
        self._position = 0
        self._depth = 0
        self._is_in_string = False
        self._error: GatewayError | None = None

    @property
    def buffered_bytes(self) -> int:
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
            self._split(part, found)
        except GatewayError as error:
            if not found:
                raise
            self._error = error
        return found

    def finish(self) -> None:
        """Say that nothing more comes. Raises Rejected where an object was cut off, or what `feed` would."""
        if self._error is not None:
            raise self._error
        if self._buffer.strip(_WHITESPACE):
            raise RecordRejected("the last record is not whole", code="bad_records")

    def _split(self, part: bytes, found: list[bytes]) -> None:
        data = self._buffer
        data += part
        start, position = 0, self._position
        while True:
            match = (_INSIDE_STRING if self._is_in_string else _OUTSIDE_STRING).search(data, position)
            if match is None:
                position = len(data)
                break
            position = match.end()
            char = data[position - 1]
            if self._depth == 0 and (char != _OPEN_BRACE or data[start : position - 1].strip(_WHITESPACE)):
                raise _not_objects_error()
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
                    if self._max_objects is not None and len(found) >= self._max_objects:
                        raise too_many_records_error()
                    found.append(self._check_object(bytes(data[start:position])))
                    start = position
        del match
        del data[:start]
        self._position = position - start
        if self._depth == 0:
            if data.strip(_WHITESPACE):
                raise _not_objects_error()
            data.clear()  # white space, which would be looked at again with every part
            self._position = 0
        if len(data) > self._max_object_bytes:
            raise PayloadTooLarge(
                f"a record is larger than limits.webhook_body ({self._max_object_bytes} bytes)"
            )

    def _check_object(self, text: bytes) -> bytes:
        text = text.strip(_WHITESPACE)
        if text[-1:] != b"}":
            raise _not_objects_error()
        return text


def _not_objects_error() -> RecordRejected:
    return RecordRejected("the body must be JSON objects, one after another", code="bad_records")
