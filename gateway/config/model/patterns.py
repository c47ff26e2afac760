"""Regular expressions of setting values for the JSON Schema, by which editors check a file.

They accept and reject what the model does, as far as a pattern can (it cannot compare amounts or look for
files). A reference to the environment is valid everywhere. The syntax is common to JavaScript and Python.
"""

from typing import Any

VARIABLE = r"\$\{[A-Za-z_][A-Za-z0-9_]*(?::-[^}]*)?\}"
REFERENCE = rf"[\s\S]*{VARIABLE}[\s\S]*|file:.+"

DURATION = r"\s*(?!0+(?:\.0+)?\s*[a-z])[0-9]{1,12}(?:\.[0-9]{1,6})?\s*(?:ms|s|m|h|d)\s*"
DURATION_OR_ZERO = rf"0s|{DURATION}"
SIZE = r"\s*(?!0+(?:\.0+)?\s*[A-Z])[0-9]{1,12}(?:\.[0-9]{1,6})?\s*(?:B|KB|MB|GB|KiB|MiB|GiB)\s*"
RATE = r"\s*(?!0+\s*/)[0-9]{1,9}\s*/\s*(?:s|m|h|d)\s*"
_PORT = r"(?:[0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
TCP_ADDRESS = rf"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):{_PORT}"
LISTEN_ADDRESS = rf"{TCP_ADDRESS}|unix:/+[^/\0][^\0]*"
BASE_PATH = r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~\-]{1,64}){0,8}/?"
NETWORK = r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+)(?:/(?!0+$)[0-9.]+)?"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*://"
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#@*:\[\]]+)"
ORIGIN = rf"\*|{_SCHEME}(?:{_HOST}|\*\.[^\s/?#@*:.]+(?:\.[^\s/?#@*:.]+)+)(?::{_PORT})?"

_FIELD = r"\{[A-Za-z_][A-Za-z0-9_]*\}"
_NO_REPEATED_FIELD = r"(?![\s\S]*\{([A-Za-z_][A-Za-z0-9_]*)\}[\s\S]*\{\1\})"
CHANNEL = rf"(?=[\s\S]{{1,255}}$)(?![\s\S]*\}}\{{){_NO_REPEATED_FIELD}(?:[A-Za-z0-9_.~:@\-]|{_FIELD})+"
TOPIC = rf"(?=[\s\S]{{1,255}}$)(?![\s\S]*(?:\}}\{{|\*\{{|\}}\*)){_NO_REPEATED_FIELD}(?:[^{{}}]|{_FIELD})+"
_POINTER = r"(?:/(?:[^~/{}]|~[01])*)+"
EXPRESSION = rf"(?:[^{{}}]|\{{(?:[a-z_]+(?:\.[A-Za-z0-9_.\-]+)?|{_POINTER})\}})+"

BEARER_VALUE = r"[!-~]{16,}"
HTTP_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~\-]{1,64}"
URL = r"https?://(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(?::[0-9]*)?(?:[/?#].*)?"
SECURE_URL = r"https://.*|http://(?:localhost|127\.0\.0\.1|\[::1\])(?:[:/?#].*)?"

_WITH_CERTIFICATE_CHECK = r"(?!.*[?&]ssl_cert_reqs=(?!required(?:&|$)))"
_USER = r"(?:[^@/]*@)?"
_NODE = r"(?:\[[0-9A-Fa-f:]+\]|[^:\[\],@/?#]+)(?::[0-9]{1,5})?"
_NODES = rf"{_NODE}(?:,{_NODE})*"
REDIS_SINGLE = (
    rf"{_WITH_CERTIFICATE_CHECK}(?:rediss?://(?:[^@/]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]+)(?::{_PORT})?(?:/(?:[0-9]{{1,9}}/?)?)?(?:\?[^#]*)?"
    r"|rediss?:///(?:[0-9]{1,9}/?)?(?:\?[^#]*)?|unix:///[^#]+)"
)
REDIS = (
    rf"{REDIS_SINGLE}|{_WITH_CERTIFICATE_CHECK}rediss?\+sentinel://{_USER}{_NODES}/[^/?#]+(?:/[0-9]*)?(?:\?[^#]*)?"
    rf"|{_WITH_CERTIFICATE_CHECK}rediss?\+cluster://{_USER}{_NODES}/?(?:\?[^#]*)?"
)
BROKER = rf"memory://|sqlite:///.+|{REDIS}"
BOOTSTRAP = r"\s*[^:,\s]+:[0-9]{1,5}\s*(?:,\s*[^:,\s]+:[0-9]{1,5}\s*)*"


def text_schema(pattern: str, **more: Any) -> dict[str, Any]:
    """Return the schema of text that matches ``pattern`` or contains a reference."""
    return {"type": "string", "pattern": f"^(?:{pattern}|{REFERENCE})$", **more}


def case_insensitive(words: set[str]) -> str:
    """Return an expression that matches any of the words in any case."""
    spelled = (
        "".join(f"[{char.upper()}{char}]" if char.isalpha() else char for char in each)
        for each in sorted(words)
    )
    return "|".join(spelled)


def requires_keys(*keys: str) -> dict[str, Any]:
    """Return the schema of a mapping that has these keys with values other than null."""
    return {
        "required": list(keys),
        "properties": {key: {"not": {"type": "null"}} for key in keys},
    }
