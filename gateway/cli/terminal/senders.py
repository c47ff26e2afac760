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
from gateway.cli.doctor.network import reason
from gateway.cli.terminal.endpoint import Door
from gateway.cli.terminal.follower import error_words
from gateway.cli.terminal.signing import headers, method
from gateway.cli.terminal.test_record import Parcel
from gateway.config.model.redis_url import RedisUrl
from gateway.config.model.sources import Kafka, RedisPubSub, RedisStream, Webhook
from gateway.core.text import safe
from gateway.net.redis_target import Target
from gateway.net.tls_errors import in_plain_words
from gateway.sources.kafka import connection_options

SECONDS = 10.0
"""How long one exchange may take."""

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer that are read."""

_HOOKS = "/hooks/"

_MENDS = {
    401: "are the secrets of this configuration the running gateway's?",
    404: "does the running gateway have this configuration, and is --url right?",
    429: "over the source's rate: wait, or say a longer --interval",
    503: "the log is away, or the gateway drains: try again",
}


class NotSent(Exception):
    """Nothing is known to have arrived; ``mend`` says what to do."""

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a parcel: the ids of its events, where the way tells them, and how it went."""

    how: str
    ids: Sequence[str] = ()


async def send(parcel: Parcel, door: Callable[[], Door]) -> Sent:
    """Send. ``door`` is asked for where a post goes. Raises NotSent. Cancelling is safe."""
    config = parcel.config
    if isinstance(config, Webhook):
        return await _post(parcel, config, door())
    sending: Awaitable[Sent]
    if isinstance(config, RedisPubSub):
        sending = _publish(parcel, config)
    elif isinstance(config, RedisStream):
        sending = _add(parcel, config)
    else:
        sending = _produce(parcel, config)
    try:
        async with asyncio.timeout(2 * SECONDS):
            return await sending
    except TimeoutError:
        raise NotSent(f"the upstream of {parcel.source} gave no answer in time") from None
    except (RedisError, KafkaError, OSError) as error:
        raise NotSent(
            f"the upstream of {parcel.source}: {safe(in_plain_words(str(error))) or type(error).__name__}",
            "is it reachable from here? The configuration names it as the gateway sees it",
        ) from None


async def _post(parcel: Parcel, config: Webhook, door: Door) -> Sent:
    path, media, body, more = _body(parcel, config)
    url = f"{door.url}{path}"
    signed = dict(headers(config.verify, body, time.time(), parcel.type, parcel.key))
    own: dict[str, str] = {hdrs.USER_AGENT: f"sse-gateway-publish/{__version__}", hdrs.CONTENT_TYPE: media}
    if parcel.key is not None:
        own["Idempotency-Key"] = parcel.key
    tls: ssl.SSLContext | bool = True if door.context is None else door.context
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls), timeout=aiohttp.ClientTimeout(total=SECONDS)
            ) as session,
            session.post(
                url, data=body, headers={**own, **parcel.headers, **more, **signed}, allow_redirects=False
            ) as answer,
        ):
            told = await answer.content.read(MAX_ANSWER)
            status = answer.status
    except ValueError as error:  # a secret with a line end, say: its words must not be shown
        if isinstance(error, aiohttp.ClientError):
            raise NotSent(f"{door.url} cannot be asked") from None
        raise NotSent("a header cannot be sent: does a secret or --key hold a line end?") from None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        why = safe(in_plain_words(reason(getattr(error, "os_error", error))))
        raise NotSent(
            f"{door.url} does not answer: {why}", "does the gateway run? --url says where"
        ) from None
    how = f"POST {url} ({method(config.verify)}): {status}"
    if 200 <= status < 300:
        return Sent(how, _ids(told))
    code, message = error_words(told)
    raise NotSent(f"{how} {code}: {message}" if code else how, _MENDS.get(status, ""))


def _body(parcel: Parcel, config: Webhook) -> tuple[str, str, bytes, dict[str, str]]:
    """Return path, content type, body and headers of a post that is one record, in the source's format."""
    base = _HOOKS + quote(parcel.source, safe="")
    topic = quote(parcel.topic, safe="")
    plain = f"{base}?topic={topic}"
    payload, kind = parcel.payload, "application/json"
    is_typed = parcel.type is not None and not config.verify.github
    if config.format == "cloudevents" or is_typed:
        attributes = {
            "specversion": "1.0",
            "id": parcel.key or str(uuid4()),
            "source": "/sse-gateway/publish",
        }
        attributes["type"] = parcel.type or "test"
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


def _ids(answer: bytes) -> Sequence[str]:
    try:
        told: Any = json.loads(answer)
    except ValueError:
        return ()
    ids = told.get("ids") if isinstance(told, dict) else None
    return [safe(str(id)) for id in ids] if isinstance(ids, list) else ()


async def _redis(url: str, key: str) -> Redis:
    options = await Target(RedisUrl.parse(url)).locate(key, SECONDS)
    limits = {"socket_timeout": SECONDS, "socket_connect_timeout": SECONDS}
    return Redis(connection_pool=ConnectionPool(**{**options, **limits}))


async def _publish(parcel: Parcel, config: RedisPubSub) -> Sent:
    client = await _redis(config.url.get_secret_value(), parcel.topic)
    try:
        heard = int(await client.publish(parcel.topic, parcel.payload))
    finally:
        await client.aclose()
    if not heard:
        raise NotSent(
            f"PUBLISH {parcel.topic}: nobody is subscribed at that Redis",
            f"does the gateway run, and is the source {parcel.source} up (/status)?",
        )
    return Sent(f"PUBLISH {parcel.topic}: {heard} subscribed")


async def _add(parcel: Parcel, config: RedisStream) -> Sent:
    entry: dict[Any, Any] = {**parcel.fields, config.payload or "payload": parcel.payload}
    if parcel.type is not None:
        entry["type"] = parcel.type
    client = await _redis(config.url.get_secret_value(), parcel.topic)
    try:
        id = await client.xadd(parcel.topic, entry)
    finally:
        await client.aclose()
    return Sent(f"XADD {parcel.topic}: the entry {id.decode() if isinstance(id, bytes) else id}")


async def _produce(parcel: Parcel, config: Kafka) -> Sent:
    if AIOKafkaProducer is None:
        raise NotSent("Kafka needs the extra", "pip install 'sse-gateway[kafka]'")
    producer = AIOKafkaProducer(**connection_options(parcel.source, config))
    try:
        await producer.start()
        sent = await producer.send_and_wait(
            parcel.topic,
            parcel.payload,
            key=None if parcel.key is None else parcel.key.encode(),
            headers=[(name, text.encode()) for name, text in parcel.headers.items()],
        )
    finally:
        await producer.stop()
    return Sent(f"Kafka {parcel.topic}: partition {sent.partition}, offset {sent.offset}")
