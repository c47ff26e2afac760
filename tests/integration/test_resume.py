"""Resume by Last-Event-ID: every event once and in order, or a gap that is told."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.deadline import safety_net
from tests.support.eventsource import Message, Parser
from tests.support.gateway import Gateway, gateway_running
from tests.support.idle import IdleLoop

CHANNELS = ("orders", "stock", "news")
QUERY_NAMES = ("lastEventId", "last_event_id", "Last-Event-ID", "evs_last_event_id", "lastEvent")

posts = st.tuples(st.just("post"), st.integers(0, 2), st.integers(0, 300))
cuts = st.tuples(st.just("cut"), st.integers(0, 900), st.sampled_from(("header", *QUERY_NAMES)))


class Checker:
    """Follows one client over all of its connections."""

    def __init__(self) -> None:
        self.expected = dict.fromkeys(CHANNELS, 0)
        self.forgiven: set[str] = set()
        self.last = -1

    def saw(self, message: Message) -> None:
        if message.type == "stream.gap":
            self.forgiven.add(message.json["channel"])
        elif message.type == "message":
            channel, payload = message.json["channel"], message.json["payload"]
            assert payload["total"] > self.last, "an event twice, or out of order"
            self.last = payload["total"]
            if payload["number"] != self.expected[channel]:
                assert payload["number"] > self.expected[channel], "an event twice"
                assert channel in self.forgiven, f"a hole in {channel} that nobody told"
            self.forgiven.discard(channel)
            self.expected[channel] = payload["number"] + 1

    def missed(self, published: dict[str, int]) -> set[str]:
        return {name for name in CHANNELS if self.expected[name] < published[name]} - self.forgiven


async def play(plan: list[Any], events: int) -> None:
    history = {"history": {"events": events}}
    async with gateway_running({"channels": dict.fromkeys(CHANNELS, history)}) as gateway:
        checker, published, total, last_id, name = Checker(), dict.fromkeys(CHANNELS, 0), 0, "", "header"
        reader, writer, parser = await connect(gateway, last_id, name)
        for step, number, extra in [*plan, ("cut", 0, "header")]:
            if step == "post":
                channel = CHANNELS[number]
                body = {"number": published[channel], "total": total, "text": "x" * extra}
                await gateway.post(channel, json.dumps(body))
                published[channel] += 1
                total += 1
                continue
            # Cut after so many bytes, wherever in an event that is.
            await read_some(reader, parser, number)
            writer.transport.abort()
            for message in parser.messages:
                checker.saw(message)
            last_id, name = parser.last_id or last_id, extra
            if not last_id:  # cut before stream.open was whole: what it begins with is now
                checker.expected, checker.last = dict(published), total - 1
            reader, writer, parser = await connect(gateway, last_id, name)
        async with safety_net():
            while True:
                for message in parser.messages:
                    checker.saw(message)
                parser.messages.clear()
                if checker.last == total - 1 or not checker.missed(published):
                    break
                parser.feed(await reader.read(65536))
        writer.transport.abort()
        assert not checker.missed(published)


async def connect(
    gateway: Gateway, last_id: str, name: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Parser]:
    """Open a stream in HTTP/1.0, whose body has no framing that a cut could fall into."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    query = f"&{name}={last_id}" if name != "header" and last_id else ""
    header = f"Last-Event-ID: {last_id}\r\n" if name == "header" and last_id else ""
    writer.write(f"GET /events?channel={','.join(CHANNELS)}{query} HTTP/1.0\r\n{header}\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head
    return reader, writer, Parser()


async def read_some(reader: asyncio.StreamReader, parser: Parser, most: int) -> None:
    while most > 0:
        try:
            async with asyncio.timeout(0.02):
                part = await reader.read(most)
        except TimeoutError:
            return
        most -= len(part)
        parser.feed(part)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=st.lists(st.one_of(posts, posts, posts, cuts), max_size=40), events=st.sampled_from([2, 1000]))
def test_a_stream_cut_anywhere_misses_nothing_unsaid(plan: list[Any], events: int) -> None:
    """Three channels, cuts in mid-event, every resume name: exactly what was published, or a told gap."""
    # On this loop the pauses of `read_some` cost a tenth.
    with asyncio.Runner(loop_factory=IdleLoop) as runner:
        runner.run(play(plan, events))


