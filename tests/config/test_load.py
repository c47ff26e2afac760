"""Loading: all errors of a file at once, each with its position and a fix."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.loader.issues import ConfigError
from gateway.config.loader.load import load_file
from gateway.config.model.config import ClaimsAccessConfig
from gateway.core.errors import StartupError
from gateway.server.reload import referenced_files
from tests.support.config import loads

GOOD = """
sources:
  hooks: {type: webhook, verify: {none: true}}
channels:
  orders:
    from: [{source: hooks, topic: orders}]
    access: public
"""


def errors(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """Return the first line of each error's message."""
    with pytest.raises(ConfigError) as caught:
        loads(text, file="g.yaml", environ=environ or {})
    return [error.render("g.yaml").splitlines()[0] for error in caught.value.errors]


def one_error(more: str, environ: dict[str, str] | None = None) -> str:
    (error,) = errors(GOOD + more, environ)
    return error


BROKEN = """\
server:
  listn: 0.0.0.0:8080
cors:
  origins: ["*"]
  credentials: true
timeouts:
  heartbeat: 15
logging: {level: info}
logging: {level: info}
sources:
  hooks: {type: webhook, verify: {none: true}}
channels:
  orders:
    from: [{source: hook, topic: orders}]
  user.{id}:
    from: [{source: hooks, topic: "user:*"}]
    access: public
    histroy: none
"""


def test_every_error_is_reported_at_once_with_its_position() -> None:
    """The list of the issue: unknown and duplicate key, bad duration, no capture, no access, '*' with credentials."""
    expected = [
        r"g.yaml:2:3: server.listn: unknown key; did you mean 'listen'\?",
        r"g.yaml:4:12: cors.origins: '\*' with cors.credentials .*",
        r"g.yaml:7:14: timeouts.heartbeat: a duration needs a unit: 15s.*",
        r"g.yaml:9:1: logging: the key 'logging' is already given in line 8; remove one",
        r"g.yaml:13:3: channels.orders.access: is required.*write access: public.*",
        r"g.yaml:14:21: channels.orders.from\[0\].source: no source is named 'hook'; did you mean 'hooks'\?",
        r"g.yaml:16:35: channels.\"user.\{id\}\".from\[0\].topic: does not capture \{id\}.*user:\{id\}.*",
        r"g.yaml:18:5: channels.\"user.\{id\}\".histroy: unknown key; did you mean 'history'\?",
    ]
    found = errors(BROKEN)
    assert len(found) == len(expected), "\n".join(found)
    for pattern, line in zip(expected, found, strict=True):
        assert re.fullmatch(pattern, line), line


