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
client does better or worse than it says here.

- **Any client loses nothing** of what the gateway sends as long as it keeps the last id of a whole event and comes
  back with it. Where the table below says otherwise it is the client's own doing.
- In a page, take [ours](guides/frontend.md), or the browser's own `EventSource`. In Node, ours or `eventsource`. In Python,
  httpx-sse in the loop below.
- A connection can die without an end (a laptop that slept, a firewall that forgot): only clients that wait for bytes
  notice. The gateway sends some every `timeouts.heartbeat` (15 s); let a client give up after 2.5 to 3 of that.
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


def render() -> str:
    """Return the page."""
    return "".join((_HEAD, *_clients(), _LOSSES, *_losses(), _SCENARIOS, *_scenarios(), _loops()))


def version(about: About) -> str:
    """Return the version that the zoo runs."""
    if about.home == "npm":
        return str(
            json.loads((ROOT / "tests/clients/package.json").read_text())["dependencies"][about.package]
        )
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
