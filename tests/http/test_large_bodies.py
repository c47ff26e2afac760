"""Large bodies that come together: their checks take turns, so that eight take hardly more memory than one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.gateway import BASE
from tests.support.node import Node

SIZE = 15_700 * 1024
TOGETHER = 8

MOST = 250 << 20
"""Bytes by which the process may grow: the bodies, one more while it is copied, and the check of one."""

V2 = "application/vnd.kafka.json.v2+json"
AWS = b'"eventSource":"aws:kafka"'
RECORD = b'{"topic":"orders","partition":0,"offset":1,"eventSource":"aws:kafka"}'


def many(item: bytes, head: bytes, tail: bytes) -> bytes:
    """Return a body of about `SIZE` bytes that holds as many items as fit."""
    count = (SIZE - len(head) - len(tail)) // (len(item) + 1)
    return head + b",".join([item] * count) + tail


KINDS = {
    "v2": ("", many(b'{"value":1}', b'{"records":[', b"]}"), V2),
    "v2, lists": ("", many(b"[[]]", b'{"records":[', b"]}"), V2),
    "v2, numbers": ("", many(b"1", b'{"records":[', b"]}"), V2),
    "v2, beside": ("", many(b"[[],[]]", b'{"records":[{"value":1}],"more":[', b"]}"), V2),
    "v2, members": (
        "",
        b'{"records":[{"value":1}],' + b",".join(b'"%x":1' % number for number in range(1_200_000)) + b"}",
        V2,
    ),
    "v3 batch": (
        "/v3/clusters/c/topics/orders/records:batch",
        many(b'{"id":"1"}', b'{"entries":[', b"]}"),
        "application/json",
    ),
    "array": ("", many(b"[]", b" [", b"]"), "application/json"),
    "CloudEvents": ("", many(b"{}", b"[", b"]"), "application/cloudevents-batch+json"),
    "Pipes": ("", many(RECORD, b"[", b"]"), "application/json"),
    "MSK": (
        "",
        many(b'"orders-1":[%b,%b]' % (RECORD, RECORD), b'{%b,"records":{' % AWS, b"}}"),
        "application/json",
    ),
    "Event Hubs": ("", many(b'{"Body":1}', b"[", b"]"), "application/vnd.microsoft.servicebus.json"),
}


BROKEN = {
    "v2, broken": ("", many(b'{"value":1}', b'{"records":[', b"]"), V2),
    "v3 batch, broken": (
        "/v3/clusters/c/topics/orders/records:batch",
        many(b'["some text"]', b'{"entries":[', b"}"),
        "",
    ),
    "CloudEvents, broken": ("", many(b'{"a":"some text"}', b"[", b""), "application/cloudevents-batch+json"),
}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """Run a gateway as a process of its own."""
    node = Node(tmp_path, {**BASE, "limits": {"event_bytes": "16MiB"}})
    await node.start()
    yield node
    await node.stop()


def memory(node: Node, what: str) -> int:
    """Return a figure of a process's memory in bytes."""
    for line in Path(f"/proc/{node.pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(what)


@pytest.mark.parametrize("kind", KINDS | BROKEN)
async def test_eight_large_bodies_at_once(node: Node, kind: str) -> None:
    """Senders with large batches must not take the memory of all streams."""
    path, body, media = (KINDS | BROKEN)[kind]
    url = f"http://127.0.0.1:{node.port}/hooks/hooks"
    async with aiohttp.ClientSession() as session:

        async def post(path: str, body: Any, media: str) -> int:
            headers = {"Content-Type": media}
            async with session.post(url + path, data=body, headers=headers) as answer:
                await answer.read()
                return answer.status

        assert await post("?topic=orders", b"1", "application/json") == 200
        before = memory(node, "VmRSS")
        large = asyncio.gather(*(post(path or "?topic=orders", body, media) for _ in range(TOGETHER)))
        small = 0
        while not large.done() or not small:
            assert await post("?topic=orders", b"1", "application/json") == 200
            small += 1
        assert await large == [422 if kind in BROKEN else 413] * TOGETHER
    grown = memory(node, "VmHWM") - before
    assert grown <= MOST, f"{kind}: {grown / 2**20:.0f} MiB"