async def test_resume_says_complete_and_sends_only_what_came_after(gateway: Gateway) -> None:
    """The plainest resume: three events, the client has the first."""
    ids = [(await gateway.post("orders", str(number)))[0] for number in range(3)]
    stream = await gateway.open("/events/orders", {"Last-Event-ID": ids[0]})
    opening = await stream.next()
    assert opening.json["resume"] == "complete"
    assert opening.id == ids[0]
    assert [(await stream.next()).id for _ in range(2)] == ids[1:]


async def test_the_header_wins_over_the_query(gateway: Gateway) -> None:
    """A polyfill's query value is from the first page view; the browser's header is newer."""
    ids = [(await gateway.post("orders", str(number)))[0] for number in range(3)]
    stream = await gateway.subscribe(f"/events/orders?lastEventId={ids[0]}", {"Last-Event-ID": ids[1]})
    assert (await stream.next()).id == ids[2]


async def test_an_empty_id_is_no_resume(gateway: Gateway) -> None:
    """Some clients send the header before they have an id."""
    await gateway.post("orders", "1")
    stream = await gateway.open("/events/orders", {"Last-Event-ID": ""})
    assert (await stream.next()).json["resume"] == "none"


@pytest.mark.parametrize(
    "forged",
    [
        "nonsense",
        "0",
        "-1-0",
        "1-2-3",
        "9" * 400,
        "99999999999999-0",
        "'; drop table",
        "1e3-0",
        "\udcff\udcfe",
        "\uff11-0",
    ],
)
async def test_a_forged_id_is_a_gap_and_not_an_error(gateway: Gateway, forged: str) -> None:
    """Nobody knows what such a client has: it is told, on every channel, and goes on live."""
    await gateway.post("orders", "1")
    stream = await gateway.open("/events?channel=orders,stock", {"Last-Event-ID": forged})
    opening = await stream.next()
    assert stream.status == 200
    assert opening.json["resume"] == "gap"
    assert opening.id == "", "the client keeps its id until it has been told everything"
    gaps = [await stream.next(), await stream.next()]
    assert [gap.type for gap in gaps] == ["stream.gap"] * 2
    assert {gap.json["channel"] for gap in gaps} == {"orders", "stock"}
    assert {gap.json["reason"] for gap in gaps} == {"unknown_id"}
    assert gaps[0].id == ""
    assert gaps[1].id == str(gateway.daemon.hub.head)
    await gateway.post("orders", "2")
    assert (await stream.next()).json["payload"] == 2


async def test_an_id_from_before_a_restart_is_a_gap_that_heals() -> None:
    """memory:// forgets at a restart; the client is told once, and its next resume is whole again."""
    async with gateway_running() as first:
        old = (await first.post("orders", "1"))[0]
    await asyncio.sleep(0.002)
    async with gateway_running() as second:
        stream = await second.open("/events/orders", {"Last-Event-ID": old})
        assert (await stream.next()).json["resume"] == "gap"
        gap = await stream.next()
        assert gap.json == {"channel": "orders", "reason": "expired", "after": old, "oldest": None}
        again = await second.open("/events/orders", {"Last-Event-ID": gap.id})
        assert (await again.next()).json["resume"] == "complete"


async def test_resume_past_history_is_told_and_then_gives_what_is_left() -> None:
    """Two of five events are left: a gap with their first id, then both."""
    async with gateway_running({"channels": {"orders": {"history": {"events": 2}}}}) as gateway:
        ids = [(await gateway.post("orders", str(number)))[0] for number in range(5)]
        stream = await gateway.open("/events/orders", {"Last-Event-ID": ids[0]})
        assert (await stream.next()).json["resume"] == "gap"
        gap = await stream.next()
        assert gap.json == {"channel": "orders", "reason": "expired", "after": ids[0], "oldest": ids[3]}
        assert gap.id == ids[0], "a client cut here is told again"
        assert [(await stream.next()).id for _ in range(2)] == ids[3:]
        assert await gateway.metric('gaps_total{reason="expired"}') == 1


