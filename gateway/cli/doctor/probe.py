"""The walk: step by step, each told as soon as it is known; it ends where a browser would."""

import datetime
import ssl
from collections.abc import Callable, Sequence

import aiohttp

from gateway.cli.doctor import network
from gateway.cli.doctor.answer import (
    REDIRECTS,
    Head,
    compression_verdict,
    headers_verdict,
    query_verdict,
    redirect_verdict,
    status_verdict,
    type_verdict,
)
from gateway.cli.doctor.arrivals import (
    ending_verdict,
    first_bytes_verdict,
    heartbeat_verdict,
    resume_verdict,
    unanswered_verdict,
)
from gateway.cli.doctor.certificate import alpn_verdict, handshake_verdicts
from gateway.cli.doctor.client import BROWSER_ENCODINGS, Client, Stream
from gateway.cli.doctor.cors import origin_verdict, preflight_verdict, vary_verdict
from gateway.cli.doctor.finding import Finding, Level, bad, ok, skip, warn
from gateway.cli.doctor.target import Target
from gateway.cli.doctor.timeouts import Patience
from gateway.cli.doctor.transcript import Heard
from gateway.core.sse import can_be_sent
from gateway.core.text import shown

Tell = Callable[[Finding], None]

MOST_NAMES = 5
"""Most unknown query names in one report."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Walk:
    """Examines one target. `run` it once."""

    def __init__(
        self, target: Target, tell: Tell, context: ssl.SSLContext, patience: Patience | None = None
    ) -> None:
        self._target = target
        self._tell = tell
        self._context = context
        self._patience = patience or Patience()

    async def run(self) -> None:
        """Take all steps. Cancelling is safe."""
        if not await self._reach():
            self._tell(skip("the rest", "cannot be seen before that is mended"))
            return
        async with Client(self._target, self._context, self._patience) as client:
            await self._ask(client)

    # Before HTTP.

    async def _reach(self) -> bool:
        """Resolve, connect, shake hands; False where nothing can follow."""
        addresses = await self._resolve()
        return bool(addresses) and await self._connect(addresses) and await self._secure()

    async def _resolve(self) -> Sequence[str]:
        host = self._target.host
        try:
            addresses = await network.resolve(host, self._target.port, self._patience.connect)
        except (OSError, TimeoutError, UnicodeError) as error:
            mend = "check the spelling, and the name's A and AAAA records"
            self._tell(bad("name", f"{host} does not resolve: {network.reason(error)}", mend))
            return []
        self._tell(ok("name", f"{host} is {', '.join(addresses)}"))
        return addresses

    async def _connect(self, addresses: Sequence[str]) -> bool:
        port = self._target.port
        attempts = await network.connect(addresses, port, self._patience.connect)
        failed = [f"{each.address}: {each.error}" for each in attempts if each.error]
        if len(failed) == len(attempts):
            mend = "check that the proxy listens there, and the firewall"
            self._tell(bad("tcp", f"no connection to port {port} ({'; '.join(failed)})", mend))
            return False
        if failed:
            mend = "take dead addresses out of the DNS (or is it this machine that has no route there?)"
            self._tell(warn("tcp", f"port {port} is not open at every address ({'; '.join(failed)})", mend))
        else:
            slowest = max(each.seconds for each in attempts)
            self._tell(ok("tcp", f"connected to port {port} in {slowest * 1000:.0f} ms"))
        return True

    async def _secure(self) -> bool:
        target = self._target
        if not target.is_tls:
            if target.host not in _LOOPBACK:
                found = (
                    "plain HTTP: pages that came by https may not open it, and tokens can be read on the way"
                )
                self._tell(warn("tls", found, "put TLS in front of it, and give clients the https URL"))
            self._tell(alpn_verdict(None))
            return True
        seen = await network.handshake(target.host, target.port, self._context, self._patience.connect)
        findings = handshake_verdicts(seen, target.host, datetime.datetime.now(datetime.UTC))
        for finding in findings:
            self._tell(finding)
        # The token, or a ticket in the URL, is not sent to whom the certificate does not name.
        if any(finding.level is Level.BAD for finding in findings):
            return False
        self._tell(alpn_verdict(seen.alpn))
        return True

    # HTTP.

    async def _ask(self, client: Client) -> None:
        for name in self._target.unknown_names[:MOST_NAMES]:
            self._tell(query_verdict(name))
        try:
            stream = await client.stream(encodings=BROWSER_ENCODINGS)
        except TimeoutError:
            await self._unanswered(client)
            return
        except (aiohttp.ClientError, OSError) as error:
            mend = "see the log of what listens there"
            self._tell(bad("status", f"no HTTP answer: {network.reason(error)}", mend))
            return
        try:
            if not await self._is_stream(client, stream):
                return
            is_plain = self._headers(stream.head)
            heard = stream if is_plain else await self._uncompressed(client)
            if heard is None:
                self._tell(skip("heartbeat", "cannot be seen: the stream is compressed for everybody"))
            else:
                await self._listen(client, heard)
            await self._preflight(client)
        finally:
            stream.close()

    async def _unanswered(self, client: Client) -> None:
        head = await client.head()
        self._tell(unanswered_verdict(self._patience.answer, head.status if head else None))
        if head is not None and head.status == 200:
            self._headers(head)
            await self._preflight(client)
        self._tell(skip("the rest", "cannot be seen before that is mended"))

    async def _is_stream(self, client: Client, stream: Stream) -> bool:
        head, target = stream.head, self._target
        if head.status in REDIRECTS:
            final = await client.follow(head.get("Location"))
            self._tell(redirect_verdict(head.status, None if final is None else shown(final)))
            return False
        body = b"" if head.status == 200 else await stream.body(self._patience.late)
        status = status_verdict(head, body, has_token=target.token is not None)
        self._tell(status)
        if status.level is Level.OK:
            kind = type_verdict(head)
            self._tell(kind)
            if kind.level is not Level.BAD:
                return True
        self._cors(head)
        if target.origin is not None:
            await self._preflight(client)
        self._tell(skip("the rest", "cannot be seen before that is mended"))
        return False

    def _headers(self, head: Head) -> bool:
        """Tell about the headers of a stream; False if it is compressed."""
        compression = compression_verdict(head)
        self._tell(compression)
        self._tell(headers_verdict(head))
        self._cors(head)
        return compression.level is Level.OK

    def _cors(self, head: Head) -> None:
        if self._target.origin is None:
            self._tell(skip("cors", "not looked at: name the page by --origin https://app.example.com"))
            return
        self._tell(origin_verdict(head, self._target.origin))
        self._tell(vary_verdict(head))

    async def _preflight(self, client: Client) -> None:
        if self._target.origin is None:
            return
        head = await client.preflight()
        if head is None:
            self._tell(bad("preflight", "OPTIONS is not answered", "pass OPTIONS on to the gateway"))
        else:
            self._tell(preflight_verdict(head, self._target.origin))

    # The stream.

    async def _uncompressed(self, client: Client) -> Stream | None:
        """Ask again so that no compressor may take part, and the rest can be seen; None if one does."""
        try:
            stream = await client.stream()
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None
        if stream.head.status == 200 and compression_verdict(stream.head).level is Level.OK:
            return stream
        stream.close()
        return None

    async def _listen(self, client: Client, stream: Stream) -> None:
        patience = self._patience
        ear = stream.ear
        try:
            first = await stream.hear(stream.head_at + patience.answer, lambda: ear.has_begun)
            self._tell(first_bytes_verdict(first, patience))
            if not first.arrivals:
                self._tell(skip("heartbeat", "cannot be seen before that is mended"))
                return
            heard = await stream.hear(patience.listen)
        finally:
            stream.close()
        if heard.close_reason is None or heard.opened is not None:
            self._tell(heartbeat_verdict(heard, patience))
        self._tell(ending_verdict(heard, patience))
        self._tell(resume_verdict(heard, await self._again(client, heard)))

    async def _again(self, client: Client, heard: Heard) -> Heard | None:
        """Reconnect as a browser does."""
        if heard.opened is None or not heard.last_id or not can_be_sent(heard.last_id):
            return None
        try:
            stream = await client.stream(last_id=heard.last_id)
        except (TimeoutError, aiohttp.ClientError, OSError):
            return None
        try:
            return await stream.hear(stream.head_at + self._patience.answer, lambda: stream.ear.has_begun)
        finally:
            stream.close()
