"""The clients of the zoo: what they are, and what we say about them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class About:
    """One client."""

    package: str
    """Under which its version is pinned."""
    home: Literal["npm", "PyPI", "Debian", "Go", "crates", "Maven", "here"]
    resumes: str
    """Where the id goes when it comes back; a test looks."""
    watchdog: str
    """How it notices a connection that is dead without an end."""
    advice: str
    runs_in: Literal["node", "python", "go", "rust", "java"] = "node"


_LOOP = "call it in [a loop](#loops)"

CLIENTS: dict[str, About] = {
    "sse-gateway-client": About(
        "sse-gateway-client", "here", "header", "itself: 2.5 heartbeats", "for pages, and for Node from 20 on"
    ),
    "sse-gateway-client, over EventSource": About(
        "sse-gateway-client",
        "here",
        "query",
        "itself: 2.5 heartbeats",
        "used where `fetch` cannot stream",
    ),
    "eventsource": About(
        "eventsource", "npm", "header", "none", "good in Node, also with headers (option `fetch`)"
    ),
    "eventsource-client": About(
        "eventsource-client",
        "npm",
        "header",
        "none",
        "close it yourself when `stream.close` says `token_expired`",
    ),
    "event-source-polyfill": About(
        "event-source-polyfill",
        "npm",
        "query",
        "`heartbeatTimeout`, 45 s",
        "leave `heartbeatTimeout` above `timeouts.heartbeat`; it waits at least a second",
    ),
    "reconnecting-eventsource": About(
        "reconnecting-eventsource", "npm", "header", "none", "close it yourself after a 401: it never does"
    ),
    "launchdarkly-eventsource": About(
        "launchdarkly-eventsource",
        "npm",
        "header",
        "`readTimeoutMillis`, off",
        "set `readTimeoutMillis` to three heartbeats",
    ),
    "sse.js": About("sse.js", "npm", "header", "none", "set `autoReconnect: true`, else it never reconnects"),
    "@microsoft/fetch-event-source": About(
        "@microsoft/fetch-event-source",
        "npm",
        "header",
        "none",
        "never without the `onclose` of the next line",
    ),
    "@microsoft/fetch-event-source, with retry": About(
        "@microsoft/fetch-event-source",
        "npm",
        "header",
        "none",
        "throw in `onclose`, and for 4xx in `onerror`",
    ),
    "httpx-sse": About("httpx-sse", "PyPI", "header", "`timeout`, 5 s", _LOOP, "python"),
    "sseclient-py": About("sseclient-py", "PyPI", "header", "`timeout` of requests, off", _LOOP, "python"),
    "aiohttp-sse-client2": About(
        "aiohttp-sse-client2", "PyPI", "header", "`timeout` of aiohttp", "use httpx-sse", "python"
    ),
    "curl": About("curl", "Debian", "header", "`--speed-time`", _LOOP, "python"),
    "launchdarkly/eventsource (Go)": About(
        "github.com/launchdarkly/eventsource",
        "Go",
        "header",
        "`StreamOptionReadTimeout`, off",
        "set it to three heartbeats, and close in the error handler after a 4xx",
        "go",
    ),
    "tmaxmax/go-sse (Go)": About(
        "github.com/tmaxmax/go-sse",
        "Go",
        "header",
        "none",
        "`connection.Buffer(nil, 1<<20)`; the default is 64 KiB",
        "go",
    ),
    "eventsource-client (Rust)": About(
        "eventsource-client",
        "crates",
        "header",
        "`read_timeout` of its transport, off",
        "set it to three heartbeats, and `retry_initial(true)`",
        "rust",
    ),
    "okhttp-eventsource (Java)": About(
        "okhttp-eventsource",
        "Maven",
        "header",
        "`readTimeout`, 5 s",
        "set it to three heartbeats, and close it after a 4xx",
        "java",
    ),
}

EVENTS = [name for name, about in CLIENTS.items() if about.home != "here"]
"""The clients that give their caller the events of the stream as they are."""
