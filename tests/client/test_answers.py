"""Our client and every answer that it can get: which end it, and which it comes back from."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import jwt
import pytest
from aiohttp import web

from tests.client.following import following
from tests.support.expiry import end_tokens
from tests.support.gateway import eventually, gateway_running
from tests.support.issuer import serving

pytestmark = pytest.mark.extended

SECRET = "k" * 32
PRIVATE = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}},
    "channels": {"orders": {"access": "token"}},
    "timeouts": {"retry": "100ms"},
}


def token(seconds: float = 600, channels: str = "orders") -> str:
    """Return a token that is good for so long."""
    return jwt.encode({"sub": "1", "channels": [channels], "exp": time.time() + seconds}, SECRET, "HS256")


@pytest.mark.parametrize(
    ("channel", "tokens", "reason"),
    [
        ("nothing", None, "unknown_channel"),
        ("orders", None, "missing_token"),
        ("orders", [(600, "stock")], "channel_forbidden"),
        ("orders", [(-60, "orders"), (-60, "orders")], "invalid_token"),
    ],
)
async def test_what_can_never_work_ends_it(
    channel: str, tokens: list[tuple[float, str]] | None, reason: str
) -> None:
    """404, 401 and 403 close the stream with the gateway's own word, and nothing is asked again."""
    made = None if tokens is None else [token(seconds, names) for seconds, names in tokens]
    async with gateway_running(PRIVATE) as gateway:
        async with following(gateway.url, {"channels": [channel]}, tokens=made) as told:
            await told.until("closed")
            assert told.states == ["connecting", "closed"]
            assert told.reasons == [reason]
        requests = 2 if tokens and reason == "invalid_token" else 1
        assert await gateway.metric(f'refused_total{{reason="{reason}"}}') == requests


async def test_a_refused_token_is_asked_for_once_more() -> None:
    """401: the page is told which token was refused, gives a fresh one, and the stream opens."""
    old, new = token(-60), token()
    async with (
        gateway_running(PRIVATE) as gateway,
        following(gateway.url, {"channels": ["orders"]}, tokens=[old, new]) as told,
    ):
        await told.until("open")
        assert told.asked == [None, old]
        assert told.states == ["connecting", "open"]


async def test_nothing_is_lost_where_a_token_ends() -> None:
    """token_expired closes the stream; it comes back with a new token, at the place where it was."""
    async with (
        gateway_running(PRIVATE) as gateway,
        following(gateway.url, {"channels": ["orders"]}, tokens=[token(), token(1200)]) as told,
    ):
        await told.until("open")
        await gateway.post("orders", "1")
        end_tokens(gateway)
        await told.until("waiting")
        await gateway.post("orders", "2")
        await told.until("open", 2)
        await gateway.post("orders", "3")
        await eventually(lambda: told.events == [1, 2, 3])
        assert told.reasons == ["token_expired"]


async def test_a_machine_may_sleep_longer_than_its_token_lives() -> None:
    """It wakes with a dead connection and an old token, asks for a new one, and has what was published meanwhile."""
    async with (
        gateway_running(PRIVATE) as gateway,
        following(gateway.url, {"channels": ["orders"]}, tokens=[token(), token(1200)]) as told,
    ):
        await told.until("open")
        await gateway.post("orders", "1")
        await eventually(lambda: told.events == [1])
        told.sleep()
        await gateway.post("orders", "2")
        end_tokens(gateway)
        await eventually(lambda: not gateway.daemon.streams.active)
        await gateway.post("orders", "3")
        told.wake()
        await eventually(lambda: told.events == [1, 2, 3])
        assert told.asked == [None, None]
        assert "closed" not in told.states


async def test_trouble_of_the_page_with_its_token_passes() -> None:
    """A token function that throws (its own server is away) is asked again later."""
    async with (
        gateway_running(PRIVATE) as gateway,
        following(gateway.url, {"channels": ["orders"]}, tokens=[{"error": "away"}, token()]) as told,
    ):
        await told.until("open")
        assert told.states == ["connecting", "waiting", "connecting", "open"]
        assert told.reasons == ["token"]


Answer = Callable[[], web.Response]


@asynccontextmanager
async def in_front(url: str, *answers: Answer) -> AsyncIterator[str]:
    """Serve answers, one request each, and after them redirect to a gateway, as a portal does."""
    left = list(answers)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return (
            left.pop(0)() if left else web.Response(status=307, headers={"Location": url + request.path_qs})
        )

    async with serving(answer) as front:
        yield front


