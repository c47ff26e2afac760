"""``/hooks/{source}`` and the paths below it: hands webhooks to their source, and returns its response."""

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
    """Handles the requests of webhooks."""

    sources: Mapping[str, WebhookSource]
    body_reader: BodyReader
    records_handler: RecordsHandler
    proxies: TrustedProxies
    refusals: HookRefusals

    def post_handler(self, path: PostPath) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return the POST handler of one of a source's paths. It responds 2xx once the log has the events."""

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
                # Its frames hold the body, in cycles that would live until the next garbage collection.
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
        """Return the allowed methods.

        CloudEvents senders request permission by OPTIONS (webhooks 1.0, §4).
        """
        try:
            self._source(request)
        except NotFound as error:
            return self._refusal_response(request, "plain", error)
        origin = request.headers.get("WebHook-Request-Origin")
        if origin is None:
            return web.Response(status=204, headers={hdrs.ALLOW: HOOK_METHODS})
        # Any origin and rate: every post is verified, and one over the rate gets 429.
        return web.Response(
            headers={
                hdrs.ALLOW: HOOK_METHODS,
                "WebHook-Allowed-Origin": origin,
                "WebHook-Allowed-Rate": request.headers.get("WebHook-Request-Rate", "*"),
            }
        )

    def expect_handler(self, path: PostPath) -> Callable[[web.Request], Awaitable[web.Response | None]]:
        """Return the handler of ``Expect: 100-continue``, which can refuse a request before its body is sent.

        aiohttp calls it outside of all middlewares. A response that it returns replaces that of the route's
        handler.
        """

        async def handle(request: web.Request) -> web.Response | None:
            try:
                source = self._source(request)
                if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
                    raise ExpectationFailed("Expect must be 100-continue")
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
            # Without the name, which may be anything, even a misplaced token.
            raise NotFound("there is no webhook source of this name", code="unknown_source")
        return self.sources[name]

    def _client_key(self, request: web.Request) -> str | None:
        """Return the address that a body counts for; None for a proxy's own."""
        client = self.refusals.client_address(request)
        return None if client is None or self.proxies.is_trusted(client) else address_key(client)

    def _refusal_response(self, request: web.Request, path: PostPath, error: GatewayError) -> web.Response:
        reply = rest_proxy.build_error_response(path, request.content_type, error)
        response = error_response(error) if reply is None else _to_response(reply)
        if reply is not None:
            response.headers.update(error_headers(error))
        return self.refusals.record_response(request, error, response)


def _client_certificate(request: web.Request) -> PeerCertificate | None:
    """Return the client certificate of the TLS handshake."""
    return None if request.transport is None else request.transport.get_extra_info("peercert")


def _lowercase_headers(request: web.Request) -> dict[str, str]:
    """Return the headers by lower-case name; of repeated ones the first."""
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
        # Bytes that are not UTF-8 arrive as surrogates, which the log cannot store.
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
    """Return the one topic in a request's path or query. Raises BadRequest for several."""
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
        # The URL parser replaces such bytes, so that two topics would become one.
        raise BadRequest("the URL is not UTF-8 (RFC 3986, percent-encoded)", code="bad_topic") from None
    return named[0]


def _to_response(reply: WebhookResponse) -> web.Response:
    if not reply.content_type:
        return web.Response(status=reply.status)
    headers = {hdrs.CONTENT_TYPE: reply.content_type}
    return web.Response(status=reply.status, body=reply.body, headers=headers)
