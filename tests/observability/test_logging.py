"""Logging: JSON lines, no secrets, and never blocking the event loop."""

import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest
import structlog

from gateway.observability import logging as logs
from gateway.observability.logging import configure_logging
from tests.support.deadline import SAFETY_SECONDS


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    logging.getLogger().handlers.clear()


def test_json_lines_with_time_level_and_exceptions() -> None:
    """Each line is one JSON object, tracebacks and other libraries' lines too."""
    file = io.StringIO()
    writer = configure_logging(level="info", format="json", file=file)
    log = structlog.get_logger("gateway")
    log.debug("hidden")
    log.info("shown", channel="orders\n")
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    logging.getLogger("aiohttp.server").warning("from %s", "elsewhere")
    writer.close()
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("shown", "info"), ("failed", "error"), ("from elsewhere", "warning"),
    ]  # fmt: skip
    assert lines[0]["channel"] == "orders\n"
    assert lines[0]["timestamp"].endswith("Z")
    assert lines[1]["exception"][0]["exc_value"] == "boom"


def test_a_reader_that_stalls_does_not_stall_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pipe costs lines, which are counted, and no time."""
    monkeypatch.setattr(logs, "MAX_QUEUED_LINES", 100)
    monkeypatch.setattr(logs, "FLUSH_TIMEOUT_SECONDS", 0.1)
    read, write = os.pipe()
    dropped = []
    with os.fdopen(write, "w") as file:
        writer = configure_logging(
            level="info", format="json", file=file, on_line_dropped=lambda: dropped.append(1)
        )
        log = structlog.get_logger("gateway")
        for number in range(5000):  # would not come back from a full pipe
            log.info("line", number=number, text="x" * 100)
        assert len(dropped) > 1000
        writer.close()
        # Let the thread end before the pipe is closed below it.
        drain = threading.Thread(
            target=lambda: [None for _ in iter(lambda: os.read(read, 1 << 20), b"")], daemon=True
        )
        drain.start()
        writer._thread.join(SAFETY_SECONDS)
    drain.join(SAFETY_SECONDS)  # at the end of the pipe; else it would read what gets the number next
    os.close(read)


def test_console_lines_are_for_people() -> None:
    """No colours where nobody sees them."""
    file = io.StringIO()
    writer = configure_logging(level="warning", format="console", file=file)
    structlog.get_logger("gateway").info("hidden")
    structlog.get_logger("gateway").warning("shown", source="app")
    writer.close()
    assert "shown" in file.getvalue()
    assert "source=app" in file.getvalue()
    assert "\x1b[" not in file.getvalue()
    assert "hidden" not in file.getvalue()


def test_tracebacks_hold_no_locals() -> None:
    """Locals hold tokens and payloads; the default of structlog's JSON tracebacks would print them."""
    file = io.StringIO()
    writer = configure_logging(level="info", format="json", file=file)
    authorization = "Bearer canary-token"
    try:
        raise RuntimeError(len(authorization))
    except RuntimeError:
        structlog.get_logger("gateway").exception("failed")
        logging.getLogger("asyncio").exception("failed elsewhere")
    writer.close()
    assert file.getvalue().count("RuntimeError") == 2
    assert "canary" not in file.getvalue()


def test_a_failed_write_is_counted_and_the_next_ones_come_through() -> None:
    """A disk that was full for a moment must not silence the log for good."""

    class Disk(io.StringIO):
        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                self.is_full = False
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk, dropped = Disk(), []
    writer = configure_logging(
        level="info", format="json", file=disk, on_line_dropped=lambda: dropped.append(1)
    )
    structlog.get_logger("gateway").info("lost")
    while not dropped:
        time.sleep(0.001)
    structlog.get_logger("gateway").info("kept")
    writer.close()
    assert "kept" in disk.getvalue()
    assert len(dropped) == 1


def test_a_clients_words_cannot_move_the_cursor() -> None:
    """Escape sequences in a header are shown, not obeyed."""
    file = io.StringIO()
    writer = configure_logging(level="info", format="console", file=file)
    structlog.get_logger("gateway").info("refused", origin="https://a\x1b]0;x\x07")
    writer.close()
    assert "\x1b" not in file.getvalue()
    assert "\\u001b" in file.getvalue()


STEERING = "".join(
    map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029])
) + "".join(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF, 0xE0041]))


@pytest.mark.parametrize("format", ["json", "console"])
def test_nothing_in_a_line_steers_what_shows_it(format: str) -> None:
    """C1 commands terminals as ESC does, bidi turns a line around, U+0085 and U+2028 end one for some readers."""
    file = io.StringIO()
    writer = configure_logging(level="info", format=format, file=file)
    log = structlog.get_logger("gateway")
    log.info(
        f"event{STEERING}", origin=f"https://a{STEERING}", channels=(STEERING,), about={STEERING: STEERING}
    )
    try:
        raise ValueError(STEERING)
    except ValueError:
        log.exception("failed", stack=STEERING)
        logging.getLogger("asyncio").exception("of %s", STEERING)
    writer.close()
    text = file.getvalue()
    assert [hex(ord(char)) for char in STEERING if char in text and char not in "\n\t"] == []
    assert text.count("ValueError") >= 2
    if format == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert lines[0]["origin"] == f"https://a{STEERING}"
        assert len(lines) == 3


def test_lines_leave_in_writes_that_a_pipe_takes_whole() -> None:
    """Workers share one pipe: a longer write may be cut by another's."""
    lines = ["x" * 1000, "y" * 3000, "z" * 200, "\u20ac" * 3000, "end"]
    batches = list(logs._pipe_sized_batches(lines))
    assert "".join(batches) == "".join(f"{line}\n" for line in lines)
    assert all(batch.endswith("\n") for batch in batches)
    assert [len(batch.encode()) for batch in batches] == [4002, 201, 9001, 4]
