"""Messages about values from the environment: no value is shown, and no word of a sentence is cut out for one."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config.loader.load import load_text

TLS = {"certificate": "a.crt", "key": "a.key", "minimum_version": "1.2", "ciphers": "ECDHE+AESGCM"}
EVERYTHING: dict[str, Any] = {
    "server": {
        "listen": "0.0.0.0:8080",
        "admin": "127.0.0.1:9090",
        "admin_token": "t" * 32,
        "admin_hosts": ["a.example"],
        "workers": "1",
        "development": "true",
        "tls": {**TLS, "client_ca": "ca.pem"},
        "trusted_proxies": ["10.0.0.0/8"],
    },
    "logging": {"level": "info", "format": "json"},
    "check": {"allow": ["open-admin"]},
    "broker": {"url": "redis://h", "prefix": "sse", "timeout": "2s"},
    "cors": {"origins": ["https://a.example"], "max_age": "1h", "allow_headers": ["Authorization"]},
    "timeouts": {"heartbeat": "15s", "pre_drain": "0s"},
    "limits": {"connections": "100", "connect_rate": "5/s", "event_bytes": "1KiB"},
    "ack": {"interval": "30s", "timeout": "60s"},
    "auth": {
        "jwt": {"algorithms": ["HS256"], "secret": "s" * 32, "issuer": "i", "audience": "a", "leeway": "1s"},
        "cookie": "session",
        "query": "access",
        "forward": {"url": "https://a.example/", "headers": ["Cookie"], "on_outage": "retry"},
    },
    "sources": {
        "hooks": {
            "type": "webhook",
            "verify": {"bearer": ["b" * 20]},
            "topic": "{headers.x}",
            "rate": "5/s",
            "format": "auto",
            "event": {"type": "{headers.t}"},
        },
        "signed": {"type": "webhook", "verify": {"hmac": {"header": "X-S", "secrets": ["s"], "content": "{body}"}}},
        "app": {"type": "redis-pubsub", "url": "redis://h"},
        "stream": {"type": "redis-stream", "url": "redis://h", "start": "new", "payload": "p"},
        "kafka": {
            "type": "kafka",
            "brokers": "k:9092",
            "start": "new",
            "tls": {"ca_file": "ca.pem"},
            "sasl": {"mechanism": "PLAIN", "username": "u", "password": "p"},
        },
    },
    "channels": {
        "user.{id}": {
            "from": [{"source": "hooks", "topic": "u:{id}", "fields": {}}],
            "access": {"claims": {"sub": "{id}"}},
            "payload": "json",
            "format": "data",
            "slow_client": {"conflate": "{/a}"},
            "history": {"events": "10", "age": "5m"},
            "stale_after": "1m",
            "cors": {"origins": ["https://a.example"]},
        },
    },
}  # fmt: skip

Path = tuple[str | int, ...]


def texts(data: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the place of every text in a configuration."""
    if isinstance(data, str):
        yield path
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from texts(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from texts(value, (*path, index))


PLACES = list(texts(EVERYTHING))
WORDS = [
    "a",
    "short",
    "the",
    "than",
    "must be",
    "is",
    "host",
    "RFC",
    "openssl",
    "and",
    "'",
    "orders",
    "hook",
    "6",
]


def messages(path: Path, value: str) -> list[str]:
    """Return what is said of a configuration in which a variable stands at one place."""
    data = json.loads(json.dumps(EVERYTHING))
    place = data
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = "${S}"
    reading = load_text(json.dumps(data), environ={"S": value})
    return [each.issue.message for each in (*reading.errors, *reading.warnings)]


def outside_of_quotes(message: str) -> str:
    return re.sub(r"""'[^' ]*\$\{S\}[^' ]*'|"[^"]*\$\{S\}[^"]*\"""", "", message)


def test_the_configuration_has_every_kind_of_text() -> None:
    """It is good as it is, so that what is said is about the variable."""
    assert len(PLACES) > 60
    assert load_text(json.dumps(EVERYTHING), environ={}).errors == ()


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_no_word_of_a_sentence_is_cut_out(path: Path) -> None:
    """`JWT_SECRET=short` printed `is ${JWT_SECRET}er than`."""
    for word in WORDS:
        for message in messages(path, word):
            assert "${S}" not in outside_of_quotes(message), (word, message)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(PLACES),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
)
def test_whatever_the_secret_is(path: Path, secret: str) -> None:
    """Any text, at any place."""
    for message in messages(path, secret):
        assert "${S}" not in outside_of_quotes(message), message


CANARIES = [
    "c4n4ry-c4n4ry-c4n4ry", "https://c4n4ry/", "c4n4ry{", "[c4n4ry]:1", "redis://:c4n4ry@h:70000",
    "c4n4ry" * 20, "*.c4n4ry",
]  # fmt: skip


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_no_value_is_shown(path: Path) -> None:
    """What a variable stands for may be a secret, wherever it was misplaced."""
    shown = [(each, said) for each in CANARIES for said in messages(path, each) if "c4n4ry" in said]
    assert shown == []
