"""Real senders, unchanged but for their URL: what they post is read back from a stream."""

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from cloudevents.core.bindings import http as cloudevents
from cloudevents.core.v1.event import CloudEvent
from kafka_bridge_client import KafkaBridgeProducer, Message
from kafka_bridge_client.exceptions import KafkaBridgeTopicNotFoundError
from standardwebhooks import Webhook

from bench.process import free_port
from tests.support.deadline import SAFETY_SECONDS, safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import Gateway, gateway_running
from tests.support.kafka import KafkaServer, kafka_server
from tests.support.needs import need, need_npm
from tests.support.redis import RedisServer

pytestmark = pytest.mark.extended

SENDERS = Path(__file__).parents[1] / "senders"
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


async def run(*command: str | Path) -> str:
    """Run a sender to its end and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with safety_net():
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def node(script: str, *arguments: str) -> str:
    await asyncio.to_thread(need_npm, SENDERS)
    return await run(need("node", "nodejs"), SENDERS / script, *arguments)


async def payloads(stream: Stream, count: int) -> list[Any]:
    return [(await stream.next()).json["payload"] for _ in range(count)]


CE = {
    "sources": {
        "hooks": {
            "topic": "orders",
            "event": {"type": "{ce.type}"},
        }
    },
    "channels": {"subject.{id}": {"from": [{"source": "hooks", "topic": "orders", "fields": {"id": "{ce.partitionkey}"}}],
                                  "access": "public"}},
}  # fmt: skip


async def test_cloudevents_from_python() -> None:
    """Binary and structured, JSON, bytes and text; the same event twice is one."""
    attributes = {
        "id": "1", "type": "com.example.order", "source": "/shop/42", "subject": 'zä %"q', "partitionkey": "k1",
        "time": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC), "datacontenttype": "application/json",
    }  # fmt: skip
    async with gateway_running(CE) as gateway:
        stream = await gateway.subscribe("/events/subject.k1")

        async def send(make: Any, id: str, data: Any, kind: str = "application/json") -> None:
            message = make(
                CloudEvent(attributes={**attributes, "id": id, "datacontenttype": kind}, data=data)
            )
            answer = await asyncio.to_thread(
                requests.post,
                f"{gateway.url}/hooks/hooks",
                data=message.body,
                headers=message.headers,
                timeout=SAFETY_SECONDS,
            )
            assert (answer.status_code, answer.content) == (204, b"")

        for _ in range(2):
            await send(cloudevents.to_binary_event, "1", {"a": 1, "ü": "é"})
            await send(cloudevents.to_structured_event, "2", {"a": 2})
            await send(cloudevents.to_structured_event, "3", b'{"a": 3}', "application/octet-stream")
            await send(cloudevents.to_binary_event, "4", '"text"', "text/plain")
        events = [await stream.next() for _ in range(4)]
        assert [event.json["payload"] for event in events] == [{"a": 1, "ü": "é"}, {"a": 2}, {"a": 3}, "text"]
        assert {event.type for event in events} == {"com.example.order"}
        assert {event.json["timestamp"] for event in events} == {1767323045678}


async def test_cloudevents_from_node() -> None:
    """By the library's own transport: chunked, with a charset, with Latin-1 in a header; and a batch."""
    async with gateway_running(CE) as gateway:
        stream = await gateway.subscribe("/events/subject.k1")
        await node("cloudevents.cjs", f"{gateway.url}/hooks/hooks")
        found = await payloads(stream, 5)
        assert [each["id"] for each in found] == ["binary", "structured", "latin", "batch-1", "batch-2"]
        assert found[0]["ü"] == "é"


async def test_standard_webhooks_from_python_and_node() -> None:
    """Signed by the libraries; a message that was altered on the way is refused."""
    over = {
        "sources": {"hooks": {"verify": {"none": None, "standard_webhooks": [SECRET]}, "topic": "orders"}}
    }
    async with gateway_running(over) as gateway:
        stream = await gateway.subscribe("/events/orders")
        url = f"{gateway.url}/hooks/hooks"
        await node("standardwebhooks.cjs", url, SECRET)
        now = datetime.now(UTC)
        headers = {"webhook-id": "msg_python", "webhook-timestamp": str(int(now.timestamp())),
                   "webhook-signature": Webhook(SECRET).sign("msg_python", now, '{"b":2}')}  # fmt: skip
        for body, status in (('{"b":3}', 401), ('{"b":2}', 200)):
            answer = await asyncio.to_thread(
                requests.post, url, data=body, headers=headers, timeout=SAFETY_SECONDS
            )
            assert answer.status_code == status
        assert await payloads(stream, 2) == [{"a": 1, "ü": "é"}, {"b": 2}]


async def test_mq_bridge_carries_kafka_records_over_http() -> None:
    """Real Kafka records, their headers and tombstones."""
    over = {"sources": {"hooks": {"event": {"type": "{headers.kind}"}}}}
    async with kafka_server() as kafka, gateway_running(over) as gateway:
        await kafka.create({"source": 1})
        await kafka.send("source", '{"n": 1}', headers=[("Kind", b"created")])
        await kafka.send("source", None, 3)
        stream = await gateway.subscribe("/events/orders")
        await bridge(kafka, gateway)
        events = [await stream.next() for _ in range(3)]
        assert [event.json["payload"] for event in events] == [{"n": 1}, None, 3]
        assert [event.type for event in events] == ["created", "message", "message"]


