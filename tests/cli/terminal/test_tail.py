"""`sse-gateway tail` as a process: what it prints, how it comes back, how it exits."""

import asyncio
import json
import os
import pty
import signal
import sys
from pathlib import Path

import jwt
import pytest
from aiohttp import web

from bench.process import free_port
from tests.cli.terminal.command import CLEAN, ROOT, called, started
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, eventually, gateway_running, merged
from tests.support.issuer import serving

HOSTILE = '{"title":"\\u001b]0;owned\\u0007","raw":"\x7f\u202eevil\u2028"}'


async def test_events_as_json_with_what_happened(gateway: Gateway) -> None:
    """Scripts read one object a line: first that it is open, then each event with its envelope."""
    async with started("tail", "orders", "news", "--json", "--count", "2", "--url", gateway.url) as tail:
        opened = await tail.told()
        assert (opened["kind"], opened["channels"], opened["resume"]) == ("open", ["orders", "news"], "none")
        (first,) = await gateway.post("orders", '{\n"a": 1.00\n}')
        (second,) = await gateway.post("news", "2")
        line = await tail.line()
        assert '"payload":{ "a": 1.00 }' in line
        assert json.loads(line) | {"timestamp": 0} == {
            "kind": "event", "channel": "orders", "id": first, "type": None, "timestamp": 0, "payload": {"a": 1.0}
        }  # fmt: skip
        assert (await tail.told())["id"] == second
        assert (await tail.end())[:2] == (0, "")


async def test_history_types_and_payloads_alone(gateway: Gateway) -> None:
    """--last, --types and --format reach the gateway; a payload is a line that jq reads."""
    for number in range(3):
        ce = {"ce-specversion": "1.0", "ce-id": str(number), "ce-source": "/", "ce-type": f"t{number}"}
        async with gateway.session.post(
            f"{gateway.url}/hooks/hooks?topic=orders", data=str(number), headers=ce
        ) as answer:
            assert answer.status == 204
    options = ("--last", "3", "--types", "t1,t2", "--format", "data", "--count", "2", "--url", gateway.url)
    assert (await called("tail", *options, "orders"))[:2] == (0, "1\n2\n")


async def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    """Events of a restart arrive after it, once and in order, and the interruption is reported."""
    port = free_port()
    common = {"broker": {"url": f"sqlite:///{tmp_path}/g.db"}, "timeouts": {"retry": "50ms"}}
    restarted = merged(common, {"server": {"listen": f"127.0.0.1:{port}"}})
    ids: list[str] = []
    seen: list[str] = []
    async with (
        gateway_running(common) as other,
        started("tail", "orders", "--json", "--url", f"http://127.0.0.1:{port}") as tail,
    ):
        for turn in range(3):
            async with gateway_running(restarted):
                while turn == 0 and (await tail.told())["kind"] != "open":
                    pass
                ids += await other.post("orders", f'"up {turn}"')
                while len(seen) < len(ids):
                    seen.append((await tail.event())["id"])
            ids += await other.post("orders", f'"away {turn}"')
        async with gateway_running(restarted):
            while len(seen) < len(ids):
                seen.append((await tail.event())["id"])
        assert seen == ids
        await tail.said("again in")
        await tail.said("reconnected, no event missed")


async def test_heartbeats_that_ask_are_answered() -> None:
    """Whoever debugs a channel for an hour is no dead client; and the questions are none of the reader's business."""
    config = {"ack": {"interval": "1s", "timeout": "10m", "retry_limit": 1}}
    async with gateway_running(config) as gateway:
        async with started("tail", "orders", "--json", "--url", gateway.url) as tail:
            assert (await tail.told())["kind"] == "open"

            async def answered() -> bool:
                return await gateway.metric('acks_total{result="local"}') >= 2

            await eventually(answered)
            await gateway.post("orders", "1")
            assert (await tail.told())["kind"] == "event"
        assert await gateway.metric("connections_total") == 1


async def test_a_gap_is_told_loudly() -> None:
    """Whoever looks must know that something is missing."""
    short = {"channels": {"orders": {"history": {"events": 1}}}}
    async with gateway_running(short) as gateway:
        (first,) = await gateway.post("orders", "1")
        for number in range(5):
            await gateway.post("orders", str(number))
        options = ("--since", first, "--json", "--count", "1", "--url", gateway.url)
        status, out, err = await called("tail", "orders", *options)
        opened, gap, event = [json.loads(line) for line in out.splitlines()]
        assert (status, opened["kind"], event["kind"]) == (0, "open", "event")
        assert (gap["kind"], gap["channel"], gap["reason"]) == ("gap", "orders", "expired")
        assert "GAP on orders: events after" in err


async def test_refusals_end_it_with_the_mend() -> None:
    """A script must not hang on what can never work, and a person reads what to do."""
    private = {"from": [{"source": "hooks", "topic": "p"}], "access": "token"}
    auth = {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}}
    async with gateway_running({"auth": auth, "channels": {"private": private}}) as gateway:
        status, out, err = await called("tail", "private", "--url", gateway.url)
        assert (status, out) == (1, "")
        assert "401 missing_token" in err
        assert "SSE_GATEWAY_TOKEN" in err
        status, _, err = await called("tail", "nope", "--url", gateway.url)
        assert (status, "404 unknown_channel" in err) == (1, True)
        status, _, err = await called(
            "tail", "private", "--url", gateway.url, SSE_GATEWAY_TOKEN="canary-token"
        )
        assert (status, "401 invalid_token" in err, "canary" in err) == (1, True, False)
        status, _, err = await called("tail", "orders", "--since", "x", "--url", gateway.url)
        assert (status, "400 bad_query" in err) == (1, True)
        token = jwt.encode({"exp": 4102444800, "channels": ["private"]}, "s" * 32)
        status, _, err = await called(
            "tail", "private", "--timeout", "3m", "--url", gateway.url, SSE_GATEWAY_TOKEN=token
        )
        assert (status, "max_lifetime" in err) == (1, True)


