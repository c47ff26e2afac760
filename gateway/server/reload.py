"""Going over to a new configuration while everything runs: on SIGHUP, on request, and when files change.

All or nothing. A file that cannot be used, or that changes what only a restart can change, changes nothing;
the log, the metrics and ``/status`` tell why, with its line and column. The file, and each that it refers to,
is looked at every `POLL_SECONDS`, and taken up once it was the same twice: whoever writes it in place is not
read halfway.
"""

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pathlib import Path as FilePath
from typing import Any, Protocol

import msgspec
import structlog

from gateway.admin.status import Mistake, Outcome
from gateway.config.diff import differences
from gateway.config.loader.document import parse
from gateway.config.loader.environment import variables
from gateway.config.loader.faults import ConfigError, Fault, Located, dotted
from gateway.config.loader.load import Local, good, reads, text_of
from gateway.config.model.config import Config
from gateway.config.model.paths import absolute, folder_of
from gateway.config.validation.warnings import tell
from gateway.core.clock import unix_ms
from gateway.core.errors import GatewayError, StartupError
from gateway.observability.background import Background
from gateway.observability.file_fingerprint import Looks, look
from gateway.observability.metrics import Metrics
from gateway.server.shutdown import Shutdown
from gateway.server.systemd import Systemd

# The files that a configuration is made of, and places in them.


def located(text: str, file: str, faults: Sequence[Fault]) -> ConfigError:
    """Return the error that reports faults of a text that could be used otherwise, at their places."""
    return ConfigError(file, parse(text, file).locate(faults))


def files_of(content: str, folder: FilePath, environ: Mapping[str, str] = os.environ) -> list[FilePath]:
    """Return the files that a configuration refers to: a change of one is a change of the whole.

    What is no YAML refers to none.
    """
    found: list[FilePath] = []
    with suppress(ConfigError):
        for key, text in _texts(parse(content, "").data, ""):
            is_origin = key == "origins" and text.startswith("file://")
            is_reference = text.startswith("file:") and not is_origin
            name = text[5:] if is_reference else text if key == "public_key_file" else ""
            if name:
                found.append(FilePath(absolute(variables(name, environ), folder)))
    return found