async def test_only_the_channels_that_lost_something_tell_a_gap() -> None:
    """A busy channel's short history must not accuse a quiet one."""
    over = {"channels": {"orders": {"history": {"events": 1}}}}
    async with gateway_running(over) as gateway:
        first = (await gateway.post("stock", "0"))[0]
        for number in range(3):
            await gateway.post("orders", str(number))
        stream = await gateway.subscribe("/events?channel=orders,stock", {"Last-Event-ID": first})
        assert (await stream.next()).json["channel"] == "orders"
        assert (await stream.next()).json["payload"] == 2


async def test_a_channel_without_history_has_no_ids_and_tells_what_passed() -> None:
    """history: none is fan-out only: live events carry no id, and coming back after some is a gap."""
    async with gateway_running({"channels": {"orders": {"history": "none"}}}) as gateway:
        stream = await gateway.open("/events/orders")
        opening = await stream.next()
        quiet = await gateway.open("/events/orders", {"Last-Event-ID": opening.id})
        assert (await quiet.next()).json["resume"] == "complete"
        await gateway.post("orders", "1")
        message = await stream.next()
        assert message.id == opening.id
        assert message.json["id"] is None
        missed = await gateway.open("/events/orders", {"Last-Event-ID": opening.id})
        assert (await missed.next()).json["resume"] == "gap"


async def test_last_and_since_choose_where_a_stream_begins(gateway: Gateway) -> None:
    """last=N counts back over all channels of the stream; since= takes an id, a time or a duration."""
    ids = []
    for number in range(6):
        ids += await gateway.post(("orders", "stock")[number % 2], str(number))
    for query, expected in (
        ("last=2", ids[4:]),
        ("last=99", ids),
        (f"since={ids[3]}", ids[4:]),
        ("since=1m", ids),
        ("since=2020-01-01T00:00:00Z", ids),
        ("since=2020-01-01", ids),
        ("since=2020-01-01t00:00:00z", ids),
        ("since=2020-01-01T00:00:00+02:00", ids),
        ("since=2020-01-01T00:00:00.5+0200", ids),
        ("since=2020-01-01+00:00", ids),
        ("since=1577836800", ids),
        ("since=1577836800000", ids),
        (
            f"since={ids[3].partition('-')[0]}",
            [id for id in ids if int(id.partition("-")[0]) >= int(ids[3].partition("-")[0])],
        ),
    ):
        stream = await gateway.subscribe(f"/events?channel=orders,stock&{query}")
        got: list[str] = []
        while len(got) < len(expected):
            message = await stream.next()
            got += [message.id] if message.type == "message" else []
        assert got == expected, query
    stream = await gateway.open("/events/orders?last=0")
    assert (await stream.next()).id == ids[-1]


async def test_last_tells_no_gap_for_what_nobody_promised() -> None:
    """last=N beside a channel with no or short history begins quietly: nothing was claimed about the past."""
    over = {"channels": {"orders": {"history": "none"}, "stock": {"history": {"events": 1}}}}
    async with gateway_running(over) as gateway:
        ids = await gateway.post("news", "0")
        for _ in range(3):
            await gateway.post("orders", "1")
            ids += await gateway.post("stock", "2")
        stream = await gateway.subscribe("/events?channel=orders,stock,news&last=2")
        assert [(await stream.next()).id for _ in range(2)] == [ids[0], ids[-1]]
        assert await gateway.metric('gaps_total{reason="expired"}') == 0


async def test_since_before_the_log_is_told_and_a_reconnect_ignores_last(gateway: Gateway) -> None:
    """A start that history cannot give is a gap; a browser's reconnect to the same URL repeats nothing."""
    ids = await gateway.post("orders", "1")
    stream = await gateway.open("/events/orders?since=1h")
    assert (await stream.next()).json["resume"] == "gap"
    stream = await gateway.open("/events/orders?last=1", {"Last-Event-ID": ids[0]})
    opening = await stream.next()
    assert opening.json["resume"] == "complete"
    await gateway.post("orders", "2")
    assert (await stream.next()).json["payload"] == 2


@pytest.mark.parametrize(
    "query",
    ["last=x", "last=-1", "last=100001", "since=soon", "last=1&since=1m", "format=xml", "heartbeat=no"],
)
async def test_a_wrong_query_is_a_400_that_says_what_is_right(gateway: Gateway, query: str) -> None:
    """A typo in a query must not be a stream that silently does something else."""
    stream = await gateway.open(f"/events/orders?{query}")
    assert stream.status == 400
    assert json.loads(await stream.rest())["error"] == "bad_query"