def test_the_source_line_is_shown_with_a_mark_below_the_error() -> None:
    """Like a compiler's: the eye finds the place without counting."""
    with pytest.raises(ConfigError) as caught:
        loads(BROKEN, file="g.yaml")
    assert "\n  7 |   heartbeat: 15\n    |              ^\n" in caught.value.message
    assert caught.value.message.endswith("g.yaml: 8 errors")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("logging: {level: no}", "logging.level: must be debug, info, warning or error, and is no"),
        (
            "timeouts: {retry: 12:30}",
            "12:30 is the number 750 to some YAML parsers; write 750 for the number",
        ),
        ("timeouts: {retry: 2026-01-01}", "is a date"),
        ("timeouts: {retry: soon}", "'soon' is not a duration"),
        ("timeouts: {retry: 0s}", "more than 0"),
        ("limits: {event_bytes: 5}", "a size needs a unit: 5B"),
        ("limits: {connections: many}", "must be a whole number"),
        ("limits: {connections: 0}", "must be at least 1"),
        ("limits: {connections: true}", "must be a number"),
        ("limits: [1]", "must be a mapping"),
        ("server: {listen: 8080}", "write host:port"),
        ("server: {listen: '::1:80'}", "in brackets"),
        ("server: {listen: 'a:99999'}", "has a port beyond 65535"),
        ("logging: &a {level: info}\nserver: *a", "aliases are not supported"),
        ("logging: {<<: {level: info}}", "merge keys are not supported"),
        ("logging: !!python/object:os.system {}", "is not supported"),
        ("server: {tls: {certificate: a}}", "server.tls.key: is required"),
        ("server: {tls: {certificate: a, key: b, ciphers: 'ECDHE+AESGCM:NONSENSE'}}", "no cipher 'NONSENSE'"),
        ("server: {tls: {certificate: a, key: b, ciphers: ''}}", "no cipher ''"),
        (
            "server: {tls: {certificate: a, key: b, ciphers: 'ECDHE+AESGCM:!AESGCM'}}",
            "leaves no cipher",
        ),
        ("broker: {url: 'rediss://h?ssl_cert_reqs=none'}", "switches the verification of certificates off"),
        ("broker: {url: postgres://x}", "must be memory://, sqlite:///file"),
        ("broker: {url: redis://}", "is not a Redis URL; write redis://host:6379"),
        ("broker: {url: redis+sentinel://a:1}", "names no master; write redis+sentinel://host"),
        ("broker: {url: redis+cluster://a:1/2}", "names a database"),
        ("broker: {url: redis+cluster://a:99999}", "has a port beyond 65535"),
        ("broker: {prefix: a b}", "must be 1 to 64 letters, digits"),
        ("limits: {connect_rate: fast}", "is not a rate"),
        ("server: {worker: 2}", "unknown key"),
        ("server: {workers: 2}", "memory:// is private to one process; set broker.url"),
        ("server: {workers: auto}", "memory:// is private to one process; set broker.url"),
        ("server: {workers: 0}", "must be auto or a number from 1 to 64"),
        ("server: {workers: many}", "must be auto or a number from 1 to 64"),
        ("server: {admin: '0.0.0.0:9090'}", "listen on 127.0.0.1, or set admin_token"),
        ("server: {admin: '0.0.0.0:9090', admin_open: false}", "or admin_open: true if"),
        ("server: {admin: 'localhost.example.com:9090'}", "would expose metrics and status"),
        ("server: {admin_token: short}", "at least 16 ASCII characters without spaces; make one with"),
        ("server: {admin_token: 'sixteen characters'}", "at least 16 ASCII characters without spaces"),
        ("server: {admin_token: ''}", "at least 16 ASCII characters without spaces"),
        ("cors: {origins: [example.com]}", "an origin needs a scheme"),
        ("auth: {jwt: {algorithms: [HS256], secret: short}}", "shorter than 32 bytes"),
        (f"auth: {{jwt: {{algorithms: [HS256, RS256], secret: {'x' * 32}}}}}", "a key is of one kind"),
        ("auth: {jwt: {algorithms: [RS256]}}", "exactly one of secret"),
        ("auth: {jwt: {algorithms: [none], secret: x}}", "must be 'HS256'"),
        (
            "auth: {jwt: {algorithms: [HS256], jwks_url: https://id.example/k}}",
            "is no key for HS256; set secret",
        ),
        ("auth: {jwt: {algorithms: [HS256, RS256], jwks_url: https://id.example/k}}", "of one kind"),
        ("auth: {jwt: {algorithms: [RS256], jwks_url: http://id.example/k}}", "allow_http: true"),
        (
            "auth: {jwt: {algorithms: [RS256], jwks_url: https://u:p@id.example/k}}",
            "not have a user or password",
        ),
        ("auth: {jwt: {algorithms: [RS256], jwks_url: id.example/k}}", "must be a URL"),
        (
            "auth: {jwt: {algorithms: [RS256], jwks_url: https://id.example/k, leeway: 10m}}",
            "must be at most",
        ),
        (
            "auth: {jwt: {algorithms: [RS256], jwks_url: https://id.example/k, issuer: ''}}",
            "must not be empty",
        ),
        (
            "auth: {jwt: [{algorithms: [RS256], jwks_url: https://id.example/k}, {algorithms: [RS256],"
            " jwks_url: https://b.example/k, issuer: b}]}",
            "has no issuer",
        ),
        (
            f"auth: {{jwt: [{{algorithms: [HS256], secret: {'x' * 32}, issuer: a}}, {{algorithms: [HS256],"
            f" secret: {'x' * 32}, issuer: b}}]}}",
            "is used by another issuer too",
        ),
        ("auth: {tickets: {}}", "tickets are issued for tokens"),
        ("auth: {cookie: sid}", "carries tokens, and auth.jwt is missing"),
        (
            f"auth: {{jwt: {{algorithms: [HS256], secret: {'x' * 32}}}, query: ticket}}",
            "is a parameter of the gateway",
        ),
        (f"auth: {{jwt: {{algorithms: [HS256], secret: {'x' * 32}}}, cookie: 'a b'}}", "letters, digits"),
        ("auth: {forward: {url: http://app.example/may}}", "allow_http: true"),
        ("auth: {forward: {url: https://app.example/may, headers: [Host]}}", "set by the gateway itself"),
        ("auth: {forward: {url: https://app.example/may, headers: ['X: y']}}", "letters, digits"),
        ("auth: {forward: {url: https://app.example/may, timeout: 1m}}", "must be at most"),
        ("server: {trusted_proxies: [0.0.0.0/0]}", "would trust every client's X-Forwarded-For"),
        ("server: {trusted_proxies: [10.0.0.1/8]}", "has host bits set"),
        ("server: {trusted_proxies: [proxy.example]}", "write an address or a network"),
        ("limits: {connections_per_user: 0}", "must be at least 1"),
        ("limits: {connect_rate_per_address: 200}", "a rate needs a time: 200/s"),
    ],
)
def test_one_error_one_message(more: str, message: str) -> None:
    """A message that does not say how to fix the error."""
    assert message in one_error(more)


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("a b: {from: [{source: hooks, topic: t}], access: public}", "may hold letters"),
        ("c: {from: [], access: public}", "must not be empty"),
        ("c: {from: [{source: hooks, topic: t}], access: everybody}", "must be public, token, forward, or"),
        ("c: {from: [{source: hooks, topic: t}], access: token}", "auth.jwt is missing"),
        ("c: {from: [{source: hooks, topic: 't:{id}'}], access: public}", "captures {id}, which the channel"),
        ("c: {from: [{source: hooks, topic: t}], access: public, history: some}", "must be none, or"),
        ("c: {from: [{source: hooks, topic: t}], access: public, history: {age: 5}}", "needs a unit"),
        ("c: {from: [{source: hooks, topic: t}], access: public, payload: xml}", "must be 'json'"),
        ("c.{a}: {from: [{source: hooks, topic: '{a}'}], access: public}\n"
         "  c.{b}: {from: [{source: hooks, topic: '{b}'}], access: public}", "matches the same names"),
        ("b: {from: [{source: hooks, topic: b}], access: public, slow_client: drop}",
         'must be disconnect, skip, conflate, or {conflate: "{/symbol}"}'),
        ('b: {from: [{source: hooks, topic: b}], access: public, slow_client: {conflate: "{key}"}}',
         "has {key}; a key may only have JSON pointers"),
        ('b: {from: [{source: hooks, topic: b}], access: public, payload: text, slow_client: {conflate: "{/a}"}}',
         "needs a JSON payload"),
    ],
)  # fmt: skip
def test_channels(channel: str, message: str) -> None:
    """A channel that could not work as written is refused."""
    assert message in one_error("  " + channel)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{type: webhook}", "is required: without a rule nobody may post"),
        ("{type: webhook, verify: {}}", "exactly one of"),
        (
            "{type: webhook, verify: {client_certificate: [a]}}",
            "verify.client_certificate: clients are not asked for",
        ),
        ("{type: webhook, verify: {client_certificate: []}}", "must not be empty"),
        ("{type: webhook, verify: {bearer: ['']}}", "is empty; check the variable"),
        ("{type: webhook, verify: {none: true, github: [x]}}", "found github and none"),
        ("{type: webhook, verify: {standard_webhooks: ['whsec_%%%']}}", "whsec_ and base64"),
        ("{type: webhook, verify: {standard_webhooks: [whsec_YWJj]}}", "has 3 bytes"),
        ("{type: webhook, verify: {basic: [nobody]}}", "must be user:password"),
        (
            "{type: webhook, verify: {hmac: {secrets: [x], header: h, content: '{id}{body}'}}}",
            "id_header is missing",
        ),
        ("{type: webhook, verify: {hmac: {secrets: [x], header: h, content: x}}}", "must have {body}"),
        (
            "{type: webhook, verify: {hmac: {secrets: [x], header: h, content: '{b}'}}}",
            "verify.hmac.content: has {b}; it may have",
        ),
        ("{type: webhook, verify: {none: true}, rate: fast}", "is not a rate; write"),
        ("{type: webhook, verify: {none: true}, topic: '{fields.a}'}", "a webhook source has no {fields.a}"),
        ("{type: webhook, verify: {none: true}, event: {type: '{a b}'}}", "neither a name"),
        ("{type: redis-stream, url: 'redis://x', start: now}", "must be new, oldest, or the id of an entry"),
        (
            "{type: redis-stream, url: 'redis://x', event: {type: '{key}'}}",
            "a redis-stream source has no {key}",
        ),
        ("{type: kafka, brokers: k1}", "must be host:port"),
        ("{type: kafka, brokers: 'k1:9092', start: yesterday}", "must be new, oldest, a time such as"),
        ("{type: kafka, brokers: 'k1:9092', sasl: {mechanism: GSSAPI, username: u, password: p}}", "PLAIN"),
        ("{type: webhok, verify: {none: true}}", "did you mean 'webhook'?"),
        ("{verify: {none: true}}", "is required: one of redis-pubsub, redis-stream, kafka, webhook"),
        ("{type: redis-pubsub, url: 'http://x'}", "is not a Redis URL"),
        (
            "{type: redis-pubsub, url: 'redis://x', topic: t}",
            "known here: critical, event, stale_after, timeout, type, url",
        ),
    ],
)
def test_sources(source: str, message: str) -> None:
    """No webhook is open by accident, and hints know which kind of source is meant."""
    text = GOOD.replace("sources:\n", f"sources:\n  s: {source}\n")
    (error,) = errors(text)
    assert message in error


