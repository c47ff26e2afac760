"""REST Proxy v3: responds with a receipt for each record while the sender still sends.

How it works. The request is a sequence of JSON objects of unknown length. The objects that are complete
when a part arrives become one append, and their receipts are sent before the next part is read: a sender
that waits for receipts gets them, and one that does not read them is no longer read from.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from aiohttp import web

from gateway.core.errors import BadRequest, GatewayError, RecordRejected, Unavailable
from gateway.core.event import Record
from gateway.http.bodies import BodyReader
from gateway.http.request import is_proxied
from gateway.http.responses import EarlyResponse
from gateway.sources.webhook import WebhookSource
from gateway.webhooks.formats.base import Outcome, Post, WebhookResponse
from gateway.webhooks.formats.json_splitter import JsonSplitter
from gateway.webhooks.formats.rest_proxy import build_receipt, parse_record_v3
from gateway.webhooks.strict_json import MAX_RECORDS, check_strict_json

MAX_BATCH_RECORDS = 1000
"""Most records that are appended at once."""

_CONTENT_TYPE = "application/json"


@dataclass(slots=True)
class RecordsHandler:
    """Answers ``…/v3/clusters/{cluster}/topics/{topic}/records``."""

    body_reader: BodyReader
    idle_seconds: float
    write_seconds: float

    def reconfigure(self, idle_seconds: float, write_seconds: float) -> None:
        """Apply other bounds."""
        self.idle_seconds, self.write_seconds = idle_seconds, write_seconds

    async def handle_whole(self, source: WebhookSource, post: Post) -> WebhookResponse:
        """Answer a request whose signature is known only at its end, with all receipts at once."""

        async def take(message: Post) -> tuple[WebhookResponse, int]:
            records = await source.body_checker.run(len(message.body), lambda: self._parse_whole(message))
            receipts, events = await self._append(source, message, records, is_whole=True)
            return WebhookResponse(200, _CONTENT_TYPE, receipts), events

        return await source.process_once(post, take)

    def _parse_whole(self, post: Post) -> Sequence[Record | GatewayError]:
        """Return the records of a complete body. Raises BadRequest, RecordRejected or PayloadTooLarge."""
        splitter = JsonSplitter(self.body_reader.max_bytes, MAX_RECORDS)
        texts = splitter.feed(post.body)
        splitter.finish()
        if not texts:
            raise BadRequest("the body holds no record", code="empty_body")
        return [_parse_record(post, text, index) for index, text in enumerate(texts)]

    async def handle_stream(
        self, request: web.Request, source: WebhookSource, post: Post, client_key: str | None
    ) -> web.StreamResponse:
        """Answer each record as it arrives. ``client_key`` is the address that the memory counts for.

        Raises errors of the request before its first record.
        """
        splitter = JsonSplitter(self.body_reader.max_bytes)
        receipts = _ReceiptStream(request, self.write_seconds)
        error: GatewayError | None = None
        try:
            with self.body_reader.reserve(client_key) as set_reserved:
                async with aclosing(self.body_reader.read_parts(request, self.idle_seconds)) as parts:
                    await self._append_parts(
                        parts, splitter, set_reserved, source, source.with_metadata(post), receipts
                    )
        except GatewayError as caught:
            error = caught
        finally:
            # aiohttp keeps an error, and with it this frame, until the next garbage collection.
            splitter.clear()
        if receipts.response is None:
            raise error or BadRequest("the body holds no record", code="empty_body")
        if error is not None:
            source.count_rejection(error)
            await receipts.write(_encode_line({"error_code": error.status, "message": error.message}))
        await receipts.response.write_eof()
        return receipts.response

    async def _append_parts(
        self,
        parts: AsyncIterator[bytes],
        splitter: JsonSplitter,
        set_reserved: Callable[[int], None],
        source: WebhookSource,
        post: Post,
        receipt_stream: "_ReceiptStream",
    ) -> None:
        count = 0
        async for part in parts:
            texts = splitter.feed(part)
            set_reserved(splitter.buffered_bytes)
            for first in range(0, len(texts), MAX_BATCH_RECORDS):
                batch = texts[first : first + MAX_BATCH_RECORDS]
                await self.body_reader.throttle(source.rate_wait_seconds())
                records = [_parse_record(post, text, count + index) for index, text in enumerate(batch)]
                receipts, _ = await self._append(source, post, records)
                await receipt_stream.write(receipts)
                await asyncio.sleep(0)  # a log in memory never waits: let others run
                count += len(batch)
        splitter.finish()

    async def _append(
        self,
        source: WebhookSource,
        post: Post,
        records: Sequence[Record | GatewayError],
        *,
        is_whole: bool = False,
    ) -> tuple[bytes, int]:
        """Append records. Returns their receipts, one per line, and how many events they became."""
        outcomes: Sequence[Outcome] = await source.append_records(records)
        if is_whole and (later := next((each for each in outcomes if isinstance(each, Unavailable)), None)):
            raise later
        events = source.count_outcomes(outcomes)
        receipts = b"".join(
            _encode_line(build_receipt(post, record, outcome))
            for record, outcome in zip(records, outcomes, strict=True)
        )
        return receipts, events


class _ReceiptStream:
    """The response, which begins with the first receipt."""

    def __init__(self, request: web.Request, write_seconds: float) -> None:
        self.response: web.StreamResponse | None = None
        self._request = request
        self._write_seconds = write_seconds

    async def write(self, data: bytes) -> None:
        """Send receipts. Raises ConnectionError if the sender does not read them in time."""
        try:
            async with asyncio.timeout(self._write_seconds):
                if self.response is None:
                    # A proxy's connection ends with it, as it may outlast the beginning of a drain.
                    kind = web.StreamResponse if is_proxied(self._request.headers) else EarlyResponse
                    self.response = kind(headers={"Content-Type": _CONTENT_TYPE})
                    await self.response.prepare(self._request)
                await self.response.write(data)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the sender does not read its receipts") from None


def _parse_record(post: Post, text: bytes, index: int) -> Record | GatewayError:
    try:
        check_strict_json(text)
    except RecordRejected as error:
        return error
    return parse_record_v3(post, text, index)


def _encode_line(data: object) -> bytes:
    return msgspec.json.encode(data) + b"\r\n"
