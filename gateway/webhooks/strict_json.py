"""Checks that JSON means the same to every decoder (I-JSON, RFC 7493), without changing its bytes. Pure.

Decoders differ on duplicate keys, ``NaN`` and numbers beyond a double: a body that passes here may read
differently in the browser. So such a body is rejected, never repaired.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.core.errors import PayloadTooLarge, RecordRejected
from gateway.webhooks.decoding import WHITESPACE

MAX_RECORDS = 10_000
"""Most records in one post: few enough for the deduplication keys of a retry, see `gateway.broker.base`."""

MAX_VALUES = 4_000_000
"""About how many values a body may hold: 16 MiB of ``0,`` would take a gigabyte to decode."""

MAX_MEMBERS = 100
"""Members of the outermost object, in formats that hold the records in one of them."""

MAX_MEMBER_BYTES = 1024 * 1024
"""Bytes of each other member of that object."""

MAX_DEPTH = 1000
"""Nesting that is scanned; JSON decoders give up at about as much."""

MAX_EXPLAINED_BYTES = 64 * 1024
"""Largest body that is decoded as a whole to describe an error."""

# A string, a flat object or array, or one structural byte. Possessive, so that nothing is scanned twice and
# a repetition keeps no memory for backtracking: 16 MiB of numbers took a gigabyte.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb'(?:[^{}\[\]"]++|' + _STRING + rb")*+"
_TOKEN = re.compile(_STRING + rb"|\{" + _FLAT + rb"\}|\[" + _FLAT + rb"\]|[\[\]{},]", re.DOTALL)

_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_array_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def check_strict_json(body: bytes) -> None:
    """Raise RecordRejected (422 ``bad_json``) for JSON that is invalid or that decoders read differently.

    Raises PayloadTooLarge for more than `MAX_VALUES`.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise PayloadTooLarge(f"the body holds more than {MAX_VALUES} values")
    try:
        # The hooks return None, so that no object is kept.
        json.loads(
            body.decode(),
            object_pairs_hook=_check_unique_keys,
            parse_constant=_reject_constant,
            parse_float=_check_finite,
        )
    except _AmbiguousJson as error:
        raise _ambiguous_json_error(str(error)) from None
    except json.JSONDecodeError as error:
        raise RecordRejected(f"the body is not JSON: {error}", code="bad_json") from None
    except UnicodeDecodeError as error:
        raise RecordRejected(f"the body is not UTF-8 (byte {error.start})", code="not_utf8") from None
    except RecursionError:
        raise RecordRejected("the body is JSON nested too deeply", code="bad_json") from None
    except ValueError:  # more digits than Python converts to an integer
        raise RecordRejected("the body holds a number with too many digits", code="bad_json") from None


def is_json(text: bytes) -> bool:
    """Return whether a text is one JSON value, without building it."""
    try:
        _raw_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _check_syntax(body: bytes) -> None:
    """Raise RecordRejected if the body is not JSON."""
    try:
        _raw_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        if len(body) <= MAX_EXPLAINED_BYTES:
            check_strict_json(body)  # its message is better, but it builds everything before the error
        raise RecordRejected(f"the body is not JSON: {error}", code="bad_json") from None


def array_elements(body: bytes, max_element_bytes: int | None = None) -> list[bytes]:
    """Return the elements of a JSON array as they were written, each checked by `check_strict_json`.

    They are counted before any is built. One with more than ``max_element_bytes`` is not checked: the caller
    rejects it. Raises RecordRejected, or PayloadTooLarge for more than `MAX_RECORDS`.
    """
    _check_syntax(body)
    check_element_count(body)
    try:
        found = [bytes(each) for each in _array_decoder.decode(body)]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordRejected(f"the body is not a JSON array: {error}", code="bad_json") from None
    for each in found:
        if max_element_bytes is None or len(each) <= max_element_bytes:
            check_strict_json(each)
    return found


