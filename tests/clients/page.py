"""Renders docs/clients.md from what the zoo of clients finds; ``UPDATE_CLIENTS=1 pytest tests/clients`` writes it."""

import configparser
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tests.clients.catalog import CLIENTS, About
from tests.clients.expected import BEST, CUTS, ENDS, LOSSES, SCENARIOS, Loss, asked_in, expected
from tests.clients.python import httpx_client, requests_client
from tests.clients.trial import WHOLE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "clients.md"

_HEAD = """# Clients

How existing SSE clients behave with the gateway: unmodified packages, used as their documentation says, against a running
gateway and through connections that are cut. `make clients-table` runs them and writes this page; a test fails if a
client of the first two tables does better or worse than documented here. [Seventeen more libraries](#more-libraries) were run
once; [the settings](#settings) that each library needs are below.

- **No client loses an event** as long as it keeps the last id of a complete event and sends it when it
  reconnects. The losses in the table below are caused by the client itself.
- In a page, use [our client](guides/frontend.md), or the browser's own `EventSource`. In Node, our client or `eventsource`. In
  Python, httpx-sse in the loop below.
- A connection can die silently (a laptop that slept, a firewall that dropped its state): only clients with a read timeout
  notice. The gateway sends a heartbeat every `timeouts.heartbeat` (15 s); set a client's read timeout to 2.5 to 3 times that, or
  request heartbeats more often: with `?heartbeat=4s`, or any value from `timeouts.heartbeat_minimum` (4 s) up. A client whose read
  timeout is shorter than the heartbeat reconnects for ever; the gateway detects it, logs `client_read_timeout_too_short` once, and
  counts it in `client_timeout_disconnects_total`.
- `format=envelope` (the default) is one line of JSON, which no parser alters. With `format=data` some alter text that
  contains line ends or starts with blanks.

| client | version | resumes by | detects a dead connection by | without a loss in | recommendation |
|---|---|---|---|---|---|
"""

_LOSSES = """
The numbers exclude scenarios that do not apply to a client: ours reads envelopes only.
Libraries use `?format=envelope`; ours over EventSource `?format=message`, with a ticket in place of its token.

## Losses by design of the client

Six events are published, and the connection is cut while the third is being sent. A *cut* is visible to the client:
HTTP/1.1's last chunk is missing. It *ended* if a proxy that speaks HTTP/1.0 is in between: there the end of a cut
stream looks like any other end. **lost 3**: the third event never arrives; **twice 3**: it arrives twice; **torn 1**: the client
delivers an event that was never published; **stops**: the client gives up, and no later event arrives.

| client | because | what happens |
|---|---|---|
"""

_SCENARIOS = """
## The scenarios

| scenario | expected result |
|---|---|
"""

