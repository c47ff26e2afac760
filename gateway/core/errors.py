"""The one tree of exceptions.

An error that can reach an HTTP client knows its status and a stable ``code``; the code is part of
the public contract (clients and dashboards match on it), the message is for people and may change.
"""

import re


class GatewayError(Exception):
    """Root of the tree. ``status`` is the HTTP status, ``code`` the stable name of the fault."""

    status = 500
    code = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class BadRequest(GatewayError):
    """The request can never succeed as it is."""

    status = 400
    code = "bad_request"


class Unauthorized(GatewayError):
    """No credentials, or credentials that prove nothing. ``challenge`` is what ``WWW-Authenticate`` says."""

    status = 401
    code = "unauthorized"

    def __init__(self, message: str, *, code: str | None = None, challenge: str = "Bearer") -> None:
        super().__init__(message, code=code)
        self.challenge = challenge


class Forbidden(GatewayError):
    """Who asks may not do this. ``challenge`` where a better token would help."""

    status = 403
    code = "forbidden"

    def __init__(self, message: str, *, code: str | None = None, challenge: str | None = None) -> None:
        super().__init__(message, code=code)
        self.challenge = challenge


class NotFound(GatewayError):
    """Nothing has that name."""

    status = 404
    code = "not_found"


class RequestTimeout(GatewayError):
    """The client did not send its whole request in time."""

    status = 408
    code = "request_timeout"


class PayloadTooLarge(GatewayError):
    """The body, or one record in it, is over a limit of the configuration."""

    status = 413
    code = "too_large"


class ExpectationFailed(GatewayError):
    """An ``Expect`` header that is not 100-continue."""

    status = 417
    code = "expectation_failed"


class RecordRejected(GatewayError):
    """A record can never become an event; ``code`` is the reason that metrics count."""

    status = 422
    code = "rejected"

    def __init__(self, message: str, *, code: str, status: int = 422) -> None:
        super().__init__(message, code=code)
        self.status = status


def not_utf8_error(what: str, byte: int | None = None) -> RecordRejected:
    """Return the refusal of something that must be text."""
    where = "" if byte is None else f" (byte {byte})"
    return RecordRejected(
        f"{what} is not UTF-8{where}: the publisher must write text (Kafka: StringSerializer; Spring:"
        " StringRedisTemplate; Redisson: StringCodec)",
        code="not_utf8",
    )


class IdempotencyKeyReused(RecordRejected):
    """A deduplication key that came with another content before; nothing of the batch was appended."""

    def __init__(self) -> None:
        super().__init__(
            "this idempotency key was used with another request before; a new request needs a new key",
            code="idempotency_key_reused",
        )


class Unavailable(GatewayError):
    """Temporary trouble: answered 503 with ``Retry-After: retry_after`` (seconds)."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int = 5) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class Overloaded(GatewayError):
    """No stream now, and one later: answered 200 with ``stream.close``, as a browser must come back."""

    status = 503
    code = "overloaded"


class Draining(Overloaded):
    """The node is shutting down."""

    code = "draining"


class TooManyRequests(GatewayError):
    """Over a rate: answered 429 with ``Retry-After: retry_after`` (seconds)."""

    status = 429
    code = "rate_limited"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StaleFencingToken(GatewayError):
    """The lease that an append was made under is another node's by now; nothing of it was appended."""

    code = "fenced"


class SourceError(GatewayError):
    """An upstream broke, or stalled; its supervisor starts it again."""

    code = "source"


class StartupError(GatewayError):
    """The daemon cannot start; the message is the one line that the operator reads."""

    code = "startup"


_NOT_QUOTABLE_CHAR = re.compile(r"[^ !#-\[\]-~]")


def bearer_challenge(error: str, description: str) -> str:
    """Return the challenge of RFC 6750 §3 with its reason, without what may not be quoted there."""
    return f'Bearer error="{error}", error_description="{_NOT_QUOTABLE_CHAR.sub("_", description)}"'
