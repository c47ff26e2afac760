"""The URL to examine, and the redaction of its secrets. Pure."""

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus, urlsplit, urlunsplit

from gateway.config.model.auth import RESERVED_QUERY_NAMES, canonical_query_name
from gateway.core.sanitize import REDACTED, redact_url

_PUBLIC_QUERY_NAMES = frozenset({"channel", "format", "types", "last", "since", "heartbeat"})
"""Parameters of the gateway without secrets: their values are words of ordinary messages too."""

_TOKEN_QUERY_NAMES = frozenset({"access_token", "token", "jwt"})
"""Usual values of ``auth.query``, which is known to the gateway only."""

_MIN_SECRET_CHARS = 4
"""Shorter values are not redacted: they protect nothing, and are parts of ordinary words."""


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """A stream's URL, with the token and the page's origin of its client."""

    url: str
    """With its secrets: for requests, never for a message."""
    scheme: str
    host: str
    port: int
    origin: str | None = None
    token: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str, *, origin: str | None = None, token: str | None = None) -> "ProbeTarget":
        """Return the target of a URL. Raises ValueError with a sentence that does not repeat the URL."""
        try:
            parts = urlsplit(text.strip())
            port = parts.port
        except ValueError:
            raise ValueError("must be a URL: https://host/events/channel") from None
        if parts.scheme not in ("http", "https"):
            raise ValueError("the URL must start with https:// (or http://)")
        if not parts.hostname or port == 0:
            raise ValueError("the URL has no host or port: write https://host/events/channel")
        if "@" in parts.netloc:
            raise ValueError("an EventSource rejects URLs with user and password: leave them out")
        return cls(
            urlunsplit((parts.scheme, parts.netloc, parts.path or "/", parts.query, "")),
            parts.scheme,
            parts.hostname,
            port or (443 if parts.scheme == "https" else 80),
            origin,
            token,
        )

    @property
    def is_tls(self) -> bool:
        """Whether the scheme is https."""
        return self.scheme == "https"

    @property
    def display_url(self) -> str:
        """The URL without secrets, for messages."""
        return redact_url(self.url)

    @property
    def unknown_query_names(self) -> list[str]:
        """Query names that are neither the gateway's nor usual ones of a token."""
        known = RESERVED_QUERY_NAMES | _TOKEN_QUERY_NAMES
        names = (name for name, value in parse_qsl(urlsplit(self.url).query) if value)
        return [name for name in dict.fromkeys(names) if canonical_query_name(name) not in known]

    def redact(self, text: str) -> str:
        """Return a text without the secrets of the request, which servers repeat."""
        for secret in self._secrets():
            text = text.replace(secret, REDACTED)
        return text

    def _secrets(self) -> list[str]:
        pieces = (piece.partition("=") for piece in urlsplit(self.url).query.split("&"))
        raw = [
            value if separator else name
            for name, separator, value in pieces
            if canonical_query_name(name) not in _PUBLIC_QUERY_NAMES
        ]
        plain = [*raw, *map(unquote, raw), *map(unquote_plus, raw), *([self.token] if self.token else [])]
        every = {form for each in plain for form in (each, quote(each, safe=""), quote_plus(each))}
        return sorted((each for each in every if len(each) >= _MIN_SECRET_CHARS), key=len, reverse=True)
