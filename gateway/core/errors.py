"""All exceptions of the gateway.

An error that can reach an HTTP client has a status and a stable ``code``. The code is part of the public
contract (clients and dashboards match on it); the message is for people and may change.
"""

import re


class GatewayError(Exception):
    """Base class. ``status`` is the HTTP status, ``code`` the stable name of the error."""

    status = 500
    code = "internal"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class BadRequest(GatewayError):
    """The request is invalid and will never succeed unchanged."""

    status = 400
    code = "bad_request"


class Unauthorized(GatewayError):
    """Credentials are missing or invalid. ``challenge`` is the value of ``WWW-Authenticate``."""

    status = 401
    code = "unauthorized"

    def __init__(self, message: str, *, code: str | None = None, challenge: str = "Bearer") -> None:
        super().__init__(message, code=code)
        self.challenge = challenge


class Forbidden(GatewayError):
    """The client may not do this. ``challenge`` is set if another token would help."""

    status = 403
    code = "forbidden"

    def __init__(self, message: str, *, code: str | None = None, challenge: str | None = None) -> None:
        super().__init__(message, code=code)
        self.challenge = challenge


class NotFound(GatewayError):
    """There is nothing of that name."""

    status = 404
    code = "not_found"


class RequestTimeout(GatewayError):
    """The client did not send its whole request in time."""

    status = 408
    code = "request_timeout"


class PayloadTooLarge(GatewayError):
    """The body, or a record in it, exceeds a limit of the configuration."""

    status = 413
    code = "too_large"


class ExpectationFailed(GatewayError):
    """An ``Expect`` header that is not 100-continue."""

    status = 417
    code = "expectation_failed"


class RecordRejected(GatewayError):
    """A record is invalid and can never become an event; metrics count ``code`` as the reason."""

    status = 422
    code = "rejected"

    def __init__(self, message: str, *, code: str, status: int = 422) -> None:
        super().__init__(message, code=code)
        self.status = status


def not_utf8_error(what: str, byte: int | None = None) -> RecordRejected:
    """Return the error for bytes that must be text; ``byte`` is the offset of the first invalid one."""
    where = "" if byte is None else f" (byte {byte})"
    return RecordRejected(
        f"{what} is not UTF-8{where}: the publisher must write text (Kafka: StringSerializer; Spring:"
        " StringRedisTemplate; Redisson: StringCodec)",
        code="not_utf8",
    )


class IdempotencyKeyReused(RecordRejected):
    """A deduplication key was reused with different content; nothing of the batch was appended."""

    def __init__(self) -> None:
        super().__init__(
            "this idempotency key was used with another request before; send a new key with a new request",
            code="idempotency_key_reused",
        )


class Unavailable(GatewayError):
    """A temporary failure: 503 with ``Retry-After: retry_after`` (seconds)."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int = 5) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class Overloaded(GatewayError):
    """No stream can be opened now: 200 with ``stream.close``, so that a browser's EventSource reconnects."""

    status = 503
    code = "overloaded"


class Draining(Overloaded):
    """The node is shutting down."""

    code = "draining"


class TooManyRequests(GatewayError):
    """A rate limit is exceeded: 429 with ``Retry-After: retry_after`` (seconds)."""

    status = 429
    code = "rate_limited"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StaleFencingToken(GatewayError):
    """Another node holds the lease of an append by now; nothing was appended."""

    code = "fenced"


class SourceError(GatewayError):
    """An upstream failed or stalled; the supervisor restarts its source."""

    code = "source"


class StartupError(GatewayError):
    """The process cannot start; the message is for the operator."""

    code = "startup"


_NOT_QUOTABLE_CHAR = re.compile(r"[^ !#-\[\]-~]")


def bearer_challenge(error: str, description: str) -> str:
    """Return a challenge with its reason (RFC 6750 §3), with ``_`` for characters that are not allowed."""
    return f'Bearer error="{error}", error_description="{_NOT_QUOTABLE_CHAR.sub("_", description)}"'
