"""Runs a command while other processes keep the processors busy: the suite must pass then too.

``python -m tests.busy 4 make test`` runs `make test` beside four endless loops, which end with it.
"""

import multiprocessing
import subprocess
import sys


def spin() -> None:
    """Use one processor without end."""
    while True:
        pass


def main(loops: str, *command: str) -> int:
    """Run the command and return its exit status."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(int(loops))]
    for each in others:
        each.start()
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        for each in others:
            each.kill()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