_MORE = """
## More libraries

Run once or twice each, on loopback, in November 2026. *Payload*: 99 events in both formats, two of 200 KB. *End*: resumes after
a stream that the gateway ended, with everything once and in order; *kill*: the same after `kill -9` and 3 s without a
gateway. *401*, *503*: its reaction. *Cut*: a connection cut or ended in the middle of an event.

| library | payload | end | kill | read timeout | `retry:` | 401, 503 | cut |
|---|---|---|---|---|---|---|---|
| r3labs/sse 2.10.0 (Go) | to 64 KiB | **stops** | ✓ | none | own backoff | retries | **torn, twice, half an id** |
| donovanhide/eventsource 2021-08 (Go) | ✓ | ✓ | ✓ | none | ✓ | stops; after a good stream it retries, doubling | ✓ |
| okhttp-sse 4.12.0, 5.1.0 (a loop around it) | ✓ | ✓ | ✓ | `readTimeout`, **10 s** | caller's | caller's | ✓ |
| Spring WebClient 6.2.8 (`retry`, `repeat`) | drops empty lines | ✓ | ✓ | `responseTimeout` | caller's | caller's | ended: torn, twice |
| Ktor 3.1.3 with CIO (loop) | joins lines with CRLF | ✓ | ✓ | `socketTimeoutMillis` | with attempts > 0 | caller's | ✓ |
| Jersey 3.1.9 (JAX-RS) | strips blanks | ✓ | **stops** | `readTimeout`, then **stops** | ✓ | stops; obeys `Retry-After` | ended: torn, twice |
| JDK HttpClient 17 (loop) | ✓ | ✓ | ✓ | none | caller's | caller's | ✓ |
| reqwest-eventsource 0.6.0 (Rust) | ✓ | ✓ | ✓ | `read_timeout` of reqwest | ✓ | stops | ✓ |
| eventsource-stream 0.2.3 (Rust, loop) | ✓ | ✓ | ✓ | `read_timeout` of reqwest | caller's | caller's | ✓ |
| sseer 0.3.1 (Rust) | ✓ | ✓ | **stops** | `read_timeout` | doubles it | stops | ✓ |
| eventsource 4.1.1 (npm) | ✓ | ✓ | ✓ | none | ✓ | stops | ✓ |
| undici 7.30.2 EventSource | ✓ | ✓ | ✓ | `bodyTimeout`, 300 s | ✓ | stops | ✓ |
| eventsource-parser 3.1.1/stream (loop) | ✓ | ✓ | ✓ | none | caller's | caller's | ✓ |
| requests-sse 0.5.3 | strips blanks and the last LF | ✓ | ✓ | `timeout`, off | doubles it | stops | ended within a character: stops |
| sseclient 0.0.27 | splits at U+2028 in `format=data` | ✓, and an empty event each | **raises** | `timeout`, raises | ✓ | stops | ended: torn, twice |
| aiosseclient 0.1.8 (in a loop: ✓) | splits at U+2028 in `format=data` | **over** | **over** | none | caller's | over, without an error | stops |
| aiohttp-sse-client 0.2.1 | strips blanks and LFs | ✓ | **raises** | `sock_read`, raises | ✓ | stops | **raises** |

All of them keep ids unchanged, and send the id of `stream.open` if no event has arrived yet. They receive `stream.gap` as an
event, and continue; on `overloaded` they retry every 1 to 6 s until there is room.

## Settings

| library | set | because |
|---|---|---|
| any | a read timeout of 2.5 to 3 heartbeats (45 s); where it must be shorter, `?heartbeat=` of at most four fifths of it | silence is the only sign of a connection that died |
| okhttp-sse | `OkHttpClient.Builder().readTimeout(45, SECONDS)`, and a loop of your own that sends `Last-Event-ID` | 10 s; it never reconnects by itself |
| okhttp-eventsource | `ConnectStrategy.http(uri).readTimeout(45, SECONDS)`; close it after a 401, 403 or 404 | 5 s; it retries for ever |
| clients that cannot be changed | `timeouts.heartbeat: 4s` in the gateway | then both OkHttp clients and httpx stay connected |
| launchdarkly/eventsource | `StreamOptionReadTimeout(45*time.Second)`, `StreamOptionCanRetryFirstConnection(-1)`, an error handler that closes on `SubscriptionError` 401, 403, 404 | no timeout by default; it retries every second after a 401 |
| tmaxmax/go-sse | `connection.Buffer(nil, 1<<20)`; a loop around `Connect` where a proxy answers 5xx | 64 KiB for an event; any status but 200 is final |
| r3labs/sse | `SubscribeRaw` in a `for` loop on one client, `ClientMaxBufferSize(1<<20)`, a `ResponseValidator` that gives up on 4xx; better another library | it stops after a planned end, and when its backoff is exhausted |
| donovanhide/eventsource | another library | last released in 2021; no read timeout |
| WebClient | `codecs(c -> c.defaultCodecs().maxInMemorySize(1 << 20))`, `responseTimeout(45 s)`, `followRedirect(true)`, `repeatWhen` as well as `retryWhen`; envelopes | 256 KiB for an event; a planned end completes the Flux |
| Ktor | `install(SSE) { maxReconnectionAttempts = Int.MAX_VALUE }`, `HttpTimeout { socketTimeoutMillis = 45_000 }`, and a loop; envelopes | no attempts by default |
| Jersey | `ClientBuilder.readTimeout(45, SECONDS)`; a new `SseEventSource` in `onComplete`, with the id as `?lastEventId=` | it stops after one failed connection |
| eventsource-client (Rust) | `.read_timeout(45 s)` of `HyperTransport`, `.reconnect(… retry_initial(true))`; drop it after a 401 | none by default |
| reqwest-eventsource, eventsource-stream, sseer | `reqwest::Client::builder().read_timeout(45 s)`; reopen sseer when it ends | none by default |
| undici EventSource | `dispatcher: new Agent({ bodyTimeout: 45_000 })` | 300 s; and it does not keep the process alive |
| requests-sse | `timeout=45` and a high `max_connect_retry`; envelopes | it raises after 5 tries |
| sseclient, aiosseclient, aiohttp-sse-client | httpx-sse in the loop below | as the table says |

An event that is larger than a client's buffer ends its stream, again and again, and no later event arrives: Go's scanners accept
64 KiB, WebClient 256 KiB, and `limits.event_bytes` is 256 KiB without the envelope. The gateway detects that too, and logs
`client_buffer_too_small` with the id and size: [runbook](runbook.md#ssegatewayeventtoolarge).
"""

_LOOPS = """
## Loops

httpx-sse, sseclient-py and curl read a single connection; the caller must reconnect. `headers` is called for each
connection, so a renewed token is used. A refusal (401, 403, 404) raises, because a retry would not help.

httpx-sse, with `httpx.Client(timeout=httpx.Timeout(5, read=40))`: its default of 5 seconds would end an idle stream between two
heartbeats. The loop in its README continues only after `ReadError`, which neither a cut nor a clean end raises, and forgets the id
when a stream is temporarily refused.

```python
{httpx}```

sseclient-py over requests. Over HTTP/1.0 requests waits for 128 bytes, so an event may arrive only with the next one.

```python
{requests}```

curl: `curl --silent --no-buffer --fail --speed-limit 1 --speed-time 45 --header "Last-Event-ID: $id"`, again and again
until it exits with 22 (refused), `id` being the last one before a blank line. Use `heartbeat=event`: a heartbeat
as a comment has too few bytes for `--speed-limit`, and curl would reconnect every 45 seconds.

aiohttp-sse-client2 takes an initial id only as a header that the caller sets, which it keeps sending;
it has a timeout of five minutes for a whole stream unless it is created with `timeout=aiohttp.ClientTimeout(total=None)`.
"""

