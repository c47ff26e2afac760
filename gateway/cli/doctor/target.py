"""The URL that is examined, and what of it may be shown. Pure."""

from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus, urlsplit, urlunsplit

from gateway.config.model.auth import RESERVED_QUERY_NAMES, canonical_query_name
from gateway.core.sanitize import REDACTED, redact_url

_PUBLIC_QUERY_NAMES = frozenset({"channel", "format", "types", "last", "since", "heartbeat"})
_TOKEN_QUERY_NAMES = frozenset({"access_token", "token", "jwt"})
"""What ``auth.query`` is usually; only the configuration knows what it is."""

"""Parameters of the gateway that hold no secret: their values are words of ordinary messages too."""

_MIN_SECRET_CHARS = 4
"""Characters; replacing shorter values would tear words apart, and they protect nothing."""


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """One stream's URL, who asks for it, and from which page."""

    url: str
    """As it is requested, secrets included: for requests only, never for a message."""
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
            raise ValueError("this is not a URL: write https://host/events/channel") from None
        if parts.scheme not in ("http", "https"):
            raise ValueError("the URL must begin with https:// (or http://)")
        if not parts.hostname or port == 0:
            raise ValueError("the URL names no host or port: write https://host/events/channel")
        if "@" in parts.netloc:
            raise ValueError("an EventSource takes no user and password in its URL: leave them out")
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
        """Whether it is asked for over TLS."""
        return self.scheme == "https"

    @property
    def display_url(self) -> str:
        """The URL as a message may have it."""
        return redact_url(self.url)

    @property
    def unknown_query_names(self) -> list[str]:
        """The query names that the gateway has no meaning for, and that are none of a token's usual ones."""
        known = RESERVED_QUERY_NAMES | _TOKEN_QUERY_NAMES
        names = (name for name, value in parse_qsl(urlsplit(self.url).query) if value)
        return [name for name in dict.fromkeys(names) if canonical_query_name(name) not in known]

    def redact(self, text: str) -> str:
        """Return a text in which no secret stands: servers repeat what they were asked."""
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
