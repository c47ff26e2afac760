"""Sends a test record as real senders do: by a post, PUBLISH, XADD, or a Kafka producer."""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import aiohttp
from aiohttp import hdrs
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError

try:
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import KafkaError
except ImportError:  # the extra is not installed
    AIOKafkaProducer = None
    KafkaError = OSError

from gateway.cli.http_client import (
    CONNECTION_ERRORS,
    RequestFailed,
    client_session,
    describe_request_error,
    parse_error,
)
from gateway.cli.terminal.endpoint import Endpoint
from gateway.cli.terminal.signing import signature_headers, verification_method
from gateway.cli.terminal.test_record import TestRecord
from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.sources import KafkaConfig, RedisPubSubConfig, RedisStreamConfig, WebhookConfig
from gateway.core.sanitize import escape_unprintable
from gateway.net.redis_locator import RedisLocator
from gateway.net.tls_errors import humanize_tls_error
from gateway.sources.kafka import connection_options

EXCHANGE_TIMEOUT_SECONDS = 10.0
"""Seconds for a request and its response."""

MAX_RESPONSE_BYTES = 1024 * 1024
"""Bytes of a response that are read."""

_STATUS_FIXES = {
    401: "check that the running gateway has the secrets of this configuration",
    404: "check --url, and that the running gateway has this configuration",
    429: "the source's rate is exceeded: wait, or use a longer --interval",
    503: "the log is unavailable, or the gateway drains: try again",
}


@dataclass(frozen=True, slots=True)
class SendResult:
    """A summary of the exchange, and the ids of the events if the upstream reports them."""

    summary: str
    event_ids: Sequence[str] = ()


async def send_record(record: TestRecord, endpoint: Callable[[], Endpoint]) -> SendResult:
    """Send a record. ``endpoint`` is called for posts only. Raises RequestFailed. Cancelling is safe."""
    config = record.source_config
    if isinstance(config, WebhookConfig):
        return await _post(record, config, endpoint())
    sending: Awaitable[SendResult]
    if isinstance(config, RedisPubSubConfig):
        sending = _publish(record, config)
    elif isinstance(config, RedisStreamConfig):
        sending = _xadd(record, config)
    else:
        sending = _produce(record, config)
    try:
        async with asyncio.timeout(2 * EXCHANGE_TIMEOUT_SECONDS):
            return await sending
    except TimeoutError:
        raise RequestFailed(f"the upstream of {record.source} did not answer in time") from None
    except (RedisError, KafkaError, OSError) as error:
        reason = escape_unprintable(humanize_tls_error(str(error))) or type(error).__name__
        raise RequestFailed(
            f"the upstream of {record.source}: {reason}",
            "check that it is reachable from here: the configuration has the gateway's view of the network",
        ) from None


