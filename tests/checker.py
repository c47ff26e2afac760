"""Does every client get every event, once, in order, or is it told? In the style of Jepsen's Kafka workload.

Publishers send numbered events, one publisher per channel, each number once the one before it was accepted.
Clients read several channels on one stream, are cut at random, and resume on a random node with
the last id that they have. So the numbers that a client sees of a channel must grow by one; a step of more
is a loss, which is excused only by a gap told in between. `Run` does this while a test breaks
things; `Verdict` is what came of it.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp

from gateway.core.event import EventId
from tests.support.deadline import safety_net
from tests.support.eventsource import Message, Stream
from tests.support.gateway import eventually
from tests.support.node import Node, kill_all

END = -1
"""The number of a channel's last event: whoever has it is at the end."""

Send = Callable[[str, int], Awaitable[None]]
"""Publishes one number to a channel, until it was accepted."""


@dataclass
class Verdict:
    """All faults, each as (client, channel, what)."""

    lost: list[tuple[int, str, str]] = field(default_factory=list)
    """Missing without a word: the worst."""
    duplicated: list[tuple[int, str, str]] = field(default_factory=list)
    reordered: list[tuple[int, str, str]] = field(default_factory=list)
    told: list[tuple[int, str, str]] = field(default_factory=list)
    """Missing, and a gap said so."""
    events: int = 0
    """How many were received, by all clients together."""
    resumes: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong silently."""
        return not (self.lost or self.duplicated or self.reordered)


class Listening(Protocol):
    """A node, or what stands before several."""

    @property
    def port(self) -> int: ...


class Reader(Protocol):
    """What is judged of a client."""

    number: int
    channels: Sequence[str]
    seen: list[Message]

    @property
    def resumes(self) -> int: ...


@dataclass
class Client:
    """One client's life over many connections."""

    number: int
    channels: Sequence[str]
    nodes: Sequence[Node]
    patience: float = 1.0
    """Seconds that a connection lasts at the most; infinite for a client that stays."""
    pause: float = 0.1
    """Seconds between two connections at the most."""
    seen: list[Message] = field(default_factory=list)
    last_id: str = ""
    resumes: int = 0
    done: set[str] = field(default_factory=set)
    events: int = 0
    newest: dict[str, int] = field(default_factory=dict)
    """The last number that it saw, by channel."""
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    is_staying: bool = False
    """Whether its stream is open, and is one that it will not cut itself."""
    fruitless: int = 0
    """Connections in a row that brought nothing: the next one lasts longer, however slow the machine is."""

    async def run(self) -> None:
        """Read, be cut, resume, until the last event of every channel is here."""
        while self.done < set(self.channels):
            try:
                await self._once(random.choice(self.nodes))
            except (OSError, AssertionError, TimeoutError, asyncio.IncompleteReadError):
                await asyncio.sleep(random.uniform(0.05, 0.2))

    async def _once(self, node: Node) -> None:
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        async with safety_net():
            stream = await Stream.open(node.port, f"/events?channel={','.join(self.channels)}", headers)
        try:
            if stream.status != 200:
                return
            self.resumes += bool(self.last_id)
            before = len(self.seen)
            stays = math.isinf(self.patience)
            lasts = None if stays else random.uniform(0, self.patience * (1 + self.fruitless))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lasts):
                    while self.done < set(self.channels) and await stream.read():
                        self._take(stream)
                        self.is_staying = stays
            self._take(stream)
            self.fruitless = self.fruitless + 1 if len(self.seen) == before else 0
        finally:
            self.is_staying = False
            stream.close()
        await asyncio.sleep(random.uniform(0, self.pause))

    def _take(self, stream: Stream) -> None:
        for message in stream.messages[stream._seen :]:
            self.seen.append(message)
            if message.id:
                self.last_id = message.id
            if message.type == "stream.open":
                self.connected.set()
            elif message.type == "message":
                body = message.json
                self.events += 1
                self.newest[body["channel"]] = body["payload"]
                if body["payload"] == END:
                    self.done.add(body["channel"])
        stream._seen = len(stream.messages)


