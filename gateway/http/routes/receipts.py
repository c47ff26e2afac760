"""REST Proxy v3: a receipt for each record, while the sender is still sending.

How it works. The request is a row of JSON objects without an end that anybody knows. Whatever is whole
by the time that a part arrives becomes one append, and the receipts of it go out before the next part is
read: a sender that waits for them sees them, and one that does not read them stops being read.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from aiohttp import web

from gateway.core.errors import BadRequest, GatewayError, Rejected, Unavailable
from gateway.core.event import Record
from gateway.http.bodies import Bodies
from gateway.http.request import is_proxied
from gateway.http.responses import EarlyResponse
from gateway.sources.webhook import WebhookSource, events_in
from gateway.webhooks.formats.base import MAX_RECORDS, Outcome, Post, Reply
from gateway.webhooks.formats.json_splitter import Splitter
from gateway.webhooks.formats.rest_proxy import read_v3, receipt
from gateway.webhooks.strict_json import skeleton

BATCH = 1000
"""Most records that are appended at once."""

_MEDIA = "application/json"


@dataclass(slots=True)
class Receipts:
    """Answers ``…/v3/clusters/{cluster}/topics/{topic}/records``."""

    bodies: Bodies
    idle_seconds: float
    write_seconds: float

    def reconfigure(self, idle_seconds: float, write_seconds: float) -> None:
        """Take other bounds."""
        self.idle_seconds, self.write_seconds = idle_seconds, write_seconds

    async def whole(self, source: WebhookSource, post: Post) -> Reply:
        """Answer a request whose signature is known only at its end: all receipts at once."""

        async def take(message: Post) -> tuple[Reply, int]:
            records = await source.checked(len(message.body), lambda: self._read_whole(message))
            receipts, events = await self._taken(source, message, records, is_whole=True)
            return Reply(200, _MEDIA, receipts), events

        return await source.once(post, take)

    def _read_whole(self, post: Post) -> Sequence[Record | GatewayError]:
        """Return the records of a whole body. Raises BadRequest, Rejected or PayloadTooLarge."""
        splitter = Splitter(self.bodies.largest, MAX_RECORDS)
        texts = splitter.feed(post.body)
        splitter.end()
        if not texts:
            raise BadRequest("the body holds no record", code="empty_body")
        return [_read(post, text, index) for index, text in enumerate(texts)]

    async def stream(
        self, request: web.Request, source: WebhookSource, post: Post, whose: str | None
    ) -> web.StreamResponse:
        """Answer each record as it comes; ``whose`` is the sender's address.

        Raises what is wrong with the request before its first record.
        """
        splitter = Splitter(self.bodies.largest)
        answer = _Answer(request, self.write_seconds)
        error: GatewayError | None = None
        try:
            with self.bodies.holding(whose) as hold:
                async with aclosing(self.bodies.parts(request, self.idle_seconds)) as parts:
                    await self._take_all(parts, splitter, hold, source, source.told(post), answer)
        except GatewayError as caught:
            error = caught
        finally:
            splitter.clear()  # aiohttp keeps an error, and with it this frame, until the next full collection
        if answer.response is None:
            raise error or BadRequest("the body holds no record", code="empty_body")
        if error is not None:
            source.refused(error)
            await answer.write(_encode({"error_code": error.status, "message": error.message}))
        await answer.response.write_eof()
        return answer.response

    async def _take_all(
        self,
        parts: AsyncIterator[bytes],
        splitter: Splitter,
        hold: Callable[[int], None],
        source: WebhookSource,
        post: Post,
        answer: "_Answer",
    ) -> None:
        count = 0
        async for part in parts:
            texts = splitter.feed(part)
            hold(splitter.held)
            for first in range(0, len(texts), BATCH):
                batch = texts[first : first + BATCH]
                await self.bodies.pause(source.wait())
                records = [_read(post, text, count + index) for index, text in enumerate(batch)]
                receipts, _ = await self._taken(source, post, records)
                await answer.write(receipts)
                await asyncio.sleep(0)  # a log in memory answers at once, and others want their turn
                count += len(batch)
        splitter.end()

    async def _taken(
        self,
        source: WebhookSource,
        post: Post,
        records: Sequence[Record | GatewayError],
        *,
        is_whole: bool = False,
    ) -> tuple[bytes, int]:
        """Append records; returns their receipts, one per line, and how many events they are."""
        outcomes: Sequence[Outcome] = await source.take(records)
        if is_whole and (later := next((each for each in outcomes if isinstance(each, Unavailable)), None)):
            raise later
        source.count(outcomes)
        receipts = b"".join(
            _encode(receipt(post, record, outcome)) for record, outcome in zip(records, outcomes, strict=True)
        )
        return receipts, events_in(outcomes)


class _Answer:
    """The response, which begins with the first receipt."""

    def __init__(self, request: web.Request, write_seconds: float) -> None:
        self.response: web.StreamResponse | None = None
        self._request = request
        self._write_seconds = write_seconds

    async def write(self, data: bytes) -> None:
        """Send receipts. Raises ConnectionError where the sender does not take them: it is gone."""
        try:
            async with asyncio.timeout(self._write_seconds):
                if self.response is None:
                    # For a proxy it is the last one of its connection: it may end after a drain has begun.
                    kind = web.StreamResponse if is_proxied(self._request.headers) else EarlyResponse
                    self.response = kind(headers={"Content-Type": _MEDIA})
                    await self.response.prepare(self._request)
                await self.response.write(data)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the sender does not read its receipts") from None


def _read(post: Post, text: bytes, index: int) -> Record | GatewayError:
    try:
        skeleton(text)
    except Rejected as error:
        return error
    return read_v3(post, text, index)


def _encode(data: object) -> bytes:
    return msgspec.json.encode(data) + b"\r\n"
