"""sseclient-py over requests, in the loop that docs/clients.md shows."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import requests
import sseclient

from tests.clients.python.report import Report

if TYPE_CHECKING:
    from tests.clients.python.zoo import Job


def events(url: str, headers: Callable[[], dict[str, str]], silence: float) -> Iterator[sseclient.Event]:
    """Yield the events of a stream, over all its connections. Raises HTTPError when it is refused."""
    last, delay = "", 3.0
    while True:
        resume = {"Last-Event-ID": last} if last else {}
        try:
            answer = requests.get(url, headers=headers() | resume, stream=True, timeout=(5, silence))
            answer.raise_for_status()
            for event in sseclient.SSEClient(answer).events():  # type: ignore[arg-type]
                last = event.id or last
                if event.retry is not None:
                    delay = int(event.retry) / 1000
                yield event
        except requests.HTTPError as error:
            if error.response.status_code < 500:
                raise
        except (requests.RequestException, UnicodeDecodeError):
            pass  # cut, silent or refused, or half a character came last: once more
        time.sleep(delay)


def start(job: "Job", report: Report) -> None:
    """Read until the gateway refuses."""
    try:
        for event in events(job.url, job.headers, job.watchdog / 1000):
            report("event", type=event.event, data=event.data, id=event.id)
    except requests.HTTPError as error:
        report("error", status=error.response.status_code)