async def test_trouble_that_passes_is_waited_for() -> None:
    """5xx, 408, 425 and 429, a portal's page, an answer without a type: it comes back from each."""
    bad = [web.Response(status=status) for status in (500, 502, 503, 408, 425, 429)]
    page = web.Response(text="<p>Please sign in</p>", content_type="text/html")
    answers = [lambda answer=answer: answer for answer in (*bad, page, web.Response())]
    async with (
        gateway_running() as gateway,
        in_front(gateway.url, *answers) as front,
        following(front, {"channels": ["orders"], "minDelay": 5, "maxDelay": 20}) as told,
    ):
        await told.until("open")
        statuses = [f"status {answer.status}" for answer in bad]
        assert told.reasons == [*statuses, "bad_answer", "bad_answer"]


async def test_retry_after_is_a_least_delay() -> None:
    """Retry-After in seconds is waited for, and jitter comes on top of it."""
    busy = web.Response(status=503, headers={"Retry-After": "1"})
    async with (
        gateway_running() as gateway,
        in_front(gateway.url, lambda: busy) as front,
        following(front, {"channels": ["orders"]}, luck=0.5) as told,
    ):
        await told.until("open")
        assert told.delays == [1000 + 25]


async def test_a_delay_without_bound_is_no_hot_loop() -> None:
    """Timers take 31 bits, and more is none: a Retry-After of centuries must not become a flood of requests."""
    requests: list[int] = []

    def busy() -> web.Response:
        requests.append(1)
        return web.Response(status=503, headers={"Retry-After": "9" * 20})

    async with (
        gateway_running() as gateway,
        in_front(gateway.url, *[busy] * 100) as front,
        following(front, {"channels": ["orders"]}) as told,
    ):
        await told.until("waiting")
        await asyncio.sleep(1)  # enough for a thousand
        assert len(requests) == 1


async def test_no_content_ends_it() -> None:
    """204 tells a client to stop (WHATWG HTML 9.2.3)."""
    async with (
        gateway_running() as gateway,
        in_front(gateway.url, lambda: web.Response(status=204)) as front,
        following(front, {"channels": ["orders"]}) as told,
    ):
        await told.until("closed")
        assert told.reasons == ["no_content"]


async def test_a_successor_ends_it() -> None:
    """stream.close with reconnect false: a newer stream of the same name has its place."""
    async with (
        gateway_running() as gateway,
        following(gateway.url, {"channels": ["orders"]}, luck=0.5) as told,
    ):
        await told.until("open")
        async with following(gateway.url, {"channels": ["orders"]}, luck=0.5) as newer:  # as "0.5", both
            await told.until("closed")
            assert told.reasons == ["replaced"]
            await gateway.post("orders", "1")
            await eventually(lambda: newer.events[-1:] == [1])


async def test_handlers_harm_nothing_and_close_is_at_once() -> None:
    """What a handler throws is told by the console; after close() in a handler no event comes, though more are there."""
    async with gateway_running({"channels": {"broken": gateway_channel()}}) as gateway:
        options = {"channels": ["orders", "broken"], "last": 10}
        for number in range(5):
            await gateway.post("broken" if number == 1 else "orders", json.dumps(number))
        async with following(gateway.url, options, closeAfter=4) as told:
            await told.until("closed")
            await eventually(lambda: told.faults)
            await eventually(lambda: not gateway.daemon.streams.active)
            assert told.events == [0, 1, 2, 3]
            assert told.faults == ["Error: of the page"]
            assert told.reasons == ["closed"]


def gateway_channel() -> dict[str, object]:
    return {"from": [{"source": "hooks", "topic": "broken"}], "access": "public"}


async def test_iterating_gives_events_and_ends_with_the_stream() -> None:
    """for await: events in order, and an end when the stream is closed for good."""
    async with (
        gateway_running() as gateway,
        following(gateway.url, {"channels": ["orders"]}, iterate=True, luck=0.5) as told,
    ):
        await told.until("open")
        for number in range(20):
            await gateway.post("orders", json.dumps(number))
        await eventually(lambda: told.events == list(range(20)))
        async with following(gateway.url, {"channels": ["orders"]}, luck=0.5):
            await eventually(lambda: told.said[-1].get("ended") == "replaced")
