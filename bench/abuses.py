"""What strangers do to a gateway, in doses: the same for the abuse run of the tests and for the benchmark.

A dose is one connection, and bounded in bytes and time. Its ``number`` picks the variant, so that a run can
be repeated. All go to one port of loopback, from an address of the attacker's own.
"""

import asyncio
import contextlib
import gzip
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

HOST = b" HTTP/1.1\r\nHost: gateway\r\n"

QUIET = 0.05
"""Seconds without another byte after which an answer counts as whole."""

LONG = 1 << 20
"""Bytes of a head that has no end."""

BOMB = 64 << 20
"""Bytes that a bomb becomes."""


@dataclass
class Attacker:
    """Somebody at an address. ``channel`` and ``hook`` are what he may ask for and post to."""

    port: int
    address: str = "127.0.0.20"
    channel: str = "orders"
    hook: str = "/hooks/hooks?topic=orders"
    patience: float = 2.0
    """Seconds after which he gives up."""
    hold_seconds: float = 2.0
    """How long he keeps a connection on which he reads no answer."""
    large: int = 20
    """MiB that are too many for a body."""
    answers: Counter[str] = field(default_factory=Counter)
    """Statuses; ``cut`` where the connection ended without one, ``none`` where he gave up.

    TCP drops an answer that a client has not read when it goes on sending to a server that has closed.
    """

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Connect; leaving the block is a reset."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(self.address, 0))
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def send(self, *parts: bytes, pause: float = 0.0) -> bytes:
        """Send bytes, wait ``pause`` seconds between two parts, and return what is said to them."""
        answer = b""
        try:
            async with asyncio.timeout(self.patience), self.connection() as (reader, writer):
                sending = asyncio.ensure_future(_send(writer, parts, pause))
                try:
                    answer = await _heard(reader)
                finally:
                    sending.cancel()
        except TimeoutError:
            self.answers["none"] += 1
            return answer
        except OSError:
            pass
        self.answers[answer[9:12].decode("latin-1") if answer else "cut"] += 1
        return answer

    async def hold(self, *parts: bytes) -> None:
        """Send bytes and keep the connection for `hold_seconds`, without reading."""
        seconds = min(self.patience, self.hold_seconds)
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds), self.connection() as (reader, writer):
                await _send(writer, parts, 0)
                reader._transport.pause_reading()  # type: ignore[attr-defined]  # the kernel's buffer fills
                await asyncio.sleep(seconds)

    @property
    def stream(self) -> bytes:
        """The first line of a request for a stream, and its host."""
        return b"GET /events/" + self.channel.encode() + HOST

    @property
    def post(self) -> bytes:
        """The same of a post."""
        return b"POST " + self.hook.encode() + HOST


