"""What a reload would do, as ``sse-gateway diff`` and the log tell it."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.main import main
from gateway.config.diff import ACK_EFFECT, diff_configs
from gateway.config.model.config import Config
from tests.support.config import loads
from tests.support.gateway import BASE, merged

SOURCES = {
    "hooks": {"type": "webhook", "verify": {"none": True}},
    "app": {"type": "redis-pubsub", "url": "redis://:secret@one"},
    "stream": {"type": "redis-stream", "url": "redis://one"},
}
WHOLE: dict[str, Any] = merged(
    BASE,
    {
        "server": {"admin_token": "t" * 20},
        "auth": {"jwt": {"algorithms": ["HS256"], "secret": "s" * 40}},
        "sources": SOURCES,
        "channels": {
            "user.{id}": {"from": [{"source": "app", "topic": "user:{id}"}], "access": "token"},
            "log": {"from": [{"source": "stream", "topic": "log"}], "access": "public"},
        },
    },
)


def config(over: Any = None) -> Config:
    return loads(json.dumps(merged(WHOLE, over or {})), environ={})


CLOSES = "its streams close, and may come back at once"


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({}, []),
        ({"timeouts": {"heartbeat": "9s"}}, ["timeouts.heartbeat: 15s to 9s"]),
        ({"check": {"allow": ["open-admin"]}}, ["check.allow: [] to [open-admin]"]),
        (
            {"limits": {"connections": 7, "connect_rate": "9/s", "event_bytes": "1KiB"}},
            [
                "limits.connections: 15000 to 7: streams that are open stay",
                "limits.connect_rate: nothing to 9/s",
                "limits.event_bytes: 262144B to 1024B",
            ],
        ),
        (
            {"server": {"listen": "127.0.0.1:1"}, "broker": {"url": "sqlite:///a.db", "prefix": "x"}},
            [
                "server.listen: 127.0.0.1:0 to 127.0.0.1:1: needs a restart: a reload refuses the file",
                "broker.url: changed: needs a restart: a reload refuses the file",
                "broker.prefix: sse to x: needs a restart: a reload refuses the file",
            ],
        ),
        (
            {"server": {"tls": {"certificate": "c.pem", "key": "k.pem"}}},
            ["server.tls: added: needs a restart: a reload refuses the file"],
        ),
        ({"server": {"admin_token": "u" * 20}}, ["server.admin_token: changed"]),
        (
            {"cors": {"origins": ["https://a.example"]}},
            [
                "cors.origins: [] to [https://a.example]: streams of pages that may not read any more close",
            ],
        ),
        (
            {"auth": {"jwt": {"secret": "z" * 40}}},
            ["auth.jwt: changed: streams that a token or ticket opened close, and are decided about anew"],
        ),
        ({"auth": {"tickets": {"lifetime": "1m"}}}, ["auth.tickets: added"]),
        (
            {"sources": {"app": {"url": "redis://:other@two"}}},
            [
                "sources.app.url: changed: connects again; its channels are told a gap if no other node"
                " reads on"
            ],
        ),
        (
            {"sources": {"stream": {"timeout": "9s"}, "app": {"critical": True}}},
            [
                "sources.app.critical: False to True",
                "sources.stream.timeout: 5s to 9s: connects again, and goes on where it was",
            ],
        ),
        ({"sources": {"more": SOURCES["hooks"]}}, ["sources.more: added: starts"]),
        ({"sources": {"hooks": {"rate": "5/s"}}}, ["sources.hooks.rate: nothing to 5/s"]),
        (
            {"channels": {"chat": {"from": [{"source": "app", "topic": "chat"}], "access": "public"}}},
            [
                "sources.app.topics: +chat: subscribes and unsubscribes; the connection stays",
                "channels.chat: added",
            ],
        ),
        (
            {"channels": {"log": None}},
            [
                "sources.stream.topics: -log: connects again, and goes on where it was",
                "channels.log: removed: its streams close; whoever comes back gets 404",
            ],
        ),
        ({"channels": {"orders": {"format": "data"}}}, [f"channels.orders.format: envelope to data: {CLOSES}"]),
        ({"channels": {"orders": {"history": "none"}}}, [f"channels.orders.history: changed: {CLOSES}"]),
        (
            {"channels": {"orders": {"history": {"events": 5}}}},
            ["channels.orders.history.events: 1000 to 5: for events from now on"],
        ),
        ({"ack": {}}, ["ack: switched on: for streams that open from now on"]),
        (
            {"channels": {"orders": {"ack": {"interval": "9s"}}, "stock": {"ack": "none"}}},
            [
                f"channels.orders.ack: added: {ACK_EFFECT}",
                f"channels.stock.ack: nothing to none: {ACK_EFFECT}",
            ],
        ),
        (
            {"channels": {"orders": {"access": "token"}}},
            ["channels.orders.access: public to token: streams that the rule does not let in close"],
        ),
        (
            {
                "channels": {
                    "a.{b}.{id}": {"from": [{"source": "hooks", "topic": "a.{b}.{id}"}], "access": "token"},
                    "user.{id}": None,
                    "user.vip.{id}": {"from": [{"source": "app", "topic": "vip:{id}"}], "access": "token"},
                    "user.{id}.x": {"from": [{"source": "app", "topic": "{id}.x"}], "access": "token"},
                }
            },
            [
                "sources.hooks.topics: +a.{b}.{id}",
                "sources.app.topics: +vip:{id} +{id}.x -user:{id}: subscribes and unsubscribes;"
                " the connection stays",
                "channels.user.{id}: removed: its streams close; whoever comes back gets user.vip.{id} where"
                " that has the name, else 404",
                "channels.a.{b}.{id}: added",
                "channels.user.vip.{id}: added",
                "channels.user.{id}.x: added",
            ],
        ),
        (
            {"channels": {"user.7": {"from": [{"source": "app", "topic": "user:7"}], "access": "token"}}},
            [
                "sources.app.topics: +user:7: subscribes and unsubscribes; the connection stays",
                "channels.user.7: added: streams of this name, until now one of user.{id}, close and may come"
                " back",
            ],
        ),
    ],
)  # fmt: skip
def test_each_difference_says_what_becomes_of_it(over: Any, told: list[str]) -> None:
    """Ops read this before a deploy: nothing may be missing, and nothing said that does not happen."""
    assert [str(change) for change in diff_configs(config(), config(over))] == told


def test_a_source_of_another_type(tmp_path: Path) -> None:
    """It cannot be changed into something else: it stops, and another one starts under its name."""
    over = {"sources": {"app": {"type": "redis-stream"}}}
    changes = diff_configs(config(), config(over))
    assert [str(change) for change in changes] == [
        "sources.app.type: redis-pubsub to redis-stream: starts anew"
    ]


def test_no_secret_is_told() -> None:
    """What `diff` prints goes into pull requests."""
    over = {
        "server": {"admin_token": "NEVER" * 5},
        "auth": {"jwt": {"secret": "NEVER" * 10}},
        "broker": {"url": "redis://:NEVER@one"},
        "sources": {
            "app": {"url": "redis://:NEVER@one"},
            "hooks": {"verify": {"none": None, "bearer": ["NEVER" * 5]}},
        },
    }
    told = [
        str(change)
        for change in [*diff_configs(config(), config(over)), *diff_configs(config(over), config())]
    ]
    assert len(told) == 12
    assert "NEVER" not in "".join(told) and "secret" not in "".join(told)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its exit status tells a pipeline whether a reload will do."""
    old, new, bad = tmp_path / "old.yaml", tmp_path / "new.yaml", tmp_path / "bad.yaml"
    old.write_text(json.dumps(WHOLE))
    new.write_text(json.dumps(merged(WHOLE, {"timeouts": {"drain": "3s"}})))
    bad.write_text("channels: 5")
    assert main(["diff", str(old), str(old)]) == 0
    assert capsys.readouterr().out == f"{old}: nothing differs\n"
    assert main(["diff", str(old), str(new)]) == 0
    assert capsys.readouterr().out == (
        f"timeouts.drain: 1s to 3s\n{new}: 1 change; a reload takes all of it\n"
    )
    new.write_text(json.dumps(merged(WHOLE, {"timeouts": {"drain": "3s"}, "logging": {"level": "debug"}})))
    assert main(["diff", str(old), str(new)]) == 3
    assert capsys.readouterr().out.endswith("1 of them for a restart; until then a reload takes none\n")
    assert main(["diff", str(old), str(bad)]) == 1
    assert f"{bad}:1:11: channels: must be a mapping" in capsys.readouterr().err