def _texts(data: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _texts(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from _texts(value, key)


log = structlog.get_logger("gateway.server.reload")

POLL_SECONDS = 1.0
"""How often the files are looked at."""


class Server(Protocol):
    """Whoever serves: one node, or the parent of several."""

    config: Config
    shutdown: Shutdown
    systemd: Systemd
    metrics: Metrics
    background: Background

    def signalled(self, number: signal.Signals) -> None:
        """Begin to end."""

    async def go_over(self, config: Config) -> int:
        """Serve by another configuration, and return how many streams end by it. Raises GatewayError."""


class ConfigFile:
    """The file, and what it looked like when it was read last."""

    def __init__(self, path: str | Path, local: Local | None = None) -> None:
        """``local`` looks at the files that a good configuration names, see `gateway.config.loader.load`."""
        self.path = Path(path)
        self._folder = folder_of(path)
        self._local = local
        self.warnings: Sequence[Fault] = ()
        """What was told of it when it was read last, and is not accepted."""
        self.name = str(path)
        """How messages name it."""
        self._files: Sequence[Path] = [self.path]
        self._read: Looks = ()
        self._text = ""

    def load(self) -> Config:
        """Return what it says now. Raises ConfigError or StartupError."""
        is_first = not self._read
        # Before what they hold: what is written meanwhile is seen later.
        self._files, self._read = [self.path], look([self.path])
        if not is_first and self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
            raise StartupError(f"{self.name} is no file that can be read again; it takes a restart")
        self._text = text = text_of(self.path)
        others = files_of(text, self._folder)
        self._files, self._read = [self.path, *others], (*self._read, *look(others))
        reading = reads(text, file=self.name, folder=self._folder, local=self._local, is_reload=not is_first)
        config = good(reading)
        self.warnings = tuple(each.fault for each in reading.warnings)
        return config

    def located(self, faults: Sequence[Fault]) -> ConfigError:
        """Return the error that reports what else is wrong with what was read last."""
        return located(self._text, self.name, faults)

    def looks(self) -> Looks:
        """Return what it looks like now, and the files that it refers to."""
        return look(self._files)

    @property
    def was_read(self) -> Looks:
        """What they looked like when they were read."""
        return self._read


class Reload:
    """Owns the watch, and tells what became of the last reload."""

    def __init__(self, file: ConfigFile, server: Server) -> None:
        self._file = file
        self._server = server
        self._loaded_ms = unix_ms()
        self._good_ms = self._loaded_ms
        self._last: Outcome | None = None
        self._serving = asyncio.Event()
        self._turn = asyncio.Lock()
        self._is_asked = False
        self._is_ending = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._had_terminal = os.isatty(2)
        metrics = server.metrics
        metrics.bind(
            "config_last_reload_successful", lambda: self._last is None or self._last.result != "failed"
        )
        metrics.bind("config_last_reload_success_timestamp_seconds", lambda: self._good_ms / 1000)

    def listen(self) -> None:
        """Listen to SIGHUP, which would end this process, also before it serves. Needs a running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._signalled)

    def start(self) -> None:
        """Reload from now on, and watch the files."""
        self._serving.set()
        self._own(self._server.background.start("config_watch", self._watch))

    async def stop(self) -> None:
        """End; harmless when repeated. SIGHUP is still heard: it must not cut a drain short."""
        self._is_ending = True
        self._serving.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _has_failed(self) -> bool:
        return self._last is not None and self._last.result == "failed"

    def told(self) -> dict[str, Any]:
        """Return what ``/status`` shows of the configuration."""
        last = None if self._last is None else msgspec.to_builtins(self._last)
        return {"file": self._file.name, "loaded_ms": self._loaded_ms, "last_reload": last}

    async def reload(self, why: str) -> Outcome:
        """Read the file and go over to it. One at a time, once it serves; ``why`` is for the log.

        Cancelling is safe.
        """
        await self._serving.wait()
        async with self._turn:
            self._is_asked = False  # who asks from here on may mean another file
            if self._is_ending or self._server.shutdown.asked.is_set():
                return Outcome(unix_ms(), "failed", "the gateway is shutting down")
            systemd = self._server.systemd
            systemd.reloading()
            try:
                outcome = await self._go_over()
            finally:
                systemd.ready("serving")
        self._last = outcome
        self._server.metrics.config_reloads.labels(outcome.result).inc()
        if outcome.result != "failed":
            self._good_ms = outcome.at_ms
        if outcome.result == "ok":
            self._loaded_ms = outcome.at_ms
        self._log(outcome, why)
        return outcome

    async def _go_over(self) -> Outcome:
        server, old = self._server, self._server.config
        try:
            config = await asyncio.to_thread(self._file.load)
            changes = differences(old, config)
            refused = [each.fault for each in changes if each.needs_restart]
            if refused:
                raise await asyncio.to_thread(self._file.located, refused)
            # Also without a change in it: a key file that it names may be another one.
            ended = await server.go_over(config)
        except ConfigError as error:
            mistakes = [_mistake(each) for each in error.faults]
            return Outcome(unix_ms(), "failed", _first_of(error), mistakes)
        except GatewayError as error:
            return Outcome(unix_ms(), "failed", error.message)
        except Exception as error:
            log.exception("config_reload_broke")
            return Outcome(unix_ms(), "failed", f"{type(error).__name__}; the log has more")
        if not changes and not ended:
            message = "nothing in the file differs from what is served; what it refers to was read again"
            return Outcome(unix_ms(), "unchanged", message)
        what = _count(len(changes), "change") if changes else "a file that it refers to changed"
        message = f"{what}; {_count(ended, 'stream')} ended"
        return Outcome(unix_ms(), "ok", message, changes=[str(each) for each in changes], ended=ended)

    def _log(self, outcome: Outcome, why: str) -> None:
        about: dict[str, Any] = {"file": self._file.name, "why": why}
        if outcome.result == "failed":
            mistakes = msgspec.to_builtins(outcome.errors)
            note = "nothing was changed; the configuration from before goes on"
            log.error("config_reload_failed", **about, error=outcome.message, mistakes=mistakes, note=note)
        elif outcome.result == "unchanged":
            log.info("config_unchanged", **about)
        else:
            tell(self._file.warnings)
            log.info("config_reloaded", **about, changes=outcome.changes, streams_ended=outcome.ended)

    def _signalled(self) -> None:
        if self._had_terminal and not os.isatty(2):
            # The terminal that it was started in was closed: nobody wants a gateway that nobody sees.
            self._server.signalled(signal.SIGHUP)
            return
        if not self._is_asked:
            self._is_asked = True
            self._own(asyncio.create_task(self.reload("SIGHUP"), name="reload"))

    async def _watch(self) -> None:
        before = told = self._file.was_read
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                now = await asyncio.to_thread(self._file.looks)
                if now == before and now not in (self._file.was_read, told):
                    told = now
                    await self.reload("the file changed")
                before = now
            except Exception as error:
                self._server.background.failed("config_watch", error)

    def _own(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _mistake(found: Located) -> Mistake:
    return Mistake(found.line, found.column, dotted(found.fault.path), found.fault.message)


def _first_of(error: ConfigError) -> str:
    """Return the first mistake in one line, with its place, and how many more there are."""
    first = error.faults[0].render(error.file).partition("\n")[0]
    more = len(error.faults) - 1
    return f"{first} (and {more} more)" if more else first


def _count(number: int, thing: str) -> str:
    return f"1 {thing}" if number == 1 else f"{number} {thing}s"
