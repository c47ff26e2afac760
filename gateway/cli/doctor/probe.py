"""Examines a target step by step, and reports each finding; it ends where a browser would fail."""

import datetime
import ssl
from collections.abc import Callable, Sequence

from gateway.cli.doctor import network
from gateway.cli.doctor.client import BROWSER_ENCODINGS, ProbeClient, ProbeStream
from gateway.cli.doctor.cors import origin_verdict, preflight_verdict, vary_verdict
from gateway.cli.doctor.response import (
    REDIRECTS,
    ResponseHead,
    compression_verdict,
    headers_verdict,
    query_verdict,
    redirect_verdict,
    status_verdict,
    type_verdict,
)
from gateway.cli.doctor.streaming import (
    ProbeTimeouts,
    ending_verdict,
    first_bytes_verdict,
    heartbeat_verdict,
    resume_verdict,
    unanswered_verdict,
)
from gateway.cli.doctor.target import ProbeTarget
from gateway.cli.doctor.tls import alpn_verdict, handshake_verdicts
from gateway.cli.doctor.transcript import Transcript
from gateway.cli.finding import Finding, Level, bad, ok, skip, warn
from gateway.cli.http_client import CONNECTION_ERRORS, LOOPBACK_HOSTS, describe_network_error
from gateway.core.sanitize import redact_url
from gateway.core.sse import is_valid_last_event_id

OnFinding = Callable[[Finding], None]

MAX_UNKNOWN_NAMES = 5
"""Unknown query names in a report."""

_REST_SKIPPED = skip("the rest", "not checked until that is fixed")


