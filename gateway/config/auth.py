"""Who may read: how tokens are checked, tickets given, and the user's own endpoint asked."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gateway.config.section import Section, preset
from gateway.config.units import Count, Duration, DurationOrNull, DurationOrZero, Secret, Switch, fault

HMAC_KEY_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"]

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_LOCAL = ("localhost", "127.0.0.1", "::1")

ALLOW_HTTP = "allow http:// to another host; whoever is between could answer in its place"


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise fault("must be a URL: https://id.example.com/path")
    if parts.username or parts.password:
        raise fault("a URL here has no user or password")
    return value


Url = Annotated[str, AfterValidator(_http_url)]


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in _LOCAL


def _check_url(key: str, url: str, allow_http: bool) -> None:
    if not allow_http and not _is_safe(url):
        raise fault(f"{key} is http://: whoever is between could answer; use https, or say allow_http: true")


class Jwt(Section):
    """How tokens are checked. ``exp`` is always required."""

    algorithms: list[Algorithm] = Field(min_length=1, description="those that tokens may be signed with")
    secret: Secret | None = Field(None, description="for HS algorithms, at least as long as the hash")
    public_key_file: str | None = Field(None, description="PEM file, for RS, ES and EdDSA")
    jwks_url: Url | None = Field(None, description="where the issuer publishes its keys (RFC 7517)")
    allow_http: Switch = Field(False, description=ALLOW_HTTP)
    audience: str | None = Field(None, description="what aud must be; without it any is taken")
    issuer: str | None = Field(None, description="what iss must be; without it any is taken")
    leeway: DurationOrZero = preset("30s", "how far the clocks of issuer and gateway may differ")
    max_lifetime: Duration = preset("30d", "a token that expires later than this from now is refused")

    @model_validator(mode="after")
    def _one_key(self) -> "Jwt":
        kinds = {name[:2] for name in self.algorithms}
        if len(kinds) > 1 and (self.jwks_url is None or "HS" in kinds):
            # One list for two kinds would let a public key be used as an HMAC secret (RFC 8725 §2.1).
            raise fault("all algorithms must be of one kind: HS, RS, ES or EdDSA; a key is of one kind")
        given = [
            name for name in ("secret", "public_key_file", "jwks_url") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise fault(
                "give exactly one of secret (HS algorithms), public_key_file, jwks_url (RS, ES, EdDSA)"
            )
        if ("HS" in kinds) != (given == ["secret"]):
            wanted = "secret" if "HS" in kinds else "public_key_file or jwks_url"
            raise fault(f"{', '.join(self.algorithms)} needs {wanted}")
        if self.secret is not None:
            needed = max(HMAC_KEY_BYTES[name] for name in self.algorithms)
            if len(self.secret.get_secret_value().encode()) < needed:
                raise fault(f"secret is shorter than the {needed} bytes that RFC 7518 §3.2 asks for")
        if self.jwks_url is not None:
            _check_url("jwks_url", self.jwks_url, self.allow_http)
        return self


class _OneOrMany:
    """Lets a list with one element be written without its brackets, in the schema too."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        many = handler(core)
        return {"anyOf": [many["items"], many]}


Issuers = Annotated[
    list[Jwt],
    Field(min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, (dict, Jwt)) else value),
    _OneOrMany,
]


class Tickets(Section):
    """``POST /tickets``: a token for a value that may stand in a URL, for a native EventSource."""

    lifetime: Duration = preset("5m", "how long a ticket opens streams; never longer than its token lives")


class Forward(Section):
    """An endpoint of yours that is asked before a stream opens, for channels with ``access: forward``."""

    url: Url = Field(description="asked with GET; 2xx opens, 401 and 403 refuse, anything else is an outage")
    allow_http: Switch = Field(False, description=ALLOW_HTTP)
    timeout: Duration = preset("2s", "an answer that takes longer is an outage")
    cache: DurationOrNull = preset("30s", "how long an answer holds for the same question; null: not at all")
    headers: list[str] = Field(
        ["Authorization", "Cookie"], description="request headers that are passed on, and tell clients apart"
    )
    on_outage: Literal["retry", "refuse", "open"] = Field(
        "retry", description="retry: tell clients to come back; refuse: 403; open: let them in"
    )
    connections: Count = Field(100, ge=1, description="questions under way at once; others wait for a turn")

    @model_validator(mode="after")
    def _safe(self) -> "Forward":
        _check_url("url", self.url, self.allow_http)
        return self


def _header_name(value: Any) -> Any:
    if isinstance(value, str) and not _TOKEN.fullmatch(value):
        raise fault("must be a name of letters, digits and dashes")
    return value


Name = Annotated[str, BeforeValidator(_header_name)]


class Auth(Section):
    """Where credentials are looked for: ``Authorization: Bearer`` first, then the cookie, then the query."""

    jwt: Issuers | None = Field(None, description="one issuer of tokens, or a list, each with its issuer")
    cookie: Name | None = Field(None, description="a cookie of this name may hold the token")
    query: Name | None = Field(
        None, description="a query value of this name may hold the token; such URLs end up in others' logs"
    )
    tickets: Tickets | None = None
    forward: Forward | None = None

    @model_validator(mode="after")
    def _apart(self) -> "Auth":
        issuers = [jwt.issuer for jwt in self.jwt or ()]
        if len(issuers) > 1 and (None in issuers or len(set(issuers)) < len(issuers)):
            raise fault("several issuers are told apart by their iss claim: give each its own issuer")
        if self.tickets is not None and self.jwt is None:
            raise fault("tickets are given for tokens, and there is no jwt that says how to check them")
        if self.query == "ticket":
            raise fault("query: ticket is the name of tickets; choose another")
        return self