_ABOUT = {
    "drain": "the gateway ends all streams with `stream.close` `draining`, is down, and restarts",
    "kill": "the gateway is killed and restarts; its log is in SQLite",
    "age": "streams reach their maximum age (`timeouts.connection`) again and again, while events arrive",
    "overload": "responses are 200 and `stream.close` `overloaded` until there is room",
    "gap": "the resume point is no longer in history",
    "token expired": "the stream ends with `token_expired`, and the same token is refused with 401",
    "token renewed": "the stream ends with `token_expired`, and a new token is available by then",
    "heartbeats": "only heartbeats, as comments",
    "heartbeats as events": "the same with `?heartbeat=event`",
    "dead": "the connection becomes silent without an end",
}

_MEANS = {
    WHOLE: "everything once and in order, and nothing else",
    "gap reported": "a `stream.gap` that names exactly what is missing",
    "stops": "it stops retrying",
    "quiet": "no spurious event, and no reconnect",
}


PINNED = {
    "Go": ("go/go.mod", r"(?m)^\t{} v(\S+)$"),
    "crates": ("rust/Cargo.toml", r'(?m)^{} = {{ version = "=([^"]+)"'),
    "Maven": ("java/pom.xml", r"<artifactId>{}</artifactId>\s*<version>([^<]+)"),
}
"""Files with the pinned versions of other registries."""


def render() -> str:
    """Return the page."""
    return "".join((_HEAD, *_clients(), _LOSSES, *_losses(), _SCENARIOS, *_scenarios(), _MORE, _loops()))


def version(about: About) -> str:
    """Return the version that the zoo runs."""
    if about.home == "npm":
        return str(
            json.loads((ROOT / "tests/clients/package.json").read_text())["dependencies"][about.package]
        )
    if about.home in PINNED:
        file, pattern = PINNED[about.home]
        text = (ROOT / "tests/clients" / file).read_text()
        (found,) = re.findall(pattern.format(re.escape(about.package)), text)
        return str(found)
    if about.home == "PyPI":
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        lines = setup["options.extras_require"]["test"].splitlines()
        (line,) = [line for line in lines if line.startswith(f"{about.package} ==")]
        return line.partition("==")[2]
    return "Debian's" if about.home == "Debian" else "this one"


def _clients() -> Iterator[str]:
    for name, about in CLIENTS.items():
        asked = [scenario for scenario in SCENARIOS if name in asked_in(scenario)]
        good = sum(1 for scenario in asked if expected(scenario, name) == BEST.get(scenario, WHOLE))
        many = "all" if good == len(asked) else f"{good} of {len(asked)}"
        yield f"| {name} | {version(about)} | {about.resumes} | {about.watchdog} | {many} | {about.advice} |\n"


def _losses() -> Iterator[str]:
    for name, losses in LOSSES.items():
        for loss in losses:
            yield f"| {name} | {loss.why} | {'; '.join(_happens(loss))} |\n"


def _happens(loss: Loss) -> Iterator[str]:
    by_outcome: dict[str, list[str]] = {}
    for scenario, outcome in loss.outcomes.items():
        by_outcome.setdefault(outcome, []).append(scenario)
    for outcome, scenarios in by_outcome.items():
        left = list(scenarios)
        said = []
        for group, title in ((CUTS, "any cut"), (ENDS, "any that ended")):
            if set(group) <= set(left):
                said.append(title)
                left = [scenario for scenario in left if scenario not in group]
        yield f"{', '.join([*said, *left])}: **{outcome}**"


def _scenarios() -> Iterator[str]:
    yield "| data, envelope | payloads with all line ends, U+2028, blanks, nothing, emoji, 64 KB, a byte order mark: each as it was (in `format=data` line ends become LF) |\n"
    yield "| data, envelope, byte by byte | some of these, each byte in a packet of its own |\n"
    moments = ", ".join(scenario.removeprefix("cut ") for scenario in CUTS)
    yield f"| cut …, ended … | {moments}: {_MEANS[WHOLE]} |\n"
    for scenario, about in _ABOUT.items():
        yield f"| {scenario} | {about}: {_MEANS[BEST.get(scenario, WHOLE)]} |\n"


def _loops() -> str:
    for_checkers = re.compile("  # type: .*")
    httpx, requests = (
        for_checkers.sub("", inspect.getsource(module.events)) for module in (httpx_client, requests_client)
    )
    return _LOOPS.replace("{httpx}", httpx).replace("{requests}", requests)
