"""REST Proxy v3: a receipt for each record, while the sender is still sending.

How it works. The request is a row of JSON objects without an end that anybody knows. Whatever is whole
by the time that a part arrives becomes one append, and the receipts of it go out before the next part is
read: a sender that waits for them sees them, and one that does not read them stops being read.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from aiohttp import web

from gateway.errors import BadRequest, GatewayError, Rejected
from gateway.event import Record
from gateway.http.bodies import Bodies
from gateway.sources.webhook import WebhookSource
from gateway.webhooks.post import MAX_RECORDS, Outcome, Post, Reply, too_many
from gateway.webhooks.rest_proxy import read_v3, receipt
from gateway.webhooks.splitter import Splitter
from gateway.webhooks.strict import skeleton

_MEDIA = "application/json"


@dataclass(frozen=True, slots=True)
class Receipts:
    """Answers ``…/v3/clusters/{cluster}/topics/{topic}/records``."""

    bodies: Bodies
    idle_seconds: float
    write_seconds: float

    async def whole(self, source: WebhookSource, post: Post) -> Reply:
        """Answer a request whose signature is known only at its end: all receipts at once."""
        post, _ = source.identify(post)
        splitter = Splitter(self.bodies.largest)
        texts = splitter.feed(post.body)
        splitter.end()
        if not texts:
            raise BadRequest("the body holds no record", code="empty_body")
        if len(texts) > MAX_RECORDS:
            raise too_many()
        return Reply(200, _MEDIA, await self._taken(source, post, texts, 0))

    async def stream(self, request: web.Request, source: WebhookSource, post: Post) -> web.StreamResponse:
        """Answer each record as it comes. Raises what is wrong with the request before its first record."""
        post, _ = source.identify(post)
        splitter = Splitter(self.bodies.largest)
        response: web.StreamResponse | None = None
        count = 0
        error: GatewayError | None = None
        parts = self.bodies.parts(request, self.idle_seconds)
        try:
            async for part in parts:
                texts = splitter.feed(part)
                for first in range(0, len(texts), MAX_RECORDS):
                    batch = texts[first : first + MAX_RECORDS]
                    await source.pace()
                    receipts = await self._taken(source, post, batch, count)
                    count += len(batch)
                    if response is None:
                        response = web.StreamResponse(headers={"Content-Type": _MEDIA})
                        await response.prepare(request)
                    await self._write(response, receipts)
            splitter.end()
        except GatewayError as caught:
            error = caught
        if response is None:
            raise error or BadRequest("the body holds no record", code="empty_body")
        if error is not None:
            source.refused(error)
            await self._write(response, _encode({"error_code": error.status, "message": error.message}))
        await response.write_eof()
        return response

    async def _taken(self, source: WebhookSource, post: Post, texts: Sequence[bytes], first: int) -> bytes:
        """Append records and return their receipts, one per line."""
        records = [_read(post, text, first + index) for index, text in enumerate(texts)]
        outcomes: Sequence[Outcome] = await source.take(records)
        source.count(outcomes)
        return b"".join(
            _encode(receipt(post, record, outcome)) for record, outcome in zip(records, outcomes, strict=True)
        )

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        # A sender that does not read its receipts is one that is gone.
        async with asyncio.timeout(self.write_seconds):
            await response.write(data)


def _read(post: Post, text: bytes, index: int) -> Record | GatewayError:
    try:
        skeleton(text)
    except Rejected as error:
        return error
    return read_v3(post, text, index)


def _encode(data: object) -> bytes:
    return msgspec.json.encode(data) + b"\r\n"