class Run:
    """Publishers and clients at work; see `running`."""

    def __init__(
        self, nodes: Sequence[Node], channels: Sequence[str], clients: int, send: Send, pace: float
    ) -> None:
        self.nodes = nodes
        self.accepted = dict.fromkeys(channels, 0)
        self.ids: dict[tuple[str, int], str] = {}
        self._send = send
        self._pace = pace
        self._ending = asyncio.Event()
        pairs = [
            tuple(random.sample(list(channels), random.randint(1, len(channels)))) for _ in range(clients)
        ]
        self.clients = [Client(number, pair, nodes) for number, pair in enumerate(pairs)]

    async def publish(self, channel: str) -> None:
        """Send number after number until the end is asked for, then the last one."""
        while not self._ending.is_set():
            await self._send(channel, self.accepted[channel])
            self.accepted[channel] += 1
            await asyncio.sleep(random.uniform(0, 2 * self._pace))
        await self._send(channel, END)

    @property
    def received(self) -> int:
        """How many events all clients together have received."""
        return sum(client.events for client in self.clients)

    @property
    def resumes(self) -> int:
        """How often all clients together have resumed."""
        return sum(client.resumes for client in self.clients)

    async def goes_on(self, events: int) -> None:
        """Wait until so many more events were accepted."""
        until = sum(self.accepted.values()) + events
        await self._eventually(lambda: sum(self.accepted.values()) >= until)

    async def passes_all_through(self) -> None:
        """Wait until of each channel an event has reached a client that is published from now on."""
        wanted = {channel: number + 1 for channel, number in self.accepted.items()}
        read = {channel for client in self.clients for channel in client.channels}

        def newest(channel: str) -> int:
            return max(client.newest.get(channel, -1) for client in self.clients)

        await self._eventually(lambda: all(newest(name) >= wanted[name] for name in read))

    async def _eventually(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            for task in self._publishers:
                if task.done():
                    task.result()  # what ended a publisher, rather than the safety net
            return condition()

        await eventually(holds)

    async def finish(self, *, events: int = 0, resumes: int = 0) -> Verdict:
        """End the publishers, wait until every client is at the end, and judge.

        Before that it waits until so many events were received and so many streams resumed: less would not
        mean much.
        """
        await self._eventually(lambda: self.received >= events and self.resumes >= resumes)
        self._ending.set()
        try:
            async with safety_net():
                await asyncio.gather(*self._publishers)
                await asyncio.gather(*self._readers)
        except TimeoutError:
            waiting = {client.number: set(client.channels) - client.done for client in self.clients}
            raise AssertionError(f"not at the end: {waiting}") from None
        return judge(self.clients)

    async def _start(self) -> None:
        self._readers = [asyncio.create_task(client.run()) for client in self.clients]
        # An event from before a client's first connection is not its business.
        async with safety_net():
            await asyncio.gather(*(client.connected.wait() for client in self.clients))
        self._publishers = [asyncio.create_task(self.publish(channel)) for channel in self.accepted]

    async def _stop(self) -> None:
        for task in (*self._publishers, *self._readers):
            task.cancel()
        await asyncio.gather(*self._publishers, *self._readers, return_exceptions=True)


def judge(clients: Sequence[Reader]) -> Verdict:
    """Return what the clients saw wrong."""
    verdict = Verdict()
    for client in clients:
        verdict.resumes += client.resumes
        last_id = EventId(0, 0)
        expected: dict[str, int | None] = dict.fromkeys(client.channels)
        excused: set[str] = set()
        for message in client.seen:
            if message.type == "stream.gap":
                excused.add(message.json["channel"])
            if message.type != "message":
                continue
            verdict.events += 1
            body = message.json
            channel, number, id = body["channel"], body["payload"], EventId.parse(body["id"])
            assert id is not None
            if id <= last_id:
                verdict.reordered.append((client.number, channel, f"{id} after {last_id}"))
            last_id = id
            wanted = expected[channel] or 0
            if number == END:
                continue
            if number < wanted:
                verdict.duplicated.append((client.number, channel, f"{number} again, at {wanted}"))
            elif number > wanted:
                missing = f"{wanted}..{number - 1}"
                (verdict.told if channel in excused else verdict.lost).append(
                    (client.number, channel, missing)
                )
            excused.discard(channel)
            expected[channel] = max(wanted, number + 1)
    return verdict


def webhook(session: aiohttp.ClientSession, nodes: Sequence[Listening]) -> Send:
    """Return a sender that posts to any node, again and again until one says 200; the key makes it once."""

    async def send(channel: str, number: int) -> None:
        while True:
            node = random.choice(nodes)
            url = f"http://127.0.0.1:{node.port}/hooks/hooks?topic={channel}"
            key = {"Idempotency-Key": f"{channel}-{number}"}
            try:
                async with session.post(url, data=str(number), headers=key) as answer:
                    if answer.status == 200:
                        return
                    # 408: this process did not get to send its body in time.
                    assert answer.status in (408, 503), await answer.text()
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.05)

    return send


@asynccontextmanager
async def running(
    nodes: Sequence[Node],
    *,
    channels: Sequence[str] = ("orders", "stock", "news"),
    clients: int = 8,
    send: Send | None = None,
    pace: float = 0.004,
) -> AsyncIterator[Run]:
    """Start the nodes, publish and read on them; ``pace`` is the seconds between a channel's events."""
    try:
        for node in nodes:
            await node.start()
        timeout = aiohttp.ClientTimeout(total=30)  # a node that is killed resets; one that is frozen does not
        async with aiohttp.ClientSession(timeout=timeout) as session:
            run = Run(nodes, channels, clients, send or webhook(session, nodes), pace)
            try:
                await run._start()
                yield run
            finally:
                await run._stop()
    finally:
        await kill_all(nodes)