def object_member(body: bytes, name: str) -> bytes:
    """Return a member of a JSON object as it was written; empty without such a member, or for another value.

    It is not checked; the others are, by `check_strict_json`, and must be small. Raises RecordRejected, or
    PayloadTooLarge for more members, or more elements in one of them, than any format has.
    """
    _check_syntax(body)
    if body.lstrip(WHITESPACE)[:1] != b"{":
        return b""
    count = _count_members(body)
    if count > MAX_MEMBERS:
        raise PayloadTooLarge(f"the body holds more than {MAX_MEMBERS} members")
    try:
        found = {key: bytes(each) for key, each in _object_decoder.decode(body).items()}
    except UnicodeDecodeError:
        raise RecordRejected("the body is not UTF-8", code="not_utf8") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordRejected(f"the body is not JSON: {error}", code="bad_json") from None
    if len(found) != count:
        raise _ambiguous_json_error(_DUPLICATE_KEY)
    wanted = found.pop(name, b"")
    for each in found.values():
        if len(each) > MAX_MEMBER_BYTES:
            raise PayloadTooLarge(
                f"a member of the body besides its records is over {MAX_MEMBER_BYTES} bytes"
            )
        check_strict_json(each)
    return wanted


def check_element_count(body: bytes, depth: int = 1) -> None:
    """Raise PayloadTooLarge for more than `MAX_RECORDS` elements: see `has_more_elements`."""
    if has_more_elements(body, MAX_RECORDS, depth):
        raise too_many_records_error()


def too_many_records_error() -> PayloadTooLarge:
    """Return the error for a body with more than `MAX_RECORDS` records."""
    return PayloadTooLarge(f"at most {MAX_RECORDS} records fit in one post")


def has_more_elements(body: bytes, limit: int, depth: int = 1) -> bool:
    """Return whether a JSON array has more than ``limit`` elements, without building them.

    16 MiB of ``[],`` would become half a gigabyte. With ``depth`` 2 the elements of all arrays in an object
    or array are counted. The body must be valid JSON: after an unterminated string, the scan would start
    again at each quote.
    """
    if body.count(b",") < limit:
        return False
    found = 0
    for level, token in _structural_tokens(body):
        found += token == b"," and level <= depth
        if found >= limit:
            return True
    return False


def _count_members(body: bytes) -> int:
    """Return how many members an object has, or some number over `MAX_MEMBERS`.

    Raises PayloadTooLarge if one of them has more than `MAX_RECORDS` elements or members.
    """
    found = below = 0
    for level, token in _structural_tokens(body):
        if token != b",":
            continue
        if level == 1:
            found, below = found + 1, 0
            if found > MAX_MEMBERS:
                break
        elif level == 2:
            below += 1
            if below >= MAX_RECORDS:
                raise too_many_records_error()
    return found + (body.strip(WHITESPACE)[1:-1].strip(WHITESPACE) != b"")


def _structural_tokens(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield commas and brackets with their depth, except those of flat objects and arrays."""
    depth = 1
    start = len(body) - len(body.lstrip(WHITESPACE)) + 1
    for token in _TOKEN.finditer(body, start):
        if token.end() - token.start() > 1:
            continue  # a string, or a flat object or array as a whole
        if token[0] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return  # the decoder rejects it
        elif token[0] in b"]}":
            depth -= 1
        yield depth, token[0]


class _AmbiguousJson(Exception):
    pass


_DUPLICATE_KEY = "a key is given twice"  # not which: the log would hold a piece of a payload


def _ambiguous_json_error(why: str) -> RecordRejected:
    return RecordRejected(f"the body is JSON that decoders read differently: {why}", code="bad_json")


def _reject_constant(name: str) -> None:
    raise _AmbiguousJson(f"{name} is not JSON")


def _check_unique_keys(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1 and len({name for name, _ in pairs}) != len(pairs):
        raise _AmbiguousJson(_DUPLICATE_KEY)


def _check_finite(text: str) -> None:
    if math.isinf(float(text)):
        raise _AmbiguousJson("a number is larger than a double")
