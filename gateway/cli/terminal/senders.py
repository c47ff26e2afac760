"""Sending a parcel the way that real records take: a post, PUBLISH, XADD, or a Kafka producer."""

import asyncio
import base64
import json
import ssl
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

from gateway import __version__
from gateway.cli.doctor.network import describe_network_error
from gateway.cli.terminal.endpoint import Endpoint
from gateway.cli.terminal.follower import parse_error
from gateway.cli.terminal.signing import signature_headers, verification_method
from gateway.cli.terminal.test_record import TestRecord
from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.sources import KafkaConfig, RedisPubSubConfig, RedisStreamConfig, WebhookConfig
from gateway.core.sanitize import escape_unprintable
from gateway.net.redis_locator import RedisLocator
from gateway.net.tls_errors import humanize_tls_error
from gateway.sources.kafka import connection_options

EXCHANGE_TIMEOUT_SECONDS = 10.0
"""How long one exchange may take."""

MAX_RESPONSE_BYTES = 1024 * 1024
"""Bytes of an answer that are read."""

_HOOKS_PATH = "/hooks/"

_STATUS_FIXES = {
    401: "are the secrets of this configuration the running gateway's?",
    404: "does the running gateway have this configuration, and is --url right?",
    429: "over the source's rate: wait, or say a longer --interval",
    503: "the log is away, or the gateway drains: try again",
}


class SendError(Exception):
    """Nothing is known to have arrived; ``mend`` says what to do."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


@dataclass(frozen=True, slots=True)
class SendResult:
    """What became of a parcel: the ids of its events, where the way tells them, and how it went."""

    summary: str
    event_ids: Sequence[str] = ()


async def send_record(record: TestRecord, endpoint: Callable[[], Endpoint]) -> SendResult:
    """Send. ``door`` is asked for where a post goes. Raises NotSent. Cancelling is safe."""
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
        raise SendError(f"the upstream of {record.source} gave no answer in time") from None
    except (RedisError, KafkaError, OSError) as error:
        raise SendError(
            f"the upstream of {record.source}: {escape_unprintable(humanize_tls_error(str(error))) or type(error).__name__}",
            "is it reachable from here? The configuration names it as the gateway sees it",
        ) from None


async def _post(record: TestRecord, config: WebhookConfig, endpoint: Endpoint) -> SendResult:
    path, media, body, more = _encode_post(record, config)
    url = f"{endpoint.url}{path}"
    signed = dict(signature_headers(config.verify, body, time.time(), record.type, record.key))
    own: dict[str, str] = {hdrs.USER_AGENT: f"sse-gateway-publish/{__version__}", hdrs.CONTENT_TYPE: media}
    if record.key is not None:
        own["Idempotency-Key"] = record.key
    tls: ssl.SSLContext | bool = True if endpoint.tls_context is None else endpoint.tls_context
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls),
                timeout=aiohttp.ClientTimeout(total=EXCHANGE_TIMEOUT_SECONDS),
            ) as session,
            session.post(
                url, data=body, headers={**own, **record.headers, **more, **signed}, allow_redirects=False
            ) as answer,
        ):
            told = await answer.content.read(MAX_RESPONSE_BYTES)
            status = answer.status
    except ValueError as error:  # a secret with a line end, say: its words must not be shown
        if isinstance(error, aiohttp.ClientError):
            raise SendError(f"{endpoint.url} cannot be asked") from None
        raise SendError("a header cannot be sent: does a secret or --key hold a line end?") from None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        why = escape_unprintable(
            humanize_tls_error(describe_network_error(getattr(error, "os_error", error)))
        )
        raise SendError(
            f"{endpoint.url} does not answer: {why}", "does the gateway run? --url says where"
        ) from None
    how = f"POST {url} ({verification_method(config.verify)}): {status}"
    if 200 <= status < 300:
        return SendResult(how, _parse_event_ids(told))
    code, message = parse_error(told)
    raise SendError(f"{how} {code}: {message}" if code else how, _STATUS_FIXES.get(status, ""))


def _encode_post(record: TestRecord, config: WebhookConfig) -> tuple[str, str, bytes, dict[str, str]]:
    """Return path, content type, body and headers of a post that is one record, in the source's format."""
    base = _HOOKS_PATH + quote(record.source, safe="")
    topic = quote(record.topic, safe="")
    plain = f"{base}?topic={topic}"
    payload, kind = record.payload, "application/json"
    is_typed = record.type is not None and not config.verify.github
    if config.format == "cloudevents" or is_typed:
        attributes = {
            "specversion": "1.0",
            "id": record.key or str(uuid4()),
            "source": "/sse-gateway/publish",
        }
        attributes["type"] = record.type or "test"
        return (
            plain,
            kind,
            payload,
            {f"ce-{name}": quote(text, safe=" /:.~") for name, text in attributes.items()},
        )
    if config.format == "rest-proxy":
        value = base64.b64encode(payload).decode()
        body = json.dumps({"records": [{"value": value}]}).encode()
        path = f"{base}/topics/{topic}"
        return path, "application/vnd.kafka.binary.v2+json", body, {}
    # What looks like a list of records is one record here.
    if config.format == "array" or (config.format == "auto" and payload.lstrip()[:1] == b"["):
        payload = b"[%b]" % payload
    if config.format == "lines":
        payload = payload.replace(b"\r", b" ").replace(b"\n", b" ")
    return plain, kind, payload, {}


def _parse_event_ids(answer: bytes) -> Sequence[str]:
    try:
        told: Any = json.loads(answer)
    except ValueError:
        return ()
    ids = told.get("ids") if isinstance(told, dict) else None
    return [escape_unprintable(str(id)) for id in ids] if isinstance(ids, list) else ()


async def _redis_client(url: str, key: str) -> Redis:
    options = await RedisLocator(RedisUrl.parse(url)).locate(key, EXCHANGE_TIMEOUT_SECONDS)
    limits = {"socket_timeout": EXCHANGE_TIMEOUT_SECONDS, "socket_connect_timeout": EXCHANGE_TIMEOUT_SECONDS}
    return Redis(connection_pool=ConnectionPool(**{**options, **limits}))


async def _publish(record: TestRecord, config: RedisPubSubConfig) -> SendResult:
    client = await _redis_client(config.url.get_secret_value(), record.topic)
    try:
        heard = int(await client.publish(record.topic, record.payload))
    finally:
        await client.aclose()
    if not heard:
        raise SendError(
            f"PUBLISH {record.topic}: nobody is subscribed at that Redis",
            f"does the gateway run, and is the source {record.source} up (/status)?",
        )
    return SendResult(f"PUBLISH {record.topic}: {heard} subscribed")


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
        raise SendError("Kafka needs the extra", "pip install 'sse-gateway[kafka]'")
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
