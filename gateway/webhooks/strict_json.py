"""JSON that means the same to everybody (I-JSON, RFC 7493), checked without touching its bytes. Pure.

Decoders differ on duplicate keys, on ``NaN`` and on numbers beyond a double. What one of them lets
through here another one reads differently in the browser, so such a body is refused and never repaired.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.core.errors import PayloadTooLarge, Rejected
from gateway.webhooks.formats import base as limits

MAX_VALUES = 4_000_000
"""About how many values a body may hold: 16 MiB of ``0,`` would take a gigabyte to look at."""

MAX_MEMBERS = 100
"""Members of a body's outermost object, of a format that has records in one of them."""

MAX_MEMBER = 1024 * 1024
"""Bytes of such a member beside the records."""

MAX_DEPTH = 1000
"""Nesting that is looked into; JSON decoders give up at about as much."""

SMALL = 64 * 1024
"""Bytes of a body of which everything may be built to say what is wrong with it."""

_WHITE = b" \t\r\n"

# A string, a flat object or array, or one structural byte. Possessive, so that nothing is scanned twice, and
# that a repetition holds no memory for a way back: 16 MiB of numbers took a gigabyte.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb'(?:[^{}\[\]"]++|' + _STRING + rb")*+"
_TOKEN = re.compile(_STRING + rb"|\{" + _FLAT + rb"\}|\[" + _FLAT + rb"\]|[\[\]{},]", re.DOTALL)

_raw = msgspec.json.Decoder(msgspec.Raw)
_list = msgspec.json.Decoder(list[msgspec.Raw])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def skeleton(body: bytes) -> Any:
    """Return what the body holds: objects within the outermost value are None, lists and scalars are there.

    Raises Rejected (422 ``bad_json``) with what is wrong, PayloadTooLarge for too many values.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise PayloadTooLarge(f"the body holds more than {MAX_VALUES} values")
    outermost: list[tuple[str, Any]] = []

    def pairs_of(pairs: list[tuple[str, Any]]) -> None:
        nonlocal outermost
        if len(pairs) > 1 and len({name for name, _ in pairs}) != len(pairs):
            raise _Bad(_TWICE)
        outermost = pairs

    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=pairs_of,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except _Bad as error:
        raise _ambiguous(str(error)) from None
    except json.JSONDecodeError as error:
        raise Rejected(f"the body is not JSON: {error}", code="bad_json") from None
    except UnicodeDecodeError as error:
        raise Rejected(f"the body is not UTF-8 (byte {error.start})", code="not_utf8") from None
    except RecursionError:
        raise Rejected("the body is JSON that is nested too deeply", code="bad_json") from None
    except ValueError:  # more digits than Python makes an integer of
        raise Rejected("the body holds a number with too many digits", code="bad_json") from None
    # The hook is called for the outermost object last.
    return dict(outermost) if value is None and body.lstrip()[:1] == b"{" else value


def is_json(text: bytes) -> bool:
    """Tell whether a text is one JSON value, without building it."""
    try:
        _raw.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _check(body: bytes) -> None:
    """Refuse what is no JSON. Raises Rejected."""
    try:
        _raw.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        if len(body) <= SMALL:
            skeleton(body)  # has better words, and builds what comes before the mistake
        raise Rejected(f"the body is not JSON: {error}", code="bad_json") from None


def elements(body: bytes, largest: int | None = None) -> list[bytes]:
    """Return the elements of a JSON array as they were written, each checked like a `skeleton`.

    They are counted before any is built. One with more than ``largest`` bytes is not looked into: the caller
    refuses it. Raises Rejected, or PayloadTooLarge for too many.
    """
    _check(body)
    if has_more(body, limits.MAX_RECORDS):
        raise limits.too_many()
    try:
        found = [bytes(each) for each in _list.decode(body)]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Rejected(f"the body is not a JSON array: {error}", code="bad_json") from None
    for each in found:
        if largest is None or len(each) <= largest:
            skeleton(each)
    return found


def member(body: bytes, name: str) -> bytes:
    """Return a member of a JSON object as it was written; empty where there is none, or no object.

    It is not looked into; the others are checked like a `skeleton`, and must be small. Raises Rejected, or
    PayloadTooLarge for more members, or for more elements in one of them, than any format has.
    """
    _check(body)
    if body.lstrip(_WHITE)[:1] != b"{":
        return b""
    count = _count(body, MAX_MEMBERS, limits.MAX_RECORDS)
    if count > MAX_MEMBERS:
        raise PayloadTooLarge(f"the body holds more than {MAX_MEMBERS} members")
    try:
        found = {key: bytes(each) for key, each in _members.decode(body).items()}
    except UnicodeDecodeError:
        raise Rejected("the body is not UTF-8", code="not_utf8") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Rejected(f"the body is not JSON: {error}", code="bad_json") from None
    if len(found) != count:
        raise _ambiguous(_TWICE)
    wanted = found.pop(name, b"")
    for each in found.values():
        if len(each) > MAX_MEMBER:
            raise PayloadTooLarge(f"the body holds over {MAX_MEMBER} bytes beside its records")
        skeleton(each)
    return wanted


def has_more(body: bytes, limit: int, depth: int = 1) -> bool:
    """Tell whether a JSON array has more than ``limit`` elements, without building them: 16 MiB of ``[],``
    would become half a gigabyte. With ``depth`` 2 those of all arrays in an object or array are counted.

    It must be valid JSON: a string without an end would be looked for again at each of its quotes.
    """
    if body.count(b",") < limit:
        return False
    found = 0
    for level, token in _structure(body):
        found += token == b"," and level <= depth
        if found >= limit:
            return True
    return False


def _count(body: bytes, most: int, most_below: int) -> int:
    """Return how many members an object has, or some number beyond ``most``.

    Raises PayloadTooLarge where one of them has more than ``most_below`` elements, or members.
    """
    found = below = 0
    for level, token in _structure(body):
        if token != b",":
            continue
        if level == 1:
            found, below = found + 1, 0
            if found > most:
                break
        elif level == 2:
            below += 1
            if below >= most_below:
                raise limits.too_many()
    return found + (body.strip(_WHITE)[1:-1].strip(_WHITE) != b"")


def _structure(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield commas and brackets with the depth at which they stand, but for flat objects and arrays."""
    depth = 1
    start = len(body) - len(body.lstrip(_WHITE)) + 1
    for token in _TOKEN.finditer(body, start):
        if token.end() - token.start() > 1:
            continue  # a string, or a flat object or array as a whole
        if token[0] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return  # the decoder refuses it
        elif token[0] in b"]}":
            depth -= 1
        yield depth, token[0]


class _Bad(Exception):
    pass


_TWICE = "a key is given twice"  # not which: the log would hold a piece of a payload


def _ambiguous(why: str) -> Rejected:
    return Rejected(f"the body is JSON that readers would differ on: {why}", code="bad_json")


def _no_constant(name: str) -> None:
    raise _Bad(f"{name} is no JSON")


def _finite(text: str) -> None:
    if math.isinf(float(text)):
        raise _Bad("a number is larger than a double")