def test_text_that_is_no_yaml_says_where() -> None:
    """The parser's own place is passed on."""
    (error,) = errors("server: {listen: [\nlog: }")
    assert re.match(r"g.yaml:\d+:\d+: not valid YAML: ", error)
    assert "empty" in errors("")[0]
    assert "mapping of sections" in errors("- a")[0]


@given(st.text(max_size=200))
def test_no_text_makes_the_loader_fail_otherwise(text: str) -> None:
    """Garbage is a ConfigError, never a traceback."""
    with pytest.raises(ConfigError):
        loads(text)


def test_references_are_resolved_in_values_after_the_parse() -> None:
    """A secret with YAML in it stays a value."""
    text = GOOD.replace("none: true", 'bearer: ["${A}", "${B:-fallback}", "x$${C}"]')
    config = loads(text, environ={"A": '"}, {: #'})
    (source,) = config.sources.values()
    assert source.type == "webhook"
    tokens = [token.get_secret_value() for token in source.verify.bearer or ()]
    assert tokens == ['"}, {: #', "fallback", "x${C}"]
    assert '"}, {' not in repr(config)


def test_numbers_and_switches_may_come_from_the_environment() -> None:
    """Everything in the environment is text; the model gives it its type."""
    more = 'limits: {connections: "${N}"}\ncors: {credentials: "${C}"}'
    config = loads(GOOD + more, environ={"N": "7", "C": "true"})
    assert (config.limits.connections, config.cors.credentials) == (7, True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${MISSING}", "the environment has no MISSING; set it"),
        ("${REDIS_ULR}", "did you mean 'REDIS_URL'"),
        ("${EMPTY}", "EMPTY is set but empty"),
        ("${not a name}", "is not a reference"),
        ("${UNCLOSED", "is not a reference"),
        ("file:/does/not/exist", "cannot read '/does/not/exist': No such file"),
    ],
)
def test_references_that_lead_nowhere(value: str, message: str) -> None:
    """An unset variable is an error before the deploy, not an empty secret after it."""
    error = one_error(f'auth: {{jwt: {{algorithms: [HS256], audience: "{value}", secret: {"x" * 32}}}}}',
                      {"REDIS_URL": "x", "EMPTY": ""})  # fmt: skip
    assert message in error


