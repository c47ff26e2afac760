"""Reading bodies of senders that do not do what they said."""

import asyncio

from structlog.testing import capture_logs

from tests.support.eventsource import Stream
from tests.support.gateway import Gateway, eventually

POST = b"POST /hooks/hooks?topic=orders HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"


async def test_a_sender_that_is_gone_before_its_body_is_read(gateway: Gateway) -> None:
    """Its connection broke between the request's head and the first look at the body: no fault of ours."""
    with capture_logs() as lines:
        kept = await Stream.open(gateway.port, "/nothing")
        assert kept.status == 404
        server = gateway.daemon.public_listener._runner.server
        assert server is not None
        (handler,) = server.connections
        handler.data_received(POST)
        await asyncio.sleep(0)  # aiohttp has made the handler's task, which has its first turn next
        handler.connection_lost(None)
        kept.close()
        await eventually(lambda: gateway.daemon.public_listener.request_connections == 0)
    assert not [line for line in lines if line["log_level"] == "error"]
