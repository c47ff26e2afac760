"""sseclient-py over requests, in the loop of docs/clients.md."""

import time
from typing import TYPE_CHECKING

import requests
import sseclient

from tests.clients.python.report import Report

if TYPE_CHECKING:
    from tests.clients.python.zoo import Job


def start(job: "Job", report: Report) -> None:
    """Read until the gateway refuses."""
    last, delay = "", 0.1
    while True:
        headers = job.headers | ({"Last-Event-ID": last} if last else {})
        try:
            answer = requests.get(job.url, headers=headers, stream=True, timeout=(5, job.watchdog / 1000))
            if answer.status_code != 200:
                report("error", status=answer.status_code)
                if answer.status_code < 500:
                    return
            else:
                report("open")
                for event in sseclient.SSEClient(answer).events():  # type: ignore[arg-type]
                    last = event.id or last
                    delay = int(event.retry) / 1000 if event.retry else delay
                    report("event", type=event.event, data=event.data, id=event.id)
        except (requests.RequestException, UnicodeDecodeError) as error:
            report("error", message=repr(error))
        time.sleep(delay)
