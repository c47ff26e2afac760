"""Describes failures of upstream clients in plain English, and suggests fixes. Pure."""

import re

from gateway.net.tls_errors import humanize_tls_error

_CLIENT_PREFIX = re.compile(r"^(?:Redis|Kafka): ")
_CONNECTION_REFUSED = (
    re.compile(r"Error 111 connecting to (\S+?)\. .*"),
    re.compile(r"Cannot connect to host (\S+) ssl:\S+ \[(?:Connect call failed|Multiple exceptions).*\]"),
    re.compile(r".*Unable connect to \"(.+?)\": \[Errno 111\].*"),
)
_TIMED_OUT = re.compile(r"Timeout (?:connecting to|reading from|writing to) .*")
_UNKNOWN_HOST = (
    re.compile(r"Error -\d+ connecting to (\S+?):\d+\. .*"),
    re.compile(r"Cannot connect to host (\S+?):\d+ ssl:\S+ \[.*(?:not known|resolution|No address).*\]"),
    re.compile(r".*Unable connect to \"(.+?):\d+\": \[Errno -\d+\].*"),
)

# Words of an error message, and the fix for them; the first match counts.
_REDIS_FIXES = (
    (("noauth", "authentication required", "hello must be called"),
     "put the password into the URL: redis://:${REDIS_PASSWORD}@host:6379"),
    (("wrongpass", "invalid username", "invalid password", "without any password"),
     "check user and password; encode special characters as %2F, %3A, %40, %23"),
    (("noperm", "no permissions"), "give the user the permissions in docs/check.md"),
    (("readonly", "read only"), "that is a replica: name the master, or Sentinel, which knows it"),
    (("names a master",), "check the master's name in the configuration of Sentinel"),
    (("certificate",), "name the authority: ?ssl_ca_certs=/path/to.pem"),
    (("wrong_version_number", "record layer"), "the server does not speak TLS: redis:// in place of rediss://"),
    (("unknown command",), "the log requires Redis 6.2 or newer, a cluster 7.0, redis-stream sources 7.0"),
)  # fmt: skip
_KAFKA_FIXES = (
    (("pip install",), "install the extra, or use an image that has it"),
    (("certificate",), "name the authority: tls: {ca_file: /path/to.pem}"),
    (("authentication", "sasl"), "check mechanism, user and password of sasl"),
    (("authoriz",), "allow the user to describe and read the topics"),
)
_UNREACHABLE_FIX = "check host and port, that the server runs, and firewalls"


def describe_upstream_error(error: BaseException) -> str:
    """Return the description of a failure."""
    text = _CLIENT_PREFIX.sub("", humanize_tls_error(str(error))) or type(error).__name__
    for pattern in _CONNECTION_REFUSED:
        if (found := pattern.fullmatch(text)) is not None:
            return f"nothing listens at {found[1]}: the connection was refused"
    for pattern in _UNKNOWN_HOST:
        if (found := pattern.fullmatch(text)) is not None:
            return f"there is no host {found[1]}"
    return "no answer within its timeout" if _TIMED_OUT.fullmatch(text) else text


def suggest_redis_fix(text: str, *, is_tls: bool = False) -> str:
    """Return the fix for a failure of Redis."""
    fix = _find_fix(text, _REDIS_FIXES)
    if fix is None and is_tls and "no answer" in text:
        return "check that the server speaks TLS at that port; without it, use redis://"
    return fix or _UNREACHABLE_FIX


def suggest_kafka_fix(text: str) -> str:
    """Return the fix for a failure of Kafka."""
    return (
        _find_fix(text, _KAFKA_FIXES)
        or f"{_UNREACHABLE_FIX}; brokers do not report that they require tls and sasl"
    )


def _find_fix(text: str, table: tuple[tuple[tuple[str, ...], str], ...]) -> str | None:
    lower = text.lower()
    return next((fix for words, fix in table if any(word in lower for word in words)), None)
