"""JSON that means the same to everybody (I-JSON, RFC 7493), checked without touching its bytes. Pure.

Decoders differ on duplicate keys, on ``NaN`` and on numbers beyond a double. What one of them lets
through here another one reads differently in the browser, so such a body is refused and never repaired.
"""

import json
import math
from typing import Any

from gateway.errors import Rejected


def skeleton(body: bytes) -> Any:
    """Return what the body holds: objects within the outermost value are None, lists and scalars are there.

    Raises Rejected (422 ``bad_json``) with what is wrong.
    """
    outermost: list[tuple[str, Any]] = []

    def pairs_of(pairs: list[tuple[str, Any]]) -> None:
        nonlocal outermost
        if len(pairs) > 1 and len({name for name, _ in pairs}) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _Bad(f"the key {twice[:50]!r} is given twice")
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


class _Bad(Exception):
    pass


def _no_constant(name: str) -> None:
    raise _Bad(f"{name} is no JSON")


def _finite(text: str) -> None:
    if math.isinf(float(text)):
        raise _Bad(f"the number {text[:20]} is larger than a double")
