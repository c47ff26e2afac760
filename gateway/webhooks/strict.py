"""JSON that means the same to everybody (I-JSON, RFC 7493), checked without touching its bytes. Pure.

Decoders differ on duplicate keys, on ``NaN`` and on numbers beyond a double. What one of them lets
through here another one reads differently in the browser, so such a body is refused and never repaired.
"""

import json
import math
import re
from typing import Any

from gateway.errors import PayloadTooLarge, Rejected

MAX_VALUES = 4_000_000
"""About how many values a body may hold: 16 MiB of ``0,`` would take a gigabyte to look at."""

MAX_DEPTH = 1000
"""Nesting that is looked into; JSON decoders give up at about as much."""

# A string, a flat object or array, or one structural byte. Atomic, so that nothing is scanned twice.
_STRING = rb'"(?>[^"\\]|\\.)*"'
_FLAT = rb'(?>[^{}\[\]"]|' + _STRING + rb")*"
_TOKEN = re.compile(_STRING + rb"|\{(?>" + _FLAT + rb")\}|(?<!^)\[(?>" + _FLAT + rb")\]|[\[\]{},]", re.DOTALL)


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
            raise _Bad("a key is given twice")  # not which: the log would hold a piece of a payload
        outermost = pairs

    try:
        value = json.loads(
            body.decode(),
            object_pairs_hook=pairs_of,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except _Bad as error:
        raise Rejected(f"the body is JSON that readers would differ on: {error}", code="bad_json") from None
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


def has_more(body: bytes, limit: int) -> bool:
    """Tell whether a JSON array has more than ``limit`` elements, without building them: 16 MiB of ``[],``
    would become half a gigabyte. It must be valid JSON: a string without an end would be looked for again
    at each of its quotes.
    """
    if body.count(b",") < limit:
        return False
    depth = elements = 0
    for token in _TOKEN.finditer(body):
        first, size = token[0][0], token.end() - token.start()
        if size > 1:
            continue  # a string, or a flat object or array as a whole
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return False  # the decoder refuses it
        elif first in b"]}":
            depth -= 1
        elif depth == 1:
            elements += 1
            if elements >= limit:
                return True
    return False


class _Bad(Exception):
    pass


def _no_constant(name: str) -> None:
    raise _Bad(f"{name} is no JSON")


def _finite(text: str) -> None:
    if math.isinf(float(text)):
        raise _Bad("a number is larger than a double")