async def _post(record: TestRecord, config: WebhookConfig, endpoint: Endpoint) -> SendResult:
    path, content_type, body, format_headers = _encode_post(record, config)
    url = f"{endpoint.url}{path}"
    headers = {hdrs.CONTENT_TYPE: content_type, **record.headers, **format_headers}
    headers |= signature_headers(config.verify, body, time.time(), record.type, record.key)
    if record.key is not None:
        headers.setdefault("Idempotency-Key", record.key)
    timeout = aiohttp.ClientTimeout(total=EXCHANGE_TIMEOUT_SECONDS)
    try:
        async with (
            client_session("publish", endpoint.tls_context, timeout) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            response = await answer.content.read(MAX_RESPONSE_BYTES)
            status = answer.status
    except ValueError as error:  # its text may hold a secret, of which a line end cannot be sent
        if isinstance(error, aiohttp.ClientError):
            raise RequestFailed(f"{endpoint.url} is not a valid URL") from None
        raise RequestFailed("a header cannot be sent: a secret or --key holds a line end") from None
    except CONNECTION_ERRORS as error:
        raise RequestFailed(
            f"{endpoint.url} does not answer: {describe_request_error(error)}",
            "check that the gateway runs, and --url",
        ) from None
    summary = f"POST {url} ({verification_method(config.verify)}): {status}"
    if 200 <= status < 300:
        return SendResult(summary, _parse_event_ids(response))
    code, message = map(escape_unprintable, parse_error(response))
    raise RequestFailed(f"{summary} {code}: {message}" if code else summary, _STATUS_FIXES.get(status, ""))


def _encode_post(record: TestRecord, config: WebhookConfig) -> tuple[str, str, bytes, dict[str, str]]:
    """Return path, content type, body and headers of a post of one record in the source's format."""
    base = "/hooks/" + quote(record.source, safe="")
    topic = quote(record.topic, safe="")
    plain = f"{base}?topic={topic}"
    payload, kind = record.payload, "application/json"
    is_typed = record.type is not None and not config.verify.github
    if config.format == "cloudevents" or is_typed:
        attributes = {
            "specversion": "1.0",
            "id": record.key or str(uuid4()),
            "source": "/sse-gateway/publish",
            "type": record.type or "test",
        }
        headers = {f"ce-{name}": quote(text, safe=" /:.~") for name, text in attributes.items()}
        return plain, kind, payload, headers
    if config.format == "rest-proxy":
        value = base64.b64encode(payload).decode()
        body = json.dumps({"records": [{"value": value}]}).encode()
        path = f"{base}/topics/{topic}"
        return path, "application/vnd.kafka.binary.v2+json", body, {}
    # A payload that is an array is one record here, not a list of records.
    if config.format == "array" or (config.format == "auto" and payload.lstrip()[:1] == b"["):
        payload = b"[%b]" % payload
    if config.format == "lines":
        payload = payload.replace(b"\r", b" ").replace(b"\n", b" ")
    return plain, kind, payload, {}


def _parse_event_ids(answer: bytes) -> Sequence[str]:
    try:
        receipt: Any = json.loads(answer)
    except ValueError:
        return ()
    ids = receipt.get("ids") if isinstance(receipt, dict) else None
    return [escape_unprintable(str(id)) for id in ids] if isinstance(ids, list) else ()


async def _redis_client(url: str, key: str) -> Redis:
    options = await RedisLocator(RedisUrl.parse(url)).locate(key, EXCHANGE_TIMEOUT_SECONDS)
    limits = {"socket_timeout": EXCHANGE_TIMEOUT_SECONDS, "socket_connect_timeout": EXCHANGE_TIMEOUT_SECONDS}
    return Redis(connection_pool=ConnectionPool(**{**options, **limits}))


async def _publish(record: TestRecord, config: RedisPubSubConfig) -> SendResult:
    client = await _redis_client(config.url.get_secret_value(), record.topic)
    try:
        subscribers = int(await client.publish(record.topic, record.payload))
    finally:
        await client.aclose()
    if not subscribers:
        raise RequestFailed(
            f"PUBLISH {record.topic}: no subscriber at that Redis",
            f"check that the gateway runs, and that its source {record.source} is up (/status)",
        )
    return SendResult(f"PUBLISH {record.topic}: {subscribers} subscribed")


async def _xadd(record: TestRecord, config: RedisStreamConfig) -> SendResult:
    entry: dict[Any, Any] = {**record.fields, config.payload or "payload": record.payload}
    if record.type is not None:
        entry["type"] = record.type
    client = await _redis_client(config.url.get_secret_value(), record.topic)
    try:
        id = await client.xadd(record.topic, entry)
    finally:
        await client.aclose()
    return SendResult(f"XADD {record.topic}: the entry {id.decode() if isinstance(id, bytes) else id}")


async def _produce(record: TestRecord, config: KafkaConfig) -> SendResult:
    if AIOKafkaProducer is None:
        raise RequestFailed("Kafka needs the extra kafka", "pip install 'sse-gateway[kafka]'")
    producer = AIOKafkaProducer(**connection_options(record.source, config))
    try:
        await producer.start()
        sent = await producer.send_and_wait(
            record.topic,
            record.payload,
            key=None if record.key is None else record.key.encode(),
            headers=[(name, text.encode()) for name, text in record.headers.items()],
        )
    finally:
        await producer.stop()
    return SendResult(f"Kafka {record.topic}: partition {sent.partition}, offset {sent.offset}")