class Probe:
    """Examines one target. `run` it once."""

    def __init__(
        self,
        target: ProbeTarget,
        on_finding: OnFinding,
        context: ssl.SSLContext,
        timeouts: ProbeTimeouts | None = None,
    ) -> None:
        self._target = target
        self._on_finding = on_finding
        self._context = context
        self._timeouts = timeouts or ProbeTimeouts()

    async def run(self) -> None:
        """Run all steps. Cancelling is safe."""
        if not await self._check_transport():
            self._on_finding(_REST_SKIPPED)
            return
        async with ProbeClient(self._target, self._context, self._timeouts) as client:
            await self._check_http(client)

    # Before HTTP.

    async def _check_transport(self) -> bool:
        """Check name, connection and TLS; False if HTTP is impossible."""
        addresses = await self._check_name()
        return bool(addresses) and await self._check_tcp(addresses) and await self._check_tls()

    async def _check_name(self) -> Sequence[str]:
        host = self._target.host
        try:
            addresses = await network.resolve(host, self._target.port, self._timeouts.connect_seconds)
        except (OSError, TimeoutError, UnicodeError) as error:
            fix = "check the spelling, and the name's A and AAAA records"
            self._on_finding(bad("name", f"{host} does not resolve: {describe_network_error(error)}", fix))
            return []
        self._on_finding(ok("name", f"{host} is {', '.join(addresses)}"))
        return addresses

    async def _check_tcp(self, addresses: Sequence[str]) -> bool:
        port = self._target.port
        attempts = await network.connect_all(addresses, port, self._timeouts.connect_seconds)
        failed = [f"{each.address}: {each.error}" for each in attempts if each.error]
        if len(failed) == len(attempts):
            fix = "check that the proxy listens there, and the firewall"
            self._on_finding(bad("tcp", f"no connection to port {port} ({'; '.join(failed)})", fix))
            return False
        if failed:
            fix = "remove dead addresses from the DNS, or check this machine's route to them"
            found = f"port {port} is not open at every address ({'; '.join(failed)})"
            self._on_finding(warn("tcp", found, fix))
        else:
            slowest = max(each.seconds for each in attempts)
            self._on_finding(ok("tcp", f"connected to port {port} in {slowest * 1000:.0f} ms"))
        return True

    async def _check_tls(self) -> bool:
        target = self._target
        if not target.is_tls:
            if target.host not in LOOPBACK_HOSTS:
                found = "plain HTTP: https pages may not open it, and tokens are sent in plain text"
                self._on_finding(warn("tls", found, "put TLS in front of it, and give clients the https URL"))
            self._on_finding(alpn_verdict(None))
            return True
        seen = await network.handshake(
            target.host, target.port, self._context, self._timeouts.connect_seconds
        )
        findings = handshake_verdicts(seen, target.host, datetime.datetime.now(datetime.UTC))
        for finding in findings:
            self._on_finding(finding)
        # A token, or a ticket in the URL, is not sent to a server whose certificate is bad.
        if any(finding.level is Level.BAD for finding in findings):
            return False
        self._on_finding(alpn_verdict(seen.alpn))
        return True

    # HTTP.

    async def _check_http(self, client: ProbeClient) -> None:
        for name in self._target.unknown_query_names[:MAX_UNKNOWN_NAMES]:
            self._on_finding(query_verdict(name))
        try:
            stream = await client.open_stream(encodings=BROWSER_ENCODINGS)
        except TimeoutError:
            await self._check_without_answer(client)
            return
        except CONNECTION_ERRORS as error:
            fix = "see the log of the server that listens there"
            self._on_finding(bad("status", f"no HTTP response: {describe_network_error(error)}", fix))
            return
        try:
            if not await self._check_response(client, stream):
                return
            is_plain = self._check_headers(stream.head)
            plain = stream if is_plain else await self._reopen_uncompressed(client)
            if plain is None:
                self._on_finding(skip("heartbeat", "not checked: the stream is always compressed"))
            else:
                await self._check_stream(client, plain)
            await self._check_preflight(client)
        finally:
            stream.close()

    async def _check_without_answer(self, client: ProbeClient) -> None:
        head = await client.fetch_head()
        self._on_finding(unanswered_verdict(self._timeouts.response_seconds, head.status if head else None))
        if head is not None and head.status == 200:
            self._check_headers(head)
            await self._check_preflight(client)
        self._on_finding(_REST_SKIPPED)

    async def _check_response(self, client: ProbeClient, stream: ProbeStream) -> bool:
        head, target = stream.head, self._target
        if head.status in REDIRECTS:
            final = await client.follow_redirects(head.get("Location"))
            self._on_finding(redirect_verdict(head.status, None if final is None else redact_url(final)))
            return False
        body = b"" if head.status == 200 else await stream.read_body(self._timeouts.late_seconds)
        status = status_verdict(head, body, has_token=target.token is not None)
        self._on_finding(status)
        if status.level is Level.OK:
            kind = type_verdict(head)
            self._on_finding(kind)
            if kind.level is not Level.BAD:
                return True
        self._check_cors(head)
        if target.origin is not None:
            await self._check_preflight(client)
        self._on_finding(_REST_SKIPPED)
        return False

    def _check_headers(self, head: ResponseHead) -> bool:
        """Report on the headers of a stream; False if it is compressed."""
        compression = compression_verdict(head)
        self._on_finding(compression)
        self._on_finding(headers_verdict(head))
        self._check_cors(head)
        return compression.level is Level.OK

    def _check_cors(self, head: ResponseHead) -> None:
        if self._target.origin is None:
            self._on_finding(
                skip("cors", "not checked: pass the page's origin with --origin https://app.example.com")
            )
            return
        self._on_finding(origin_verdict(head, self._target.origin))
        self._on_finding(vary_verdict(head))

    async def _check_preflight(self, client: ProbeClient) -> None:
        if self._target.origin is None:
            return
        head = await client.send_preflight()
        if head is None:
            self._on_finding(bad("preflight", "no response to OPTIONS", "forward OPTIONS to the gateway"))
        else:
            self._on_finding(preflight_verdict(head, self._target.origin))

    # The stream.

    async def _reopen_uncompressed(self, client: ProbeClient) -> ProbeStream | None:
        """Request the stream without compression, to see the rest; None if it is still compressed."""
        try:
            stream = await client.open_stream()
        except CONNECTION_ERRORS:
            return None
        if stream.head.status == 200 and compression_verdict(stream.head).level is Level.OK:
            return stream
        stream.close()
        return None

    async def _check_stream(self, client: ProbeClient, stream: ProbeStream) -> None:
        timeouts = self._timeouts
        try:
            first = await self._read_first_event(stream)
            self._on_finding(first_bytes_verdict(first, timeouts))
            if not first.arrivals:
                self._on_finding(skip("heartbeat", "not checked until that is fixed"))
                return
            transcript = await stream.listen(timeouts.listen_seconds)
        finally:
            stream.close()
        if transcript.close_reason is None or transcript.open_event is not None:
            self._on_finding(heartbeat_verdict(transcript, timeouts))
        self._on_finding(ending_verdict(transcript, timeouts))
        self._on_finding(resume_verdict(transcript, await self._resume(client, transcript)))

    async def _read_first_event(self, stream: ProbeStream) -> Transcript:
        deadline = stream.head_at_seconds + self._timeouts.response_seconds
        return await stream.listen(deadline, lambda: stream.recorder.has_first_event)

    async def _resume(self, client: ProbeClient, transcript: Transcript) -> Transcript | None:
        """Reconnect with the last event id; None if that fails, or there is no id to send."""
        last_id = transcript.last_id
        if transcript.open_event is None or not last_id or not is_valid_last_event_id(last_id):
            return None
        try:
            stream = await client.open_stream(last_id=last_id)
        except CONNECTION_ERRORS:
            return None
        try:
            return await self._read_first_event(stream)
        finally:
            stream.close()