async def test_what_is_no_gateway(gateway: Gateway) -> None:
    """A wrong URL is reported, whatever server responds."""
    answers = {
        "/page/events": web.Response(text="<html>", content_type="text/html"),
        "/stop/events": web.Response(status=204),
        "/moved/events": web.Response(status=302, headers={"Location": "https://else.example/"}),
        "/odd/events": web.Response(status=403, text="\x1b[31mno"),
    }

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return answers[request.path]

    async with serving(handle) as url:
        for path, status, words in (
            ("page", 1, "is not an event stream"), ("stop", 0, ""), ("moved", 1, "the server redirects"), ("odd", 1, "403"),
        ):  # fmt: skip
            code, out, err = await called("tail", "orders", "--url", f"{url}/{path}")
            assert (code, out, words in err, "\x1b" in err) == (status, "", True, False), path
    code, _, err = await called("tail", "orders", "--url", gateway.url.replace("http:", "https:"))
    assert (code, "speaks no TLS" in err) == (1, True)


async def test_timeouts_and_ctrl_c(gateway: Gateway) -> None:
    """Scripts tell apart no event, an event and an interruption by the exit status."""
    common = ("tail", "orders", "--url", gateway.url)
    assert (await called(*common, "--timeout", "200ms"))[0] == 0
    assert (await called(*common, "--timeout", "200ms", "--count", "1"))[0] == 3
    async with started(*common) as tail:
        await tail.said("open")
        tail.child.send_signal(signal.SIGINT)
        assert await tail.end() == (130, "", "")


async def test_it_ends_when_the_reader_goes(gateway: Gateway) -> None:
    """`| head` must not leave a tail behind until the next event, nor a traceback."""
    reader, writer = os.pipe()  # as a shell makes one; asyncio's would be a socket
    try:
        async with started("tail", "orders", "--url", gateway.url, stdout=writer) as tail:
            os.close(writer)
            await tail.said("open")
            os.close(reader)
            reader = -1
            assert (await tail.end())[::2] == (141, "")
    finally:
        if reader >= 0:
            os.close(reader)


async def test_a_silent_stream_is_opened_anew() -> None:
    """A connection that a firewall forgot gives no error: only silence tells."""
    quiet = {"timeouts": {"heartbeat": "1h", "retry": "50ms"}}
    async with (
        gateway_running(quiet) as gateway,
        started("tail", "orders", "--idle", "300ms", "--url", gateway.url) as tail,
    ):
        await tail.said("no byte for 0.3 s; again in")
        await tail.said("reconnected, no event missed")


async def test_an_id_that_no_header_may_hold_ends_in_one_line() -> None:
    """Another server's ids: the reconnect ended in a traceback."""

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        text = 'retry: 1\nid: 1\x01\nevent: stream.open\ndata: {"resume":"none"}\n\n'
        return web.Response(text=text, content_type="text/event-stream")

    async with serving(serve) as url:
        status, _, err = await called("tail", "orders", "--url", url)
    assert status == 1
    assert "the last id holds control characters" in err
    assert "Traceback" not in err


async def test_hostile_payloads_on_a_terminal(gateway: Gateway) -> None:
    """Colours are ours, and no byte of a payload is obeyed, in any form of output."""
    await gateway.post("orders", HOSTILE)
    common = ("tail", "orders", "--last", "1", "--count", "1", "--url", gateway.url)
    main, side = pty.openpty()
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *common),
            stdin=side, stdout=side, stderr=asyncio.subprocess.DEVNULL, cwd=ROOT, env={**CLEAN, "TERM": "xterm"},
        )  # fmt: skip
        async with safety_net():
            assert await child.wait() == 0
        on_terminal = os.read(main, 65536).decode()
    finally:
        os.close(main)
        os.close(side)
    assert "\x1b[36morders\x1b[0m" in on_terminal
    shown = [on_terminal]
    for shape in (("--format", "data"), ("--json",)):
        status, out, _ = await called(*common, *shape, "--color", "always")
        assert (status, "\x1b[36m" in out) == (0, False)
        shown.append(out)
    for text in shown:
        for own in ("\x1b[0m", "\x1b[2m", "\x1b[36m", "\r\n", "\n"):
            text = text.replace(own, "")
        assert text.isprintable()
        for escaped in ("\\u001b]0;owned\\u0007", "\\u007f\\u202eevil\\u2028"):
            assert escaped in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "CHANNEL"),
        (("https://h/events/orders",), "--url"),
        (("orders", "--url", "h"), "https://"),
        (("orders", "--url", "https://user:canary@h"), "without user"),
        (("orders", "--url", "https://h/events"), "/events and /hooks are appended"),
        (("orders", "--count", "0"), "from 1 to"),
        (("orders", "--timeout", "5"), "not a duration"),
        (("orders", "--last", "1", "--since", "1m"), "not allowed with"),
        (("orders", "--json", "--format", "data"), "not allowed with"),
        (("orders", "--ca", "README.md"), "--ca"),
    ],
)
async def test_wrong_usage_exits_2(arguments: tuple[str, ...], word: str) -> None:
    """Scripts tell it from a refusal; secrets are not repeated."""
    status, out, err = await called("tail", *arguments)
    assert (status, out, "canary" in err) == (2, "", False)
    assert word in err.splitlines()[-1]
