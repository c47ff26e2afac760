"""docs/clients.md: what the zoo finds, as a page. ``UPDATE_CLIENTS=1 pytest tests/clients`` writes it."""

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

What real clients make of the gateway's streams: unmodified packages, used as their own pages say, against a running
gateway and through connections that are cut. `make clients-table` runs them and writes this page; a test fails when a
client of the first two tables does better or worse than it says here. [Seventeen more libraries](#more-libraries) were run
once; [the settings](#settings) that each library needs are below.

- **Any client loses nothing** of what the gateway sends as long as it keeps the last id of a whole event and comes
  back with it. Where the table below says otherwise it is the client's own doing.
- In a page, take [ours](guides/frontend.md), or the browser's own `EventSource`. In Node, ours or `eventsource`. In Python,
  httpx-sse in the loop below.
- A connection can die without an end (a laptop that slept, a firewall that forgot): only clients that wait for bytes
  notice. The gateway sends some every `timeouts.heartbeat` (15 s); let a client give up after 2.5 to 3 of that, or ask for more
  of them: with `?heartbeat=4s`, or anything from `timeouts.heartbeat_minimum` (4 s) up. A client whose read timeout is shorter
  than the heartbeat reconnects for ever; the gateway finds it, logs `client_read_timeout_too_short` once, and counts it in
  `client_timeout_disconnects_total`.
- `format=envelope` (the default) is safe from every parser: one line of JSON. With `format=data` some alter text that
  has line ends or blanks at its beginning.

| client | version | comes back with | gives up on a dead connection by | without a loss in | we recommend |
|---|---|---|---|---|---|
"""

_LOSSES = """
The numbers leave out what a client cannot be asked: ours reads envelopes only.
Libraries ask for `?format=envelope`; ours over EventSource for `?format=message`, with a ticket in place of its token.

## What each loses by its own design

Six events are published, and the connection is cut while the third is on its way. A *cut* is one that the client can see:
HTTP/1.1's last chunk is missing. It *ended* where a proxy that speaks HTTP/1.0 stands between: there the end of a cut
stream looks like any other end. **lost 3**: the third event never arrives; **twice 3**: it arrives twice; **torn 1**: one
event that nobody published; **stops**: the client gives up, and nothing that follows arrives.

| client | because | what happens |
|---|---|---|
"""

_SCENARIOS = """
## The scenarios

| scenario | what must come of it |
|---|---|
"""

_MORE = """
## More libraries

Run once or twice each, on loopback, in November 2026. *Payload*: 99 events in both formats, two of 200 KB. *End*: comes back after
a stream that the gateway ended, with everything once and in order; *kill*: the same over `kill -9` and 3 s without a
gateway. *401*, *503*: what it does about them. *Cut*: a connection cut or ended in the middle of an event.

| library | payload | end | kill | gives up on silence by | `retry:` | 401, 503 | cut |
|---|---|---|---|---|---|---|---|
| r3labs/sse 2.10.0 (Go) | to 64 KiB | **stops** | ✓ | none | own backoff | asks on | **torn, twice, half an id** |
| donovanhide/eventsource 2021-08 (Go) | ✓ | ✓ | ✓ | none | ✓ | stops; after a good stream it asks on, doubling | ✓ |
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

All of them keep ids as they are, and send back the id of `stream.open` where no event came yet. They get `stream.gap` as an
event, and go on; `overloaded` makes them ask every 1 to 6 s until there is room.

## Settings

| library | set | because |
|---|---|---|
| any | a read timeout of 2.5 to 3 heartbeats (45 s); where it must be shorter, `?heartbeat=` of at most four fifths of it | silence is the only sign of a connection that died |
| okhttp-sse | `OkHttpClient.Builder().readTimeout(45, SECONDS)`, and a loop of your own that sends `Last-Event-ID` | 10 s; it never comes back by itself |
| okhttp-eventsource | `ConnectStrategy.http(uri).readTimeout(45, SECONDS)`; close it after a 401, 403 or 404 | 5 s; it asks for ever |
| clients that cannot be changed | `timeouts.heartbeat: 4s` in the gateway | OkHttp's both and httpx stay then |
| launchdarkly/eventsource | `StreamOptionReadTimeout(45*time.Second)`, `StreamOptionCanRetryFirstConnection(-1)`, an error handler that closes on `SubscriptionError` 401, 403, 404 | no timeout by default; it asks every second after a 401 |
| tmaxmax/go-sse | `connection.Buffer(nil, 1<<20)`; a loop around `Connect` where a proxy answers 5xx | 64 KiB for an event; any status but 200 is final |
| r3labs/sse | `SubscribeRaw` in a `for` loop on one client, `ClientMaxBufferSize(1<<20)`, a `ResponseValidator` that gives up on 4xx; better another library | a planned end is the end for it, and its backoff ends for good |
| donovanhide/eventsource | another library | last released in 2021; no read timeout |
| WebClient | `codecs(c -> c.defaultCodecs().maxInMemorySize(1 << 20))`, `responseTimeout(45 s)`, `followRedirect(true)`, `repeatWhen` as well as `retryWhen`; envelopes | 256 KiB for an event; a planned end completes the Flux |
| Ktor | `install(SSE) { maxReconnectionAttempts = Int.MAX_VALUE }`, `HttpTimeout { socketTimeoutMillis = 45_000 }`, and a loop; envelopes | no attempts by default |
| Jersey | `ClientBuilder.readTimeout(45, SECONDS)`; a new `SseEventSource` in `onComplete`, with the id as `?lastEventId=` | one connection that fails is the end |
| eventsource-client (Rust) | `.read_timeout(45 s)` of `HyperTransport`, `.reconnect(… retry_initial(true))`; drop it after a 401 | none by default |
| reqwest-eventsource, eventsource-stream, sseer | `reqwest::Client::builder().read_timeout(45 s)`; open sseer anew when it ends | none by default |
| undici EventSource | `dispatcher: new Agent({ bodyTimeout: 45_000 })` | 300 s; and it does not keep the process alive |
| requests-sse | `timeout=45` and a high `max_connect_retry`; envelopes | it raises after 5 tries |
| sseclient, aiosseclient, aiohttp-sse-client | httpx-sse in the loop below | as the table says |

An event that is larger than a client's buffer ends its stream, again and again, and nothing that follows arrives: Go's scanners take
64 KiB, WebClient 256 KiB, and `limits.event_bytes` is 256 KiB without the envelope. The gateway finds that too, and logs
`client_buffer_too_small` with the id and size: [runbook](runbook.md#ssegatewayeventtoolarge).
"""

_LOOPS = """
## Loops

httpx-sse, sseclient-py and curl read one connection; coming back is their caller's. `headers` is called for each
connection, so a renewed token is used. A refusal (401, 403, 404) raises: asking again would not help.

httpx-sse, with `httpx.Client(timeout=httpx.Timeout(5, read=40))`: its own 5 seconds would end a quiet stream between two
heartbeats. The loop in its README goes on after `ReadError` only, which a cut or a clean end is not, and forgets the id
with a stream that was refused for the moment.

```python
{httpx}```

sseclient-py over requests. Over HTTP/1.0 requests waits for 128 bytes, so an event may arrive with the next one.

```python
{requests}```

curl: `curl --silent --no-buffer --fail --speed-limit 1 --speed-time 45 --header "Last-Event-ID: $id"`, again and again
until it exits with 22 (refused), `id` being the last one before a blank line. Ask for `heartbeat=event`: a heartbeat
that is a comment has too few bytes for `--speed-limit`, and curl would come back every 45 seconds.

aiohttp-sse-client2 cannot be told an id to begin with other than by a header of the caller's own, which it keeps sending;
it has a timeout of five minutes for a whole stream unless it is given `timeout=aiohttp.ClientTimeout(total=None)`.
"""

_ABOUT = {
    "drain": "the gateway ends all streams with `stream.close` `draining`, is away, and comes back",
    "kill": "the gateway is killed and comes back; its log is in SQLite",
    "age": "streams end for their age (`timeouts.connection`) again and again, while events come",
    "overload": "answers are 200 and `stream.close` `overloaded` until there is room",
    "gap": "the resume point is no longer in history",
    "token expired": "the stream ends with `token_expired`, and the same token is refused with 401",
    "token renewed": "the stream ends with `token_expired`, and there is a new token by then",
    "heartbeats": "nothing but heartbeats, as comments",
    "heartbeats as events": "the same with `?heartbeat=event`",
    "dead": "the connection goes silent without an end",
}

_MEANS = {
    WHOLE: "everything once and in order, and nothing else",
    "gap told": "a `stream.gap` that names exactly what is missing",
    "stops": "it stops asking",
    "quiet": "no event that nobody sent, and no reconnect",
}


PINNED = {
    "Go": ("go/go.mod", r"(?m)^\t{} v(\S+)$"),
    "crates": ("rust/Cargo.toml", r'(?m)^{} = {{ version = "=([^"]+)"'),
    "Maven": ("java/pom.xml", r"<artifactId>{}</artifactId>\s*<version>([^<]+)"),
}
"""Where the versions of other homes stand."""


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
