"""``python -m tests.support.shifted FILE …``: the gateway's command, its wall clock moved by FILE's seconds.

What it has taken from there is in ``FILE.taken``.
"""

import sys
import threading
import time
from pathlib import Path


def main() -> None:
    """Replace the wall clock before anything reads it, and run the command."""
    file = Path(sys.argv.pop(1))
    real_ns, shift = time.time_ns, [0.0]

    def watch() -> None:
        while True:
            if text := file.read_text():
                shift[0] = float(text)
                Path(f"{file}.taken").write_text(text)
            time.sleep(0.05)

    time.time_ns = lambda: real_ns() + round(shift[0] * 1e9)
    time.time = lambda: time.time_ns() / 1e9
    threading.Thread(target=watch, daemon=True).start()
    from gateway.cli.main import main as command  # noqa: PLC0415 -- only now, with the clock in place

    sys.exit(command())


if __name__ == "__main__":
    main()
