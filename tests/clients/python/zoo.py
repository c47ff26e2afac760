"""Runs clients of PyPI, and curl, as it is told by lines of JSON on stdin: the contract of node/zoo.js."""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.clients.python import aiohttp_client, curl_client, httpx_client, requests_client
from tests.clients.python.report import Report

START: dict[str, Callable[["Job", Report], None]] = {
    "httpx-sse": httpx_client.start,
    "sseclient-py": requests_client.start,
    "aiohttp-sse-client2": aiohttp_client.start,
    "curl": curl_client.start,
}


@dataclass(frozen=True)
class Job:
    """What a client is to do."""

    job: str
    client: str
    url: str
    base: str
    channels: list[str]
    types: list[str]
    watchdog: int
    """Milliseconds without a byte after which a client should give a connection up, where it can."""
    tokenFile: str | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers of a request that is made now."""
        if self.tokenFile is None:
            return {}
        return {"Authorization": f"Bearer {Path(self.tokenFile).read_text()}"}


def run(job: Job) -> None:
    """Run a client to its end."""
    report = Report(job.job)
    try:
        START[job.client](job, report)
        report("end")
    except Exception:
        Report(None)("crash", message=traceback.format_exc())


def main() -> None:
    """Start what is asked for, until nobody asks any more."""
    Report(None)("ready")
    for line in sys.stdin:
        threading.Thread(target=run, args=(Job(**json.loads(line)),), daemon=True).start()
    curl_client.kill()
    os._exit(0)  # threads that read a stream would hold it


if __name__ == "__main__":
    main()