async def _send(writer: asyncio.StreamWriter, parts: Sequence[bytes], pause: float) -> None:
    with contextlib.suppress(OSError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            if pause:
                await asyncio.sleep(pause)


async def _heard(reader: asyncio.StreamReader) -> bytes:
    """Return what comes, up to the end or a silence; an interim answer is no answer."""
    got = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while part := await _read(reader, None if got in (b"", _CONTINUE) else QUIET):
            got += part
    return got.removeprefix(_CONTINUE)


async def _read(reader: asyncio.StreamReader, seconds: float | None) -> bytes:
    return await asyncio.wait_for(reader.read(1 << 16), seconds)


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"

Dose = Callable[[Attacker, int], Awaitable[object]]


async def slowloris(attacker: Attacker, number: int) -> None:
    """A head, a byte at a time; a chunked body, a byte at a time."""
    if number % 2:
        head = attacker.stream + b"X: " + b"a" * 200
    else:
        head = attacker.post + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50
    await attacker.send(*(head[at : at + 1] for at in range(len(head))), pause=0.05)


async def silence(attacker: Attacker, _: int) -> None:
    """Connects, and says nothing."""
    await attacker.send()


async def header_flood(attacker: Attacker, number: int) -> None:
    """A head of very many headers, one long one, a long URL, or one without an end."""
    start = attacker.stream if number % 2 else attacker.post
    heads = (
        start + b"".join(b"X-%d: y\r\n" % each for each in range(2000)) + b"\r\n",
        start + b"X: " + b"a" * LONG,
        b"GET /events?" + b"a=b&" * (LONG // 4),
        start + b"X: y\r\n" * (LONG // 6),
        start + b"Cookie: " + b"a=b; " * 1500 + b"\r\n\r\n",
    )
    await attacker.send(heads[number % len(heads)])


async def oversize(attacker: Attacker, number: int) -> None:
    """A body that says it is too large, one that grows too large, and one that says less than it is."""
    megabyte = b"100000\r\n" + b"0" * (1 << 20) + b"\r\n"
    head = attacker.post
    sent = (
        (head + b"Content-Length: 10000000000\r\n\r\n" + b"0" * (1 << 20),),
        (head + b"Transfer-Encoding: chunked\r\n\r\n", *[megabyte] * attacker.large),
        (head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n1\r\n" * 20_000 + b"0\r\n\r\n",),
        (head + b"Expect: 100-continue\r\nContent-Length: 10000000000\r\n\r\n",),
        (head + b"Content-Length: 2\r\n\r\n11" + b"2" * 100_000,),
    )
    await attacker.send(*sent[number % len(sent)])


async def bombs(attacker: Attacker, number: int) -> None:
    """A small body that becomes a large one."""
    coding, body = _bombs()[number % len(_bombs())]
    head = attacker.post + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding, len(body))
    await attacker.send(head + body)


def prepare() -> None:
    """Make what takes time to make."""
    _bombs()


@cache
def _bombs() -> Sequence[tuple[bytes, bytes]]:
    once = gzip.compress(b"0" * BOMB)
    return (
        (b"gzip", once),
        (b"deflate", zlib.compress(b"[" * BOMB)),
        (b"gzip", gzip.compress(once)),
        (b"gzip", gzip.compress(b'"' + b"a" * 1000) * 1000),
        (b"gzip", once[: len(once) // 2]),
        (b"gzip, gzip", gzip.compress(once)),
    )


WRONG = (b"\0", b"\r", b"\n", b"\r\n\r\n", b"\xff", b":", b" ", b"\x80\x81")
"""What stands in no request where it should not."""


async def malformed(attacker: Attacker, number: int) -> None:
    """A good request with some bytes that are not."""
    luck = random.Random(number)
    stream = attacker.stream + b"Last-Event-ID: 17-0\r\nOrigin: https://a.example.com\r\n\r\n"
    body = (
        attacker.post
        + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n"
    )
    request = bytearray(luck.choice((stream, body)))
    for _ in range(luck.randint(1, 6)):
        at = luck.randrange(len(request))
        wrong = luck.choice(
            (b"\0", b"\r", b"\n", b"\r\n\r\n", b"\xff", b":", b" ", b"\x80\x81", luck.randbytes(3))
        )
        if luck.random() < 0.5:
            request[at : at + luck.randint(0, 3)] = wrong
        else:
            del request[at : at + luck.randint(1, 8)]
    await attacker.send(bytes(request))


async def connects(attacker: Attacker, number: int) -> None:
    """Connects and goes, with or without a word; or asks for a stream, and goes."""
    if number % 4 == 0:
        await attacker.send(attacker.stream + b"\r\n")
        return
    with contextlib.suppress(OSError):
        async with attacker.connection() as (_, writer):
            if number % 4 == 1:
                writer.write(attacker.stream[: 1 + number % len(attacker.stream)])


async def chatter(attacker: Attacker, number: int) -> None:
    """Sends on a stream, where nothing is expected; asks much, and reads nothing of the answers."""
    if number % 2:
        await attacker.send(attacker.stream + b"\r\n", *[b"x" * 20_000] * 10, pause=0.01)
    else:
        await attacker.hold(*[(b"GET /nothing" + HOST + b"\r\n") * 200] * 20)


FORGED_IDS = (
    *(b"x", b"1", b"-", b"1-", b"-1", b"1-2-3", b"-5-0", b"1--1", b"+1-0", b"1.5-0", b"0x1-0"),
    *(
        b"0-0",
        b" 1-0 ",
        b"1-0, 2-0",
        b"99999999999999-0",
        b"1763870000001-0",
        b"17638700000010-0",
        b"NaN",
        b"$",
    ),
    *(b"9" * 15 + b"-" + b"9" * 10, b"9" * 16 + b"-0", b"9" * 400 + b"-0", b"0-" + b"9" * 11),
    "\N{ARABIC-INDIC DIGIT ONE}-\N{ARABIC-INDIC DIGIT TWO}".encode(),
    *("\N{FULLWIDTH DIGIT ONE}-0".encode(), "\N{SUPERSCRIPT TWO}-0".encode()),
    *(b"\xff\xfe", b"1-0\xff", b"%00", b"1-0%0d%0a", b"\\r\\n1-0", b"9" * 8000, b"a" * 8000),
    *(b"../../etc/passwd", b"'; DROP TABLE events; --", b"*"),
)
"""What is no id of ours, or none of this log."""


async def forged_ids(attacker: Attacker, number: int) -> None:
    """Resumes from where nobody has been."""
    id = FORGED_IDS[number % len(FORGED_IDS)]
    await attacker.send(attacker.stream + b"Last-Event-ID: " + id + b"\r\n\r\n")


async def forged_answers(attacker: Attacker, number: int) -> None:
    """Answers heartbeats that nobody sent, of streams that nobody has."""
    connection, code = b"%024x" % number, b"%032x" % number
    body = (
        b"%08x-1-%b" % (number, code),
        b'{"nonce":"%08x-7-%b"}' % (number, code),
        b"x" * (1 << 16),
        b"\xff\x00{",
        b"",
    )[number % 5]
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    await attacker.send(b"POST /streams/" + connection + b"/ack" + HOST + length + body)


INNER = b"POST /hooks/hooks?topic=inner" + HOST + b"Content-Length: 1\r\n\r\n1"
"""The request that must not be executed."""


def smuggled(start: bytes) -> dict[str, bytes]:
    """Return posts (``start`` is the first line and the host) that two readers could cut differently."""
    none = b"0\r\n\r\n"
    chunks = b"\r\n1\r\n1\r\n" + none
    length = len(INNER)
    old = start.replace(b"/1.1", b"/1.0")
    coding = start + b"Transfer-Encoding: "
    table = {
        "length and chunks": start + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n" + none + b"X",
        "chunks and length": start + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + none,
        "two codings": coding + b"chunked\r\nTransfer-Encoding: identity\r\n" + chunks,
        "two codings, last is chunked": coding + b"identity\r\nTransfer-Encoding: chunked\r\n" + chunks,
        "chunked twice": start + b"Transfer-Encoding: chunked, chunked\r\n" + chunks,
        "coding of another name": start + b"Transfer-Encoding: xchunked\r\n" + chunks,
        "quoted coding": start + b'Transfer-Encoding: "chunked"\r\n' + chunks,
        "coding after a tab": start + b"Transfer-Encoding:\x0bchunked\r\n" + chunks,
        "space before the colon": start + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n" + none,
        "folded coding": start + b"Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n" + none,
        "folded header": start + b"X: a\r\n Content-Length: 1\r\n\r\n1",
        "two lengths": start + b"Content-Length: 1\r\nContent-Length: %d\r\n\r\n1" % (length + 1),
        "two lengths, alike": start + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n1",
        "list of lengths": start + b"Content-Length: 1, 1\r\n\r\n1",
        "length with a sign": start + b"Content-Length: +1\r\n\r\n1",
        "length below zero": start + b"Content-Length: -1\r\n\r\n",
        "hexadecimal length": start + b"Content-Length: 0x1\r\n\r\n1",
        "length in two words": start + b"Content-Length: 1 1\r\n\r\n1",
        "length with an underscore": start + b"Content-Length: 1_0\r\n\r\n1",
        "length that overflows": start + b"Content-Length: 18446744073709551617\r\n\r\n1",
        "no length": start + b"Content-Length:\r\n\r\n",
        "bare LF": (start + b"Content-Length: 1\r\n\r\n1").replace(b"\r\n", b"\n"),
        "bare LF in a header": start + b"X: a\nContent-Length: 0\r\n\r\n",
        "bare CR in a header": start + b"X: a\rContent-Length: 1\r\n\r\n1",
        "NUL in a header": start + b"X: a\0\r\nContent-Length: 1\r\n\r\n1",
        "header without a name": start + b": a\r\nContent-Length: 1\r\n\r\n1",
        "LF ends the extension": start + CHUNKED + b"1;a\n1\r\n" + none,
        "CR in an extension": start + CHUNKED + b"1;a\rb\r\n1\r\n" + none,
        "size that overflows": start + CHUNKED + b"10000000000000001\r\n1\r\n" + none,
        "size below zero": start + CHUNKED + b"-1\r\n1\r\n" + none,
        "size with a prefix": start + CHUNKED + b"0x1\r\n1\r\n" + none,
        "size after a space": start + CHUNKED + b" 1\r\n1\r\n" + none,
        "size before a space": start + CHUNKED + b"1 \r\n1\r\n" + none,
        "LF ends a chunk": start + CHUNKED + b"1\r\n1\n0\r\n\r\n",
        "nothing ends a chunk": start + CHUNKED + b"1\r\n10\r\n\r\n",
        "trailer without a colon": start + CHUNKED + b"1\r\n1\r\n0\r\nX\r\n\r\n",
        "chunks of HTTP/1.0": old + b"Transfer-Encoding: chunked\r\n" + chunks,
        "chunks of HTTP/1.0, kept": old + b"Connection: keep-alive\r\n" + CHUNKED + chunks[2:],
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    }
    whole = {
        "as a body": start + b"Content-Length: %d\r\n\r\n" % length,
        "as a body that is refused": start + b"Expect: nothing\r\nContent-Length: %d\r\n\r\n" % length,
        "as a chunk": start + CHUNKED + b"%x\r\n" % length,
    }
    hidden = {name: request + INNER for name, request in {**table, **whole}.items()}
    hidden["as a chunk"] += b"\r\n" + none
    return hidden


async def smuggling(attacker: Attacker, number: int) -> None:
    """Hides a request in another one."""
    requests = [*smuggled(attacker.post).values()]
    await attacker.send(requests[number % len(requests)])


ABUSES: Mapping[str, Dose] = {
    dose.__name__: dose
    for dose in (
        slowloris,
        silence,
        header_flood,
        oversize,
        bombs,
        malformed,
        connects,
        chatter,
        forged_ids,
        forged_answers,
        smuggling,
    )
}
"""By name."""
