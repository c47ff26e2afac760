"""httpx-sse, in the loop of docs/clients.md."""

import time
from typing import TYPE_CHECKING

import httpx
from httpx_sse import connect_sse

from tests.clients.python.report import Report

if TYPE_CHECKING:
    from tests.clients.python.zoo import Job

MOST_DELAY = 3.0


def start(job: "Job", report: Report) -> None:
    """Read until the gateway refuses."""
    last, delay = "", 0.1
    with httpx.Client(timeout=httpx.Timeout(5, read=job.watchdog / 1000)) as client:
        while True:
            headers = job.headers | ({"Last-Event-ID": last} if last else {})
            try:
                with connect_sse(client, "GET", job.url, headers=headers) as source:
                    source.response.raise_for_status()
                    report("open")
                    for sse in source.iter_sse():
                        last = sse.id or last
                        delay = delay if sse.retry is None else sse.retry / 1000
                        report("event", type=sse.event, data=sse.data, id=sse.id)
            except httpx.HTTPStatusError as error:
                report("error", status=error.response.status_code)
                if error.response.is_client_error:
                    return
            except httpx.TransportError as error:
                report("error", message=repr(error))
            time.sleep(min(delay, MOST_DELAY))
