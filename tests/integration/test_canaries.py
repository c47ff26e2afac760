"""Recognisable secrets in every slot of the file and every part of a request: none may ever be seen again."""

import asyncio
import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import jwt
import pytest
from pydantic import BaseModel, SecretStr

from bench.process import free_port
from gateway.cli.main import main
from gateway.config.loader.issues import ConfigError
from gateway.config.model.config import Config
from tests.integration.test_command import CLEAN, command
from tests.support.config import loads
from tests.support.gateway import eventually, merged
from tests.support.node import ROOT
from tests.support.redis import redis_server
from tests.support.seen import Seen

MARK = "c4n4ry"


def canary(name: str) -> str:
    """Return a secret of 64 characters."""
    return f"{MARK}-{name}-".ljust(64, "x")


def source(type: str, name: str = "", **keys: Any) -> dict[str, Any]:
    return {"sources": {name or type: {"type": type, **keys}}}


def hook(name: str, secret: Any) -> dict[str, Any]:
    return source("webhook", name, verify={name: secret}, topic="orders")


# What stands for each secret of the model: one line each. @REDIS has the password of broker.url, at @CLOSED
# nobody listens.
SLOTS: dict[str, dict[str, Any]] = {
    "server.admin_token": {"server": {"admin_token": canary("admin")}},
    "broker.url": {"broker": {"url": f"redis://:{canary('broker')}@REDIS/0"}},
    "auth.jwt.secret": {"auth": {"jwt": {"algorithms": ["HS256"], "secret": canary("jwt")}}},
    "sources.redis-pubsub.url": source("redis-pubsub", url=f"redis://gw:{canary('pubsub')}@CLOSED/0"),
    "sources.redis-stream.url": source("redis-stream", url=f"redis://:{canary('wrong')}@REDIS/0"),
    "sources.kafka.sasl.password": source(
        "kafka", brokers="CLOSED", sasl={"mechanism": "PLAIN", "username": "gw", "password": canary("kafka")}
    ),
    "sources.webhook.verify.standard_webhooks": hook("standard_webhooks", [f"whsec_{MARK}STANDARD{'x' * 30}"]),
    "sources.webhook.verify.github": hook("github", [canary("github")]),
    "sources.webhook.verify.stripe": hook("stripe", [canary("stripe")]),
    "sources.webhook.verify.hmac.secrets": hook("hmac", {"secrets": [canary("hmac")], "header": "X-Signature"}),
    "sources.webhook.verify.bearer": hook("bearer", [canary("bearer")]),
    "sources.webhook.verify.basic": hook("basic", [f"user:{canary('basic')}"]),
    "sources.webhook.verify.access_token": hook("access_token", [canary("access")]),
}  # fmt: skip


