"""curl in a loop, as docs/clients.md says; what it prints is parsed as the standard says."""

import subprocess
import time
from typing import TYPE_CHECKING

from tests.clients.python.report import Report
from tests.support.eventsource import Parser

if TYPE_CHECKING:
    from tests.clients.python.zoo import Job

REFUSED = 22
"""The exit status with --fail for an answer of 400 or more."""

_running: set[subprocess.Popen[bytes]] = set()


def start(job: "Job", report: Report) -> None:
    """Read until the gateway refuses."""
    last, delay = "", 0.1
    # It gives up when less than a byte per second came for so many seconds.
    options = ["--silent", "--show-error", "--fail", "--no-buffer", "--speed-limit", "1"]
    options += ["--speed-time", str(max(1, job.watchdog // 1000))]
    while True:
        headers = job.headers() | ({"Last-Event-ID": last} if last else {})
        given = [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
        curl = subprocess.Popen(
            ["curl", *options, *given, job.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert curl.stdout is not None
        _running.add(curl)
        parser = Parser()
        while part := curl.stdout.read(65536):
            parser.feed(part)
            for message in parser.messages:
                report("event", type=message.type, data=message.data, id=message.id)
            parser.messages.clear()
            last = parser.last_id or last
            delay = delay if parser.retry is None else parser.retry / 1000
        _, said = curl.communicate()
        _running.discard(curl)
        report("error", message=said.decode(), exit=curl.returncode)
        if curl.returncode == REFUSED:
            return
        time.sleep(delay)


def kill() -> None:
    """End those that still read."""
    for curl in list(_running):
        curl.kill()
