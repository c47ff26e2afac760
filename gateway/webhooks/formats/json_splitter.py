"""Splits a stream of bytes into the JSON objects that it holds one after another. Pure."""

import re

from gateway.core.errors import GatewayError, PayloadTooLarge, RecordRejected
from gateway.webhooks.decoding import WHITESPACE
from gateway.webhooks.strict_json import too_many_records_error

_OUTSIDE_STRING = re.compile(rb'["{}\[\]]')
_INSIDE_STRING = re.compile(rb'["\\]')
_BACKSLASH, _QUOTE, _OPEN_BRACE, _CLOSE_BRACE = b'\\"{}'


class JsonSplitter:
    """Takes parts of a stream and returns the objects that each part completes.

    An object may have ``max_object_bytes``, and a part may complete ``max_objects``.
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
        """Bytes of an incomplete object."""
        return len(self._buffer)

    def clear(self) -> None:
        """Drop the incomplete object."""
        self._buffer.clear()
        self._position = 0

    def feed(self, part: bytes) -> list[bytes]:
        """Return the objects that ``part`` completes.

        Raises RecordRejected for anything but objects, PayloadTooLarge for an object that is too large: with
        the next call, if this one returns objects that came before. Takes time in proportion to ``part``,
        however long the object is.
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
        """End the stream. Raises RecordRejected for an incomplete object, or the deferred error of `feed`."""
        if self._error is not None:
            raise self._error
        if self._buffer.strip(WHITESPACE):
            raise RecordRejected("the last record is incomplete", code="bad_records")

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
            if self._depth == 0 and (char != _OPEN_BRACE or data[start : position - 1].strip(WHITESPACE)):
                raise _not_objects_error()
            if char == _BACKSLASH:
                if position == len(data):  # the escaped character is in the next part
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
                    if char != _CLOSE_BRACE:
                        raise _not_objects_error()
                    found.append(bytes(data[start:position]).strip(WHITESPACE))
                    start = position
        del match
        del data[:start]
        self._position = position - start
        if self._depth == 0:
            if data.strip(WHITESPACE):
                raise _not_objects_error()
            data.clear()  # white space, which would be scanned again with every part
            self._position = 0
        if len(data) > self._max_object_bytes:
            raise PayloadTooLarge(
                f"a record is larger than limits.webhook_body ({self._max_object_bytes} bytes)"
            )


def _not_objects_error() -> RecordRejected:
    return RecordRejected("the body must be JSON objects, one after another", code="bad_records")
