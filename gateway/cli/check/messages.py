"""What clients of upstreams say of a failure, in plain words, and what to do about it. Pure."""

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

# Which words of a failure mean which mend, the first that fits.
_REDIS_FIXES = (
    (("noauth", "authentication required", "hello must be called"),
     "put the password into the URL: redis://:${REDIS_PASSWORD}@host:6379"),
    (("wrongpass", "invalid username", "invalid password", "without any password"),
     "see that user and password are the server's; special characters as %2F, %3A, %40, %23"),
    (("noperm", "no permissions"), "give the user what docs/check.md lists"),
    (("readonly", "read only"), "that is a replica: name the master, or Sentinel, which knows it"),
    (("names a master",), "see that the master's name is the one that Sentinel was given"),
    (("certificate",), "name the authority: ?ssl_ca_certs=/path/to.pem"),
    (("wrong_version_number", "record layer"), "the server does not speak TLS: redis:// in place of rediss://"),
    (("unknown command",), "the log needs Redis 6.2 or newer, a cluster 7.0, redis-stream sources 7.0"),
)  # fmt: skip
_KAFKA_FIXES = (
    (("pip install",), "install the extra, or take an image that has it"),
    (("certificate",), "name the authority: tls: {ca_file: /path/to.pem}"),
    (("authentication", "sasl"), "see that sasl has the mechanism, the user and the password of the brokers"),
    (("authoriz",), "let the user describe and read the topics"),
)
_UNREACHABLE_FIX = "see that host and port are right, that it runs, and that nothing is between"


def describe_upstream_error(error: BaseException) -> str:
    """Return a failure in plain words."""
    text = _CLIENT_PREFIX.sub("", humanize_tls_error(str(error))) or type(error).__name__
    for pattern in _CONNECTION_REFUSED:
        if (found := pattern.fullmatch(text)) is not None:
            return f"nothing listens at {found[1]}: the connection was refused"
    for pattern in _UNKNOWN_HOST:
        if (found := pattern.fullmatch(text)) is not None:
            return f"there is no host {found[1]}"
    return "no answer within its time" if _TIMED_OUT.fullmatch(text) else text


def suggest_redis_fix(text: str, *, is_tls: bool = False) -> str:
    """Return what to do about a failure of Redis; ``tls`` where TLS was spoken."""
    mend = _find_fix(text, _REDIS_FIXES)
    if mend is None and is_tls and "no answer" in text:
        return "see that the server speaks TLS at that port; without it: redis://"
    return mend or _UNREACHABLE_FIX


def suggest_kafka_fix(text: str) -> str:
    """Return what to do about a failure of Kafka."""
    return (
        _find_fix(text, _KAFKA_FIXES)
        or f"{_UNREACHABLE_FIX}; whether the brokers want tls and sasl, they do not say"
    )


def _find_fix(text: str, table: tuple[tuple[tuple[str, ...], str], ...]) -> str | None:
    lower = text.lower()
    return next((mend for words, mend in table if any(word in lower for word in words)), None)
