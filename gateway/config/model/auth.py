"""Who may read: how tokens are checked, tickets given, and the user's own endpoint asked."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gateway.config.model import patterns
from gateway.config.model.paths import File
from gateway.config.model.section import Section, preset
from gateway.config.model.units import (
    Duration,
    DurationOrNull,
    DurationOrZero,
    Positive,
    Secret,
    Switch,
    fault,
    kind_of,
)

HMAC_KEY_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"]

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_LOCAL = ("localhost", "127.0.0.1", "::1")

MOST_LEEWAY, MOST_TIMEOUT = 300.0, 30.0
"""Seconds."""

ALLOW_HTTP = "allow http:// to another host; whoever is between could answer in its place"


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
    except ValueError:  # an open bracket
        raise fault("must be a URL: https://id.example.com/path") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or any(map(str.isspace, value)):
        raise fault("must be a URL: https://id.example.com/path")
    if parts.username or parts.password:
        raise fault("a URL here has no user or password")
    return value


Url = Annotated[
    str,
    AfterValidator(_http_url),
    WithJsonSchema(
        {"title": "URL", **patterns.text(patterns.URL), "examples": ["https://id.example.com/keys"]}
    ),
]


def is_safe(url: str) -> bool:
    """Tell whether nobody between can answer in the place of this URL's host."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in _LOCAL


OWN_QUERY = {"ticket", "channel", "format", "types", "last", "since", "heartbeat", "client"} | {
    "lastEventId", "last_event_id", "Last-Event-ID", "evs_last_event_id", "lastEvent"
}  # fmt: skip
"""Query names that have a meaning of their own."""

_SPELLINGS = {name.lower(): name for name in OWN_QUERY}


def usual(name: str) -> str:
    """Return a query name as the gateway spells it, if it is one of `OWN_QUERY` in whatever case."""
    return _SPELLINGS.get(name.lower(), name)


SET_HERE = {"host", "connection", "content-length", "transfer-encoding", "upgrade", "expect", "te"} | {
    "trailer", "x-original-uri", "x-original-method", "x-forwarded-for"
}  # fmt: skip
"""Headers of a question that the gateway sets itself."""


def _passed_on(value: Any) -> Any:
    if isinstance(_header_name(value), str) and value.lower() in SET_HERE:
        raise fault(f"{value!r} is set by the gateway itself, and not passed on")
    return value


def _header_name(value: Any) -> Any:
    if isinstance(value, str) and not _TOKEN.fullmatch(value):
        raise fault("must be a name of letters, digits and dashes")
    return value


def _own_query(value: Any) -> Any:
    if isinstance(value, str) and usual(value) in OWN_QUERY:
        raise fault(f"{value!r} has a meaning of its own in a stream's URL; choose another")
    return _header_name(value)


def _most(seconds: float, why: str) -> AfterValidator:
    def check(value: float) -> float:
        if value > seconds:
            raise fault(f"{why}, and may be {seconds:g}s at the most")
        return value

    return AfterValidator(check)


def _named(title: str, pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"title": title, **patterns.text(pattern), "examples": [example]})


Name = Annotated[str, BeforeValidator(_header_name), _named("cookie's name", patterns.WORD, "session")]
QueryName = Annotated[
    str,
    BeforeValidator(_own_query),
    _named("name", rf"(?!(?:{patterns.caseless(set(_SPELLINGS))})$){patterns.WORD}", "access_token"),
]
HeaderName = Annotated[
    str,
    BeforeValidator(_passed_on),
    _named("header", rf"(?!(?:{patterns.caseless(SET_HERE)})$){patterns.WORD}", "Authorization"),
]
Leeway = Annotated[DurationOrZero, _most(MOST_LEEWAY, "is for clocks that differ")]
Timeout = Annotated[Duration, _most(MOST_TIMEOUT, "is how long clients may hang")]


_HS = {"pattern": "^HS"}
_ALLOWED = {"properties": {"allow_http": {"anyOf": [{"const": True}, patterns.text("true")]}}}


def _safe(key: str) -> dict[str, Any]:
    """Return the rule for a URL: nobody between, or ``allow_http``."""
    return {
        "if": patterns.given(key),
        "then": {
            "anyOf": [
                {"properties": {key: patterns.text(patterns.SAFE_URL)}},
                {"required": ["allow_http"], **_ALLOWED},
            ]
        },
    }