def slots(kind: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every secret below a type of the model; a type of source stands for its name."""
    if kind is SecretStr:
        yield path
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields
        tags = get_args(fields["type"].annotation) if "type" in fields else ()
        path = f"{path}.{tags[0]}" if len(tags) == 1 else path
        for name, field in fields.items():
            yield from slots(field.annotation, f"{path}.{field.alias or name}".lstrip("."))
    else:
        for part in get_args(kind):
            yield from slots(part, path)


def test_every_secret_of_the_model_has_a_canary() -> None:
    """A new secret without a canary would go unchecked: give it a line in `SLOTS`."""
    assert set(slots(Config)) == set(SLOTS)


def config(redis: int, closed: int, **over: Any) -> dict[str, Any]:
    """Return a configuration with all canaries, whose channels read from all sources."""
    whole: dict[str, Any] = {"timeouts": {"request": "30s", "pre_drain": "0s", "drain": "200ms"}}
    for fragment in SLOTS.values():
        whole = merged(whole, fragment)
    sources = whole["sources"]
    routes = [{"source": name, "topic": "orders"} for name in sources]
    whole["broker"]["timeout"] = "30s"
    whole["auth"] |= {
        "cookie": "sid", "query": "jwt", "tickets": {},
        "forward": {"url": f"http://CLOSED/check?key={canary('forward')}", "cache": "1s"},
    }  # fmt: skip
    whole["channels"] = {
        "orders": {"from": routes, "access": "public"},
        "private": {"from": [{"source": "bearer", "topic": "private"}], "access": "token"},
        "room": {"from": [{"source": "bearer", "topic": "room"}], "access": "forward"},
        "enveloped": {
            "from": [{"source": "bearer", "topic": "enveloped"}], "access": "public", "payload": "envelope",
        },
    }  # fmt: skip
    whole["cors"] = {"origins": ["https://app.example.com"]}
    text = json.dumps(merged(whole, over)).replace("REDIS/", f"127.0.0.1:{redis}/")
    return dict(json.loads(text.replace("CLOSED", f"127.0.0.1:{closed}")))


def bent(value: Any) -> Iterator[Any]:
    """Yield a fragment with its canary in a wrong shape, too short, under a wrong key, and beside one."""
    if isinstance(value, str):
        if MARK in value:
            yield from ({"a": value}, {value: 1}, [[value]], MARK, "${" + value)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for other in bent(item):
                yield [*value[:index], other, *value[index + 1 :]]
    else:
        for key, item in value.items():
            rest = {name: each for name, each in value.items() if name != key}
            for other in bent(item):
                yield {**rest, key: other}
            if MARK in json.dumps(item):
                yield {**rest, f"{key}x": item}
                yield {**value, "strange": 1}


@pytest.mark.parametrize("slot", SLOTS)
def test_no_error_at_a_slot_shows_the_secret(slot: str) -> None:
    """`check` runs in builds whose logs many can read: a mistake beside a secret would publish it."""
    good = config(1, 1)
    for number, fragment in enumerate(bent(SLOTS[slot])):
        for indent in (None, 1):
            try:
                loads(json.dumps(merged(good, fragment), indent=indent), environ={})
            except ConfigError as error:
                assert MARK not in error.message, (number, error.message)


def test_check_of_a_broken_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The output of `check`, which builds and service managers keep, would contain secrets."""
    broken = config(
        1, 1, timeouts={"request": 5}, log={"levl": 1}, server={"admin_token": MARK}, strange=[MARK]
    )
    file = tmp_path / "g.yaml"
    file.write_text(json.dumps(broken))
    for name in ("check", "run"):
        assert main([name, "--config", str(file)]) == 1
        out, err = capfd.readouterr()
        assert "4 errors" in err
        assert MARK not in out + err


async def test_a_start_that_fails(tmp_path: Path) -> None:
    """A failed start would log the broker's password."""
    with redis_server() as server:
        server.client().config_set("requirepass", "another")
        addresses = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"}

        def run(workers: int) -> subprocess.CompletedProcess[str]:
            over = {"server": {**addresses, "workers": workers}, "logging": {"level": "debug"}}
            file = tmp_path / f"{workers}.yaml"
            file.write_text(json.dumps(config(server.port, free_port(), **over)))
            return command("run", "--config", str(file))

        for done in await asyncio.gather(*(asyncio.to_thread(run, workers) for workers in (1, 2))):
            assert done.returncode == 1, done.stderr
            assert MARK not in done.stdout + done.stderr


@asynccontextmanager
async def running(folder: Path, workers: int, format: str) -> AsyncIterator[Seen]:
    with redis_server() as server:
        port, admin = free_port(), free_port()
        server.client().config_set("requirepass", canary("broker"))
        at = {"listen": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{admin}", "workers": workers}
        whole = config(server.port, free_port(), server=at, log={"level": "debug", "format": format})
        (folder / "g.yaml").write_text(json.dumps(whole))
        with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "run", "--config", str(folder / "g.yaml"), "--hints"),
                stdout=out, stderr=err, cwd=ROOT, env=CLEAN,
            )  # fmt: skip
        try:
            await eventually(lambda: "/status" in (folder / "stdout").read_text())  # the hints
            yield Seen(folder, process, {"public": port, "admin": admin})
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


C = canary("request")
BASIC = base64.b64encode(f"user:{C}".encode()).decode()
GOOD = {"exp": 9_999_999_999, "channels": ["private"], "sub": C}


def tokens() -> Iterator[str]:
    """Yield tokens that prove nothing, each for a reason of its own."""
    key = canary("jwt")
    yield C
    yield f"{C}.{C}.{C}"
    yield jwt.encode(GOOD, "another" * 8)
    yield jwt.encode({**GOOD, "exp": 1}, key)
    yield jwt.encode({"sub": C}, key)
    for claims in (
        {"exp": C},
        {"nbf": C},
        {"iat": C},
        {"aud": C},
        {"aud": [C, 1]},
        {"sub": [C]},
        {"jti": 1},
        {"channels": 1},
    ):
        yield jwt.encode({**GOOD, **claims}, key)
    for more in ({"kid": C}, {"typ": C}, {"crit": [C], C: 1}, {"b64": False, "crit": ["b64"]}):
        yield jwt.encode(GOOD, key, headers=more)
    head, body, signature = jwt.encode(GOOD, key).split(".")
    for header in ({"alg": C}, {"alg": [C]}, {"alg": "none"}, {"alg": "HS256", "kid": [C]}, C):
        text = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
        yield f"{text}.{body}.{signature}"
    yield f"{head}.{base64.urlsafe_b64encode(C.encode()).decode()}.{signature}"