def test_secrets_do_not_appear_in_errors(tmp_path: Path) -> None:
    """A literal secret in the file is not shown, not even as part of the source line."""
    (tmp_path / "s").write_text("canary\n")
    text = GOOD + "auth: {jwt: {algorithms: [HS256], secret: canary}}"
    with pytest.raises(ConfigError) as caught:
        loads(text)
    assert "canary" not in caught.value.message
    text = GOOD + "auth: {jwt: {algorithms: [HS256], secret: 'file:s'}}"
    with pytest.raises(ConfigError) as caught:
        loads(text, folder=tmp_path)
    assert "shorter" in caught.value.message
    assert "canary" not in caught.value.message


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    """Wrong path, wrong encoding: one clear line each."""
    with pytest.raises(StartupError, match=r"cannot read the configuration .*nope.yaml: No such file"):
        load_file(tmp_path / "nope.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"log: {level: \xff}")
    with pytest.raises(StartupError, match="not UTF-8"):
        load_file(tmp_path / "latin.yaml")


def test_what_is_left_out_has_its_default() -> None:
    """The defaults are the contract's."""
    config = loads(GOOD)
    assert str(config.server.listen) == "0.0.0.0:8080"
    assert str(config.server.admin) == "127.0.0.1:9090"
    assert (config.timeouts.heartbeat, config.timeouts.connection) == (15.0, 3600.0)
    assert config.limits.event_bytes == 256 * 1024
    assert config.cors.origins == []
    assert config.channels["orders"].history.age == 300.0  # type: ignore[union-attr]


def test_claims_access() -> None:
    """Fields of the channel may stand in claims; others may not."""
    channel = '  u.{id}: {from: [{source: hooks, topic: "u:{id}"}], access: {claims: {sub: "{id}"}}}\n'
    auth = f"auth: {{jwt: {{algorithms: [HS256], secret: {'x' * 32}}}}}"
    access = loads(GOOD + channel + auth).channels["u.{id}"].access
    assert isinstance(access, ClaimsAccessConfig)
    (error,) = errors(GOOD + channel.replace('sub: "{id}"', 'sub: "{uid}"') + auth)
    assert "the channel has no field {uid}; its fields: {id}" in error


@pytest.mark.parametrize("value", ["'yes'", "'True'", "'1'", "'on'", "'${C}'"])
def test_credentials_are_true_or_false_and_nothing_like_it(value: str) -> None:
    """'*' with credentials must be found whatever spelling the credentials have."""
    found = errors(GOOD + f'cors: {{origins: ["*"], credentials: {value}}}', {"C": "true"})
    assert any("'*' with cors.credentials" in error or "must be true or false" in error for error in found)


@pytest.mark.parametrize("topic", ["", "0042", "1.10", "true", "123", "null"])
def test_a_topic_is_text(topic: str) -> None:
    """An unquoted number would silently be another topic."""
    (error,) = errors(GOOD.replace("topic: orders", f"topic: {topic}"))
    assert "channels.orders.from[0].topic: " in error


@pytest.mark.parametrize(
    "text",
    [
        "sources: {r: {type: redis-pubsub, url: 'redis://:canary/x@host:6379'}}",
        "sources: {r: {type: redis-pubsub, url: 'redis://:canary@host:port'}}",
        "sources: {r: {type: redis-pubsub, url: 'redis://:can\u2100ary@host'}}",
        "auth: {jwt: {algorithms: [HS256], secert: canary}}",
        "auth: {jwt: {algorithms: [HS256], secret: 0x0canary, secret: canary}}",
        "auth: {jwt: {algorithms: [HS256], secret: !x canary}}",
        "auth: {jwt: {algorithms: [HS256], secret: 'canary${'}}",
        "auth: {jwt: {algorithms: [HS256], secret: 12:34:56}}",
        "auth: {jwt: {secret: canary",
    ],
)
def test_no_error_shows_a_secret(text: str) -> None:
    """However broken the file is, what may be a secret is not printed: check's output goes into CI logs."""
    with pytest.raises(ConfigError) as caught:
        loads(text + "\n", environ={})
    for word in ("canary", "can\u2100ary", "12:34:56"):
        assert word not in caught.value.message


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("limits: {event_bytes: " + "9" * 400 + "GiB}", "is not a size"),
        ("timeouts: {write: " + "9" * 400 + "d}", "is not a duration"),
        ("timeouts: {write: 9999d}", "at most 3650d"),
        ('auth: {jwt: {algorithms: [HS256], secret: "file:a\\0b"}}', "cannot read"),
        (
            'auth: {jwt: {algorithms: [HS256], audience: "${A:-${B}}", secret: ' + "x" * 32 + "}}",
            "contains a reference",
        ),
        ("auth: {jwt: {algorithms: [RS256, ES256], public_key_file: k}}", "a key is of one kind"),
    ],
)
def test_extremes_are_errors_and_not_tracebacks(more: str, message: str) -> None:
    """Numbers beyond measure, NULs, references in references."""
    assert any(message in error for error in errors(GOOD + more))


@pytest.mark.parametrize(
    "server",
    [
        "admin: '127.0.0.2:9090'", "admin: '[::1]:9090'", "admin: 'localhost:9090'",
        "admin: '0.0.0.0:9090', admin_open: true", "admin: '[::]:9090', admin_token: 0123456789abcdefg",
    ],
)  # fmt: skip
def test_an_admin_port_that_strangers_cannot_use(server: str) -> None:
    """Loopback, a token, or the word of who knows the network."""
    loads(GOOD + f"server: {{{server}}}")


def test_an_origin_of_a_file_is_no_reference() -> None:
    """cors.origins: ["file://"] was read as a folder's name, and the message was about that."""
    text = 'cors: {origins: ["file://"]}\nsources: {}\nchannels: {}\n'
    with pytest.raises(ConfigError) as caught:
        loads(text, environ={})
    assert "opened from a file sends the origin 'null'" in str(caught.value)
    assert "cannot read" not in str(caught.value)
    assert referenced_files(text, Path("/")) == []