_JWT_RULES: dict[str, Any] = {
    "allOf": [
        {"oneOf": [patterns.given(key) for key in ("secret", "public_key_file", "jwks_url")]},
        {
            "if": {"properties": {"algorithms": {"contains": _HS}}},
            "then": {"properties": {"algorithms": {"items": _HS}}, "required": ["secret"]},
            "else": {"properties": {"secret": {"type": "null"}}},
        },
        *(
            {
                "if": {"properties": {"algorithms": {"contains": {"const": name}}}},
                "then": {"properties": {"secret": patterns.text(rf"[\s\S]{{{size},}}")}},
            }
            for name, size in HMAC_KEY_BYTES.items()
        ),
        {
            "if": patterns.given("public_key_file"),
            "then": {
                "properties": {
                    "algorithms": {
                        "anyOf": [{"items": {"pattern": f"^{kind}"}} for kind in ("RS", "ES", "Ed")]
                    }
                }
            },
        },
        _safe("jwks_url"),
    ]
}


class Jwt(Section):
    """How tokens are checked. ``exp`` is always required."""

    model_config = ConfigDict(json_schema_extra=_JWT_RULES)

    algorithms: list[Algorithm] = Field(min_length=1, description="those that tokens may be signed with")
    secret: Secret | None = Field(None, description="for HS algorithms, at least as long as the hash")
    public_key_file: File | None = Field(None, description="PEM file, for RS, ES and EdDSA")
    jwks_url: Url | None = Field(None, description="where the issuer publishes its keys (RFC 7517)")
    allow_http: Switch = Field(False, description=ALLOW_HTTP)
    audience: str | None = Field(None, min_length=1, description="what aud must be; without it any is taken")
    issuer: str | None = Field(None, min_length=1, description="what iss must be; without it any is taken")
    leeway: Leeway = preset("30s", "how far the clocks of issuer and gateway may differ")
    max_lifetime: Duration = preset("30d", "a token that expires later than this from now is refused")


class _OneOrMany:
    """Lets a list with one element be written without its brackets, in the schema too."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        many = handler(core)
        return {"anyOf": [many["items"], many]}


def _one_or_many(value: Any) -> Any:
    if not isinstance(value, (list, dict, Jwt)):
        raise fault(
            'must be a mapping, such as {algorithms: [HS256], secret: "${JWT_SECRET}"}, or a list of them,'
            f" and is {kind_of(value)}"
        )
    return value if isinstance(value, list) else [value]


Issuers = Annotated[
    list[Jwt],
    Field(min_length=1),
    BeforeValidator(_one_or_many),
    _OneOrMany,
]


class Tickets(Section):
    """``POST /tickets``: a token for a value that may stand in a URL, for a native EventSource."""

    lifetime: Duration = preset("5m", "how long a ticket opens streams; never longer than its token lives")


class Forward(Section):
    """An endpoint of yours that is asked before a stream opens, for channels with ``access: forward``."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_safe("url")]})

    url: Url = Field(description="asked with GET; 2xx opens, 401 and 403 refuse, anything else is an outage")
    allow_http: Switch = Field(False, description=ALLOW_HTTP)
    timeout: Timeout = preset("2s", "an answer that takes longer is an outage")
    cache: DurationOrNull = preset("30s", "how long an answer holds for the same question; null: not at all")
    headers: list[HeaderName] = Field(
        ["Authorization", "Cookie"], description="request headers that are passed on, and tell clients apart"
    )
    on_outage: Literal["retry", "refuse", "open"] = Field(
        "retry", description="retry: tell clients to come back; refuse: 403; open: let them in"
    )
    connections: Positive = Field(100, description="questions under way at once; others wait for a turn")


_AUTH_RULES: dict[str, Any] = {
    "allOf": [
        {
            "if": {"anyOf": [patterns.given(key) for key in ("tickets", "cookie", "query")]},
            "then": patterns.given("jwt"),
        },
        {
            "if": {"properties": {"jwt": {"type": "array", "minItems": 2}}, "required": ["jwt"]},
            "then": {"properties": {"jwt": {"items": patterns.given("issuer")}}},
        },
    ]
}


class Auth(Section):
    """Where credentials are looked for: ``Authorization: Bearer`` first, then the cookie, then the query."""

    model_config = ConfigDict(json_schema_extra=_AUTH_RULES)

    jwt: Issuers | None = Field(None, description="one issuer of tokens, or a list, each with its issuer")
    cookie: Name | None = Field(None, description="a cookie of this name may hold the token")
    query: QueryName | None = Field(
        None, description="a query value of this name may hold the token; such URLs end up in others' logs"
    )
    tickets: Tickets | None = None
    forward: Forward | None = None
