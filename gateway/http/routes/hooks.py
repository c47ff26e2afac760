"""``/hooks/{source}`` and the paths below it: a webhook's request to its source, and the answer."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import msgspec
from aiohttp import hdrs, web

from gateway.core.errors import BadRequest, ExpectationFailed, GatewayError, NotFound
from gateway.http.bodies import BodyReader
from gateway.http.responses import error_headers, error_response
from gateway.http.routes.hook_refusals import HOOK_METHODS, HookRefusals
from gateway.http.routes.records import RecordsHandler
from gateway.sources.webhook import WebhookSource
from gateway.streams.quotas.client_address import TrustedProxies, address_key
from gateway.webhooks.credentials import PeerCertificate
from gateway.webhooks.formats import rest_proxy
from gateway.webhooks.formats.base import MAX_TOPIC_CHARS, Post, PostPath, WebhookResponse

MAX_IDEMPOTENCY_KEY_CHARS = 255
"""Longest ``Idempotency-Key``, in characters."""


@dataclass(frozen=True, slots=True)
class WebhookHandler:
    """The handlers."""

    sources: Mapping[str, WebhookSource]
    body_reader: BodyReader
    records_handler: RecordsHandler
    proxies: TrustedProxies
    refusals: HookRefusals

    def post_handler(self, path: PostPath) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return the handler of one of a source's paths.

        It answers 2xx once the log has the events; see DESIGN's guarantee "accepted is kept".
        """

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                source = self._source(request)
                post = _parse_post(request, path)
                source.check_before_body(
                    post.headers, request.query.get("access_token"), _client_certificate(request)
                )
                if path == "records" and not source.needs_body:
                    return await self.records_handler.handle_stream(
                        request, source, post, self._client_key(request)
                    )
                async with self.body_reader.read_whole(request, self._client_key(request)) as body:
                    post = msgspec.structs.replace(post, body=body)
                    if path == "records":
                        return _to_response(await self.records_handler.handle_whole(source, post))
                    return _to_response(await source.receive(post))
            except GatewayError as error:
                # Frames of it, and of what it came from, hold the body; some of them hold it again, so that
                # all would stay until the next full collection.
                error.__traceback__ = error.__context__ = None
                return self._refusal_response(request, path, error)

        return handle

    async def head(self, request: web.Request) -> web.Response:
        """Answer a sender's health check."""
        try:
            self._source(request)
        except NotFound as error:
            return self._refusal_response(request, "plain", error)
        return web.Response(headers={hdrs.ALLOW: HOOK_METHODS})

    async def options(self, request: web.Request) -> web.Response:
        """Say what may be done here; CloudEvents senders ask before they post (webhooks 1.0, §4)."""
        try:
            self._source(request)
        except NotFound as error:
            return self._refusal_response(request, "plain", error)
        origin = request.headers.get("WebHook-Request-Origin")
        if origin is None:
            return web.Response(status=204, headers={hdrs.ALLOW: HOOK_METHODS})
        # Every post is verified, so whoever may post may do so at any rate: over it is 429.
        return web.Response(
            headers={
                hdrs.ALLOW: HOOK_METHODS,
                "WebHook-Allowed-Origin": origin,
                "WebHook-Allowed-Rate": request.headers.get("WebHook-Request-Rate", "*"),
            }
        )

    def expect_handler(self, path: PostPath) -> Callable[[web.Request], Awaitable[web.Response | None]]:
        """Return what answers ``Expect: 100-continue``, or refuses before the body is sent.

        aiohttp calls it outside of all middlewares; a response that is returned takes the place of the
        handler's.
        """

        async def handle(request: web.Request) -> web.Response | None:
            try:
                source = self._source(request)
                if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
                    raise ExpectationFailed("only Expect: 100-continue is understood")
                source.check_before_body(
                    _lowercase_headers(request),
                    request.query.get("access_token"),
                    _client_certificate(request),
                )
                if path != "records" or source.needs_body:
                    self.body_reader.check_length(request)
            except GatewayError as error:
                return self._refusal_response(request, path, error)
            if request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None

        return handle

    def _source(self, request: web.Request) -> WebhookSource:
        name = request.match_info["source"]
        if name not in self.sources:
            # What stands in a URL that leads nowhere may be anything, a token in the wrong place too.
            raise NotFound("there is no webhook source of this name", code="unknown_source")
        return self.sources[name]

    def _client_key(self, request: web.Request) -> str | None:
        """Return the address that a body counts for; a proxy's own counts for nobody."""
        client = self.refusals.client_address(request)
        return None if client is None or self.proxies.is_trusted(client) else address_key(client)

    def _refusal_response(self, request: web.Request, path: PostPath, error: GatewayError) -> web.Response:
        reply = rest_proxy.build_error_response(path, request.content_type, error)
        response = error_response(error) if reply is None else _to_response(reply)
        if reply is not None:
            response.headers.update(error_headers(error))
        return self.refusals.record_response(request, error, response)


def _client_certificate(request: web.Request) -> PeerCertificate | None:
    """Return the certificate that the client proved in its handshake."""
    return None if request.transport is None else request.transport.get_extra_info("peercert")


def _lowercase_headers(request: web.Request) -> dict[str, str]:
    """Return the headers by their names in lower case; of one that is given twice the first."""
    return {name.lower(): text for name, text in reversed([*request.headers.items()])}


def _parse_post(request: web.Request, path: PostPath) -> Post:
    """Return the request without its body. Raises BadRequest."""
    topic = _request_topic(request)
    key = request.headers.get("Idempotency-Key") or None
    if key is not None and len(key) > MAX_IDEMPOTENCY_KEY_CHARS:
        raise BadRequest(
            f"Idempotency-Key is longer than {MAX_IDEMPOTENCY_KEY_CHARS} characters",
            code="bad_idempotency_key",
        )
    if key is not None and not key.isascii():
        # Bytes that are no text arrive as surrogates, which no log can store.
        raise BadRequest("Idempotency-Key must be ASCII", code="bad_idempotency_key")
    partition = request.match_info.get("partition")
    return Post(
        b"",
        content_type=request.content_type if hdrs.CONTENT_TYPE in request.headers else "",
        headers=_lowercase_headers(request),
        path=path,
        topic=topic,
        partition=None if partition is None else int(partition),
        cluster=request.match_info.get("cluster", ""),
        message_id=key,
    )


def _request_topic(request: web.Request) -> str | None:
    """Return the one topic that a request names, in its path or its query. Raises BadRequest."""
    named = [topic for topic in request.query.getall("topic", ()) if topic]
    if (in_path := request.match_info.get("topic")) is not None:
        named.append(in_path)
    if not named:
        return None
    if len(set(named)) > 1:
        raise BadRequest("the request names several topics; post once for each", code="bad_topic")
    if len(named[0]) > MAX_TOPIC_CHARS:
        raise BadRequest(f"the topic is longer than {MAX_TOPIC_CHARS} characters", code="bad_topic")
    try:
        if "%" in request.raw_path:
            unquote_to_bytes(request.raw_path).decode()
    except UnicodeDecodeError:
        # The URL's reader shows such bytes as others, so two topics would be one.
        raise BadRequest("the URL is not UTF-8 (RFC 3986, percent-encoded)", code="bad_topic") from None
    return named[0]


def _to_response(reply: WebhookResponse) -> web.Response:
    if not reply.content_type:
        return web.Response(status=reply.status)
    headers = {hdrs.CONTENT_TYPE: reply.content_type}
    return web.Response(status=reply.status, body=reply.body, headers=headers)