BODIES = (
    C, f'{{"a": "{C}', f'{{"{C}": 1, "{C}": 2}}', f'["{C}", {{]', f'"{C}\udcff"', f'{{"a": {"9" * 400}, "b": "{C}"}}',
    f'{{"records": "{C}"}}', f'{{"records": [{{"value": "{C}", "partition": "{C}"}}]}}', f'{{"type": "{C}\\n", "payload": 1}}',
    f'{{"type": "{C}", "payload": 1, "timestamp": "{C}"}}', f'{{"type": ["{C}"], "payload": 1}}', f'{{"{C}": "{C}"}}',
    f'{{"specversion": "{C}", "id": "{C}", "source": "", "type": "{C}"}}', f'{{"value": {{"type": "{C}", "data": "{C}"}}}}',
)  # fmt: skip
TYPES = (
    "application/json", f"application/{C}", C, "application/x-ndjson", "application/cloudevents+json", "text/plain",
    "application/cloudevents-batch+json", "application/vnd.kafka.json.v2+json", "application/vnd.kafka.binary.v2+json",
    f"application/json; charset={C}", f"application/vnd.kafka.{C}+json", "application/vnd.microsoft.servicebus.json",
)  # fmt: skip
QUERIES = (
    "access_token", "token", "ticket", "jwt", "lastEventId", "last", "since", "types", "format", "heartbeat", "channel", C,
)  # fmt: skip
HEADERS = (
    "Cookie", "Authorization", "Proxy_Authorization", "Last_Event_ID", "Idempotency_Key", "User_Agent", "Referer",
    "X_Forwarded_For", "Forwarded", "Content_Encoding", "Content_Type", "Accept", "Expect", "X_Hub_Signature_256",
    "Stripe_Signature", "X_Signature", "webhook_id", "webhook_timestamp", "webhook_signature", "svix_id", "ce_id", "ce_specversion",
    "ce_type", "ce_time", "ce_source", "Upgrade", "Sec_WebSocket_Key", "Sec_Fetch_Site", "Range", "If_None_Match", C,
)  # fmt: skip


async def subscribe(seen: Seen) -> None:
    for token in tokens():
        for target in ("/events/private", f"/events/private?access_token={token}"):
            assert await seen.ask(target, Authorization=f"Bearer {token}") in (200, 401, 403, 431)
    for scheme in (f"Basic {BASIC}", f"Digest {C}", C, f"Bearer\t{C}", f"Bearer {C} {C}"):
        await seen.ask("/events/private", Authorization=scheme)
    for name in QUERIES:
        for channel in ("orders", "private", C):
            await seen.ask(f"/events/{channel}?{name}={C}")
    for header in HEADERS:
        for target in ("/events/orders", "/events/private", f"/{C}"):
            await seen.ask(target, **{header: C})
    asked = {"Origin": "https://app.example.com", "Access_Control_Request_Method": "GET"}
    for name in ("Access_Control_Request_Headers", "Access_Control_Request_Method"):
        await seen.ask("/events/private", "OPTIONS", **{**asked, name: C})


async def sign_in(seen: Seen) -> None:
    good = jwt.encode({**GOOD, "exp": int(time.time()) + 600}, canary("jwt"))
    for token in (good, *tokens()):
        status = 200 if token is good else 401
        assert await seen.ask("/events/private", Cookie=f"a=b; sid={token}") == status
        assert await seen.ask(f"/events/private?jwt={token}") in (status, 400)
        bought = await seen.ask("/tickets?channel=private", "POST", Authorization=f"Bearer {token}")
        assert bought == (201 if token is good else 401)
        for name in ("ticket", "x"):
            await seen.ask(f"/events/room?{name}={token}", Authorization=f"Basic {token}", Cookie=token)
    right = {"Authorization": f"Bearer {canary('admin')}"}
    assert await seen.ask(f"/streams?subject={C}", "DELETE", port="admin", **right) == 202


