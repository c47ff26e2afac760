"""httpx-sse, in the loop that docs/clients.md shows."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import httpx
from httpx_sse import ServerSentEvent, connect_sse

from tests.clients.python.report import Report

if TYPE_CHECKING:
    from tests.clients.python.zoo import Job


def events(
    client: httpx.Client, url: str, headers: Callable[[], dict[str, str]]
) -> Iterator[ServerSentEvent]:
    """Yield the events of a stream, over all its connections. Raises HTTPStatusError when it is refused."""
    last, delay = "", 3.0
    while True:
        resume = {"Last-Event-ID": last} if last else {}
        try:
            with connect_sse(client, "GET", url, headers=headers() | resume) as source:
                if source.response.is_client_error:
                    source.response.raise_for_status()
                for event in source.iter_sse():
                    last = event.id or last
                    if event.retry is not None:
                        delay = event.retry / 1000
                    yield event
        except httpx.TransportError:
            pass  # cut, silent, refused, or no event stream: once more
        time.sleep(delay)


def start(job: "Job", report: Report) -> None:
    """Read until the gateway refuses."""
    with httpx.Client(timeout=httpx.Timeout(5, read=job.watchdog / 1000)) as client:
        try:
            for event in events(client, job.url, job.headers):
                report("event", type=event.event, data=event.data, id=event.id)
        except httpx.HTTPStatusError as error:
            report("error", status=error.response.status_code)
