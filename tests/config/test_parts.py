"""Commands that need some sections: what is missing for the others stops nothing, what they need does."""

import asyncio
import sys
from pathlib import Path

import pytest

from gateway.cli.main import main
from gateway.cli.terminal.test_record import PublishRequest, build_test_record
from gateway.config.loader.issues import ConfigError
from gateway.config.loader.partial import PUBLIC_ENDPOINT_KEYS, ROUTING_KEYS, TOKEN_KEYS, load_sections
from gateway.core.errors import RecordRejected
from tests.support.gateway import gateway_running

FILE = """
server: {listen: "${LISTEN}", admin: "0.0.0.0:9090", admin_token: "${ADMIN_TOKEN}", workers: 2,
         tls: {certificate: "${CRT}", key: "${KEY}"}}
broker: {url: "${REDIS_URL}"}
cors: {origins: ["${ORIGIN}"]}
limits: {connections: "${CONNECTIONS}"}
auth:
  jwt: {algorithms: [HS256], secret: "${JWT_SECRET}"}
  forward: {url: "${FORWARD}"}
  tickets: {lifetime: "${LIFETIME}"}
sources:
  app: {type: redis-pubsub, url: "${REDIS_URL}"}
  kafka: {type: kafka, brokers: "${KAFKA}", sasl: {mechanism: PLAIN, username: u, password: "${PASSWORD}"}}
  hooks: {type: webhook, verify: {bearer: ["${WEBHOOK_TOKEN}"]}}
channels:
  orders: {from: [{source: app, topic: orders}, {source: hooks, topic: orders}, {source: kafka, topic: o}],
           access: token, cors: {origins: ["${ORIGIN}"]}, ack: {interval: "${ACK}"}}
  asked: {from: [{source: kafka, topic: orders}], access: forward}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "g.yaml").write_text(FILE)
    return tmp_path / "g.yaml"


def test_each_command_gets_its_sections(file: Path) -> None:
    """The laptop from which somebody signs a token has the token's secret, and no password of Redis."""
    config = load_sections(file, *TOKEN_KEYS, environ={"JWT_SECRET": "s" * 32}).config
    assert config.auth is not None
    assert config.auth.jwt is not None
    assert list(config.channels) == ["orders", "asked"]
    door = load_sections(file, *PUBLIC_ENDPOINT_KEYS, environ={"LISTEN": "127.0.0.1:8443"}).config.server
    assert door.public_url(8443) == "https://127.0.0.1:8443"


def test_only_missing_variables_that_are_needed_are_reported(file: Path) -> None:
    """Nobody has to guess which of twelve variables a command wants."""
    with pytest.raises(ConfigError) as caught:
        load_sections(file, *TOKEN_KEYS, environ={})
    assert [each.issue.message for each in caught.value.errors] == [
        "the environment has no JWT_SECRET; set it, or write ${JWT_SECRET:-default}"
    ]
    with pytest.raises(ConfigError) as caught:
        load_sections(file, *PUBLIC_ENDPOINT_KEYS, environ={"LISTEN": "80"})
    assert [each.issue.path for each in caught.value.errors] == [("server", "listen")]


def test_publish_takes_the_way_that_can_be_used(file: Path) -> None:
    """A webhook is the best one; without its token the Redis, and without both it says why not."""
    for environ, source in (
        ({"WEBHOOK_TOKEN": "w" * 20}, "hooks"),
        ({"REDIS_URL": "redis://h"}, "app"),
        ({"WEBHOOK_TOKEN": "w" * 20, "REDIS_URL": "redis://h"}, "hooks"),
    ):
        part = load_sections(file, *ROUTING_KEYS, environ=environ)
        assert (
            build_test_record(part.config, PublishRequest("orders", b"{}"), part.missing_by_source).source
            == source
        )
    part = load_sections(file, *ROUTING_KEYS, environ={})
    with pytest.raises(RecordRejected) as caught:
        build_test_record(part.config, PublishRequest("orders", b"{}"), part.missing_by_source)
    assert caught.value.message.splitlines()[1:] == [
        "  hooks: the environment has no WEBHOOK_TOKEN; set it, or write ${WEBHOOK_TOKEN:-default}",
        "  app: the environment has no REDIS_URL; set it, or write ${REDIS_URL:-default}",
        "  kafka: the environment has no KAFKA; set it, or write ${KAFKA:-default}",
    ]


def test_a_file_whose_variables_are_all_there_is_checked_as_a_whole(tmp_path: Path) -> None:
    """A misspelled key is an error for every command."""
    (tmp_path / "g.yaml").write_text(FILE.split("server")[0] + "tmeouts: {}\n" + "channels: {}\n")
    with pytest.raises(ConfigError, match="tmeouts: unknown key"):
        load_sections(tmp_path / "g.yaml", *PUBLIC_ENDPOINT_KEYS, environ={})


def test_token_signs(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command itself."""
    monkeypatch.setenv("JWT_SECRET", "s" * 32)
    assert main(["token", "--config", str(file), "--channels", "orders"]) == 0
    assert capsys.readouterr().out.count(".") == 2


async def test_publish_and_tail_work(tmp_path: Path) -> None:
    """Against a gateway, with nothing but the port and the webhook's token in the environment."""

    async with gateway_running() as gateway:
        text = (
            'server: {listen: "127.0.0.1:PORT", admin_token: "${ADMIN_TOKEN}"}\nbroker: {url: "${REDIS_URL}"}\n'
            'sources:\n  app: {type: redis-pubsub, url: "${REDIS_URL}"}\n'
            "  hooks: {type: webhook, verify: {none: true}}\n"
            "channels:\n  orders: {from: [{source: app, topic: orders}, {source: hooks, topic: orders}],"
            ' access: public, cors: {origins: ["${ORIGIN}"]}}\n'
        ).replace("PORT", str(gateway.daemon.public_listener.port))
        (tmp_path / "g.yaml").write_text(text)
        for command in (("publish", "orders", "{}"), ("tail", "orders", "--last", "1", "--count", "1")):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", *command, "--config", str(tmp_path / "g.yaml")),
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, err = await process.communicate()
            assert process.returncode == 0, err
            assert out