async def publish(seen: Seen) -> None:
    right = {"Authorization": f"Bearer {canary('bearer')}"}
    for body in BODIES:
        for type in TYPES:
            for topic in ("orders", "enveloped"):
                await seen.ask(f"/hooks/bearer?topic={topic}", "POST", body, Content_Type=type, **right)
    for name in ("standard_webhooks", "github", "stripe", "hmac", "bearer", "basic", "access_token"):
        for header in HEADERS:
            await seen.ask(f"/hooks/{name}?access_token={C}", "POST", f'"{C}"', **{header: C})
        for given in (f"Basic {BASIC}", f"Bearer {C}", f"Basic {C}"):
            await seen.ask(f"/hooks/{name}", "POST", f'"{C}"', Authorization=given)
        await seen.ask(
            f"/hooks/{name}", "POST", "1", Stripe_Signature=f"t=1,v1={C}", X_Hub_Signature_256=f"sha256={C}"
        )
    good = canary("bearer")
    assert await seen.ask("/hooks/bearer", "POST", f'"{C}"', Authorization=f"Bearer {good}") == 200
    # Topics are named on purpose: whoever has lost an event looks for them.
    for target in ("/hooks/bearer?topic=no", "/hooks/bearer/topics/no", "/hooks/bearer/no/messages"):
        await seen.ask(target, "POST", "1", Authorization=f"Bearer {good}")
        await seen.ask(target, "POST", "1", Authorization=f"Bearer {good}", Idempotency_Key=C * 9)


async def strange(seen: Seen, port: str) -> None:
    paths = (
        f"/{C}",
        f"/events/{C}",
        f"/events/a/{C}",
        f"/hooks/{C}",
        f"/events/%ff{C}",
        f"/hooks/{C}/{C}/messages",
    )
    for path in paths:
        for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD"):
            await seen.ask(path, method, port=port)
    for url in (
        f"http://user:{C}@localhost/status",
        f"http://{C}/metrics",
        f"//{C}@x/",
        f"/status?token={C}",
        f"*{C}",
    ):
        await seen.ask(url, port=port)
    for raw in (f"{C}\r\n\r\n", f"GET /{C} HTTP/9\r\n\r\n", f"GET /\0{C} HTTP/1.1\r\n\r\n", f"{C} / HTTP/1.1\r\n\r\n",
                f"GET / HTTP/1.1\r\n{C}\r\n\r\n", f"GET / HTTP/1.1\r\nX: {C * 200}\r\n\r\n", f"GET /{C * 200} HTTP/1.1\r\n\r\n",
                f"POST /hooks/bearer HTTP/1.1\r\nContent-Length: {C}\r\n\r\n"):  # fmt: skip
        await seen.send(port, raw)


async def admin(seen: Seen) -> None:
    right = {"Authorization": f"Bearer {canary('admin')}"}
    for path in ("/metrics", "/status", "/readyz", "/healthz", f"/{C}", f"/status?token={C}"):
        status = await seen.ask(path, port="admin", **right)
        assert status in ((404,) if path == f"/{C}" else (200, 503))
        for given in (f"Bearer {C}", f"Basic {BASIC}", C):
            await seen.ask(path, port="admin", Authorization=given)
        for header in ("Cookie", "Host", "Origin", "Referer", "Expect"):
            await seen.ask(path, port="admin", **{**right, header: C})


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.extended)])
async def test_no_canary_is_ever_seen(tmp_path: Path, workers: int, format: str) -> None:
    """A secret would show in the debug log, an answer, the metrics, the status or a command line."""
    parts = {part for token in tokens() for part in token.split(".")[1:] if part}
    needles = re.compile("|".join(map(re.escape, {MARK, BASIC, *parts})), re.IGNORECASE)
    async with running(tmp_path, workers, format) as seen:
        await asyncio.gather(subscribe(seen), strange(seen, "public"), strange(seen, "admin"))
        await sign_in(seen)
        await publish(seen)  # only now: a stream may well show what was published
        await admin(seen)
        for line in seen.command_lines():
            assert MARK not in line
        seen.process.terminate()
        assert await seen.process.wait() == 0
        files = list(seen.files())
    log = dict(files)["stderr"]
    for event in ("source_down", "stream_refused", "rejected", "admin_refused", "stream_opened",
                  "forward_auth_down", "streams_revoked"):  # fmt: skip
        assert event in log, "nothing was looked at"
    found = {
        f"{where}\n=> {text[max(0, match.start() - 200) : match.end() + 40]}"
        for where, text in files
        for match in needles.finditer(text)
    }
    assert not found, "\n\n".join(sorted(found)[:20])
