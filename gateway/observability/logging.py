"""Structured logging that never blocks the event loop.

A write to a pipe blocks while its reader stalls, so lines go through a bounded queue to a thread. If the
queue is full, the line is dropped and counted: serving events matters more than logging.

The standard library's QueueHandler and QueueListener do not fit: the listener's thread ends for good with an
exception, its ``stop`` waits for a stalled reader without a deadline, it wakes for each line, and it does
not group lines into writes that a pipe keeps whole. A LogRecord for each line would add to the cost of
opening a stream (storm).
"""

import io
import json
import logging
import queue
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from gateway.core.sanitize import escape_unprintable, escape_unprintable_lines
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

MAX_QUEUED_LINES = 10_000
"""Length of the queue; further lines are dropped."""

BATCH_DELAY_SECONDS = 0.02
"""How long a line may wait to be written together with others."""

FLUSH_TIMEOUT_SECONDS = 2.0
"""How long `LogWriter.close` waits for a stalled reader."""


class LogWriter:
    """Writes lines from a thread. ``on_line_dropped`` is called once for each lost line, from any thread."""

    def __init__(
        self,
        file: IO[str],
        on_line_dropped: Callable[[], None],
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._file = file
        self._on_line_dropped = on_line_dropped
        # Its put() takes a tenth of the time of a bounded Queue's (storm).
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = background.create_thread("log_writer", self._run)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue one line without its line end, or drop it if the queue is full. Never blocks."""
        if self._queue.qsize() < MAX_QUEUED_LINES:
            self._queue.put(line)
        else:
            self._on_line_dropped()

    def close(self) -> None:
        """Write the queued lines, within `FLUSH_TIMEOUT_SECONDS`, and stop. Blocks."""
        self._queue.put(None)
        self._thread.join(FLUSH_TIMEOUT_SECONDS)

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            lines = [line]
            time.sleep(BATCH_DELAY_SECONDS)  # or each line would wake this thread (herd)
            try:
                while (more := self._queue.get_nowait()) is not None:
                    lines.append(more)
                is_last = True
            except queue.Empty:
                is_last = False
            try:
                for batch in _pipe_sized_batches(lines):
                    self._file.write(batch)
                    self._file.flush()
            except Exception as error:
                if self._file.closed:
                    return
                for _ in lines:
                    self._on_line_dropped()
                if not is_last and not isinstance(error, OSError):  # a full disk may have room again later
                    raise
            if is_last:
                return


def _pipe_sized_batches(lines: list[str]) -> Iterator[str]:
    """Join lines to writes that a pipe keeps whole, so that the lines of several processes do not mix."""
    batch, size = "", 0
    for line in lines:
        length = len(line.encode(errors="replace")) + 1
        if batch and size + length > select.PIPE_BUF:
            yield batch
            batch, size = "", 0
        batch += line + "\n"
        size += length
    yield batch


class _LineLogger:
    """The logger that structlog wraps; each method writes a rendered line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = self.msg = write


class _StandardLibraryHandler(logging.Handler):
    """Renders the lines of standard library loggers (aiohttp, asyncio, redis) like ours."""

    def __init__(self, processors: list[Processor], write: Callable[[str], None]) -> None:
        super().__init__()
        self._processors = processors
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        event: Any = {"event": record.getMessage(), "logger": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            event["exc_info"] = record.exc_info
        for processor in self._processors:
            event = processor(self, record.levelname.lower(), event)
        self._write(event)


def _escape_values(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Escape control characters: text from clients must not control an operator's terminal."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = escape_unprintable(value)
    return event


def _write_escaped_traceback(file: TextIO, exc_info: ExcInfo) -> None:
    """Write a traceback with control characters escaped: its message may be text from a client."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    file.write(escape_unprintable_lines(text.getvalue()))


def _timestamp_adder() -> Processor:
    """Return a processor that adds the time; unlike structlog's it formats the date once a second (herd)."""
    known, text = 0, ""

    def stamp(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        nonlocal known, text
        second, rest = divmod(time.time_ns(), 1_000_000_000)
        if second != known:
            known, text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        event["timestamp"] = f"{text}.{rest // 1000:06d}Z"
        return event

    return stamp


def _worker_number_adder(worker: int) -> Processor:
    def number(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event.setdefault("worker", worker)
        return event

    return number


def _encode_json(event: EventDict, **options: Any) -> str:
    try:
        # JSON escapes nothing above U+001F, and the line may be shown in a terminal.
        return escape_unprintable(msgspec.json.encode(event, enc_hook=repr).decode())
    except UnicodeEncodeError:  # lone surrogates, from headers that are not UTF-8
        return json.dumps(event, default=repr)


def configure_logging(
    *,
    level: str,
    format: str,
    file: IO[str] = sys.stderr,
    on_line_dropped: Callable[[], None] = lambda: None,
    worker: int | None = None,
    cache_loggers: bool = False,
    background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
) -> LogWriter:
    """Configure structlog and the standard library's logging; return the writer, to close at the end.

    ``worker`` is added to every line. ``cache_loggers`` makes loggers keep this configuration from their
    first line on, which halves the cost of a line (storm).
    """
    writer = LogWriter(file, on_line_dropped, background)
    renderer: Processor
    if format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=_encode_json)
        # Locals may have tokens and payloads.
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        exceptions: list[Processor] = [structlog.processors.ExceptionRenderer(transformer)]
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=file.isatty(), exception_formatter=_write_escaped_traceback
        )
        exceptions = [_escape_values]
    numbered: list[Processor] = [] if worker is None else [_worker_number_adder(worker)]
    processors: list[Processor] = [
        structlog.processors.add_log_level,
        *numbered,
        _timestamp_adder(),
        *exceptions,
        renderer,
    ]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _LineLogger(writer.write),
        cache_logger_on_first_use=cache_loggers,
    )
    logging.basicConfig(
        handlers=[_StandardLibraryHandler(processors, writer.write)],
        level=max(threshold, logging.WARNING),
        force=True,
    )
    return writer
