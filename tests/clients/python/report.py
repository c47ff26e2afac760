"""What a client says of itself: one line of JSON at a time, whichever thread it runs in."""

import json
import sys
import threading

_one_at_a_time = threading.Lock()


class Report:
    """The voice of one client."""

    def __init__(self, job: str | None) -> None:
        self._job = job

    def __call__(self, kind: str, **more: object) -> None:
        line = json.dumps({"job": self._job, "kind": kind, **more})
        with _one_at_a_time:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