def test_who_takes_over_a_name() -> None:
    """A template that stands before another one takes its names; what a fixed name leaves is a template's."""
    first = {
        "channels": {"user.vip.{id}": {"from": [{"source": "app", "topic": "v:{id}"}], "access": "token"}}
    }
    old, vip = config(), config(first)
    channels = dict(sorted(vip.channels.items(), key=lambda item: item[0] != "user.vip.{id}"))
    vip = vip.model_copy(update={"channels": channels})
    told = {str(each) for each in diff_configs(old, vip)}
    takes = "streams of user.{id} whose names it takes over close and may come back"
    assert f"channels.user.vip.{{id}}: added: {takes}" in told
    assert "channels.user.vip.{id}: added" in {str(each) for each in diff_configs(old, config(first))}
    fixed = {"channels": {"user.7": {"from": [{"source": "app", "topic": "user:7"}], "access": "token"}}}
    told = {str(each) for each in diff_configs(config(fixed), old)}
    assert "channels.user.7: removed: its streams close; whoever comes back gets one of user.{id}" in told


def test_acknowledgement_that_is_on() -> None:
    """Another interval is followed by whom it concerns; switched off, nobody is closed any more."""
    on, slower = config({"ack": {}}), config({"ack": {"interval": "45s"}})
    assert [str(each) for each in diff_configs(on, slower)] == [f"ack.interval: 30s to 45s: {ACK_EFFECT}"]
    assert [str(each) for each in diff_configs(on, config())] == [
        "ack: switched off: nobody is asked any more"
    ]
