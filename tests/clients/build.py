"""Builds the clients in Go, Rust and Java; ``python -m tests.clients.build`` does so ahead of the tests."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.needs import CACHE, need, need_built

HERE = Path(__file__).parent

SECONDS = 900
"""For one command; a debug build of Rust takes half a minute of a processor."""


def commands() -> dict[str, list[str]]:
    """Return the commands that run clients, by language. Fails the test where one cannot be built."""
    return {"go": _go(), "rust": _rust(), "java": _java()}


def _go() -> list[str]:
    go = need("go", "golang-go")  # 1.21 or newer fetches the one that go.mod names

    def build(sources: Path, result: Path) -> None:
        _run([go, "build", "-o", str(result / "zoo"), "."], sources)

    return [str(need_built("go", HERE / "go", build) / "zoo")]


def _rust() -> list[str]:
    cargo = need("cargo", "cargo")  # 1.95 or newer

    def build(sources: Path, result: Path) -> None:
        # Kept for other states of the sources: the crates that they need are built once.
        target = CACHE / "cargo-target"
        _run([cargo, "build", "--quiet"], sources, {"CARGO_TARGET_DIR": str(target)})
        shutil.copy2(target / "debug" / "zoo", result / "zoo")

    return [str(need_built("rust", HERE / "rust", build) / "zoo")]


def _java() -> list[str]:
    java, javac, maven = (
        need("java", "default-jdk-headless"),
        need("javac", "default-jdk-headless"),
        need("mvn", "maven"),
    )

    def build(sources: Path, result: Path) -> None:
        copy = ["dependency:copy-dependencies", f"-DoutputDirectory={result}"]
        _run([maven, "--quiet", "--batch-mode", *copy], sources)
        _run([javac, "-cp", f"{result}/*", "-d", str(result), "Zoo.java"], sources)

    built = need_built("java", HERE / "java", build)
    # A short life: what the second compiler would save, it does not earn.
    return [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{built}/*:{built}", "Zoo"]


def _run(command: Sequence[str], folder: Path, environ: Mapping[str, str] | None = None) -> None:
    subprocess.run(
        command,
        cwd=folder,
        env=os.environ | (environ or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        timeout=SECONDS,
    )


if __name__ == "__main__":
    commands()