async def test_mq_bridge_waits_while_the_log_is_away(redis: RedisServer) -> None:
    """A 503 is tried again; any 4xx would have dropped the records."""
    async with kafka_server() as kafka, gateway_running({"broker": {"url": redis.url}}) as gateway:
        await kafka.create({"source": 1})
        await kafka.send("source", 1, 2, 3)
        stream = await gateway.subscribe("/events/orders")
        redis.freeze()
        carrying = asyncio.create_task(bridge(kafka, gateway))
        url = f"{gateway.url}/hooks/hooks?topic=orders"
        async with safety_net(), gateway.session.post(url, data=b"0") as answer:
            assert (answer.status, "Retry-After" in answer.headers) == (503, True)
        redis.thaw()
        await carrying
        found = {0}
        while found != {0, 1, 2, 3}:
            message = await stream.next()
            if message.type == "message":
                found.add(message.json["payload"])


async def bridge(kafka: KafkaServer, gateway: Gateway) -> None:
    url = f"{gateway.url}/hooks/hooks?topic=orders"
    await run(sys.executable, SENDERS / "mq_bridge_run.py", kafka.brokers, "source", url)


async def test_kafka_bridge_client_posts_to_topics(gateway: Gateway) -> None:
    """JSON and base64, headers and partitions; an unknown topic is the client's own exception."""
    stream = await gateway.subscribe("/events/orders")
    producer = KafkaBridgeProducer(f"{gateway.url}/hooks/hooks", timeout=SAFETY_SECONDS)

    def send() -> None:
        producer.sends("orders", [Message(key="k1", value="välue"), {"key": None, "value": {"a": 1}},
                                  {"key": "p", "value": 2, "partition": 0, "headers": [{"key": "h", "value": "djE="}]}])  # fmt: skip
        producer.sends("orders", [Message(key="k1", value=b"[3]")], binary=True)
        with pytest.raises(KafkaBridgeTopicNotFoundError):
            producer.send("nowhere", Message(key="1", value="v"))

    await asyncio.to_thread(send)
    assert await payloads(stream, 4) == ["välue", {"a": 1}, 2, [3]]


async def test_kafka_rest_of_npm(gateway: Gateway) -> None:
    """REST Proxy v1: base64 without a word, chunked; the offsets reach its callback."""
    stream = await gateway.subscribe("/events/orders")
    out = [
        json.loads(line) for line in (await node("kafka-rest.cjs", f"{gateway.url}/hooks/hooks")).splitlines()
    ]
    assert await payloads(stream, 5) == [{"n": 1}, {"n": 2}, 3, None, "last"]
    offsets = [each["offset"] for each in out[0]["answer"]["offsets"]]
    assert offsets == sorted(offsets)
    assert out[1]["answer"]["offsets"][0]["partition"] == 7
    assert out[2]["error"]["error_code"] == 40401


SYSLOG = """@version: 3.38
options {{ stats-freq(0); time-reopen(1); }};
source s {{ network(ip("127.0.0.1") port({port}) transport("tcp") flags(no-parse)); }};
destination batches {{ http(url("{url}?topic=orders") method("POST") headers("Content-Type: application/json")
  body-prefix("[") delimiter(",") body-suffix("]") body('$(format-json msg=$MSG)')
  batch-lines(3) batch-timeout(200) workers(1)); }};
destination lines {{ http(url("{url}?topic=stock") body("$MSG") workers(1)); }};
log {{ source(s); destination(batches); destination(lines); }};
"""


@contextlib.asynccontextmanager
async def syslog_ng(folder: Path, url: str) -> AsyncIterator[int]:
    """Run syslog-ng in a folder; yields the port that it takes lines on."""
    port = free_port()
    (folder / "syslog.conf").write_text(SYSLOG.format(port=port, url=url))
    options: list[str | Path] = ["-F", "-e", "--no-caps", "-f", folder / "syslog.conf", "-p", folder / "pid", "-c", folder / "ctl",
               "-R", folder / "persist"]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        need("syslog-ng", "syslog-ng-core"), *options, stderr=asyncio.subprocess.DEVNULL, env={**os.environ}
    )
    try:
        yield port
    finally:
        process.kill()
        await process.wait()


async def test_syslog_ng_posts_batches_and_lines(tmp_path: Path) -> None:
    """Arrays of three, and raw text with curl's form content type; while the log is away it tries again."""
    over = {"channels": {"stock": {"payload": "text"}}}
    async with gateway_running(over) as gateway, syslog_ng(tmp_path, f"{gateway.url}/hooks/hooks") as port:
        orders, stock = [await gateway.subscribe(f"/events/{name}") for name in ("orders", "stock")]
        async with safety_net():
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                await asyncio.sleep(0.05)
        lines = ["one", 'two "quoted" é', "a=b&c=d", "four"]
        writer.write("".join(f"{line}\n" for line in lines).encode())
        assert await payloads(orders, 4) == [{"msg": line} for line in lines]
        assert await payloads(stock, 4) == lines
        writer.close()
