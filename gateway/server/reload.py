"""Reloads the configuration of a running gateway: on SIGHUP, ``POST /reload``, and when its files change.

A reload is all or nothing. A file with errors, or with a change that needs a restart, changes nothing; the
log, the metrics and ``/status`` report the reason, with line and column. The file and each file that it
refers to are polled every `POLL_SECONDS`, and reloaded once they were the same twice, so that no
half-written file is read.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pathlib import Path as FilePath
from typing import Any

import msgspec
import structlog

from gateway.admin.status_report import ConfigStatus, ReloadError, ReloadResult
from gateway.config.diff import diff_configs
from gateway.config.loader.document import parse_yaml
from gateway.config.loader.environment import expand_variables
from gateway.config.loader.issues import ConfigError, ConfigIssue, LocatedIssue, format_path
from gateway.config.loader.load import LocalChecker, load_text, read_config_text
from gateway.config.model.config import Config
from gateway.config.model.paths import absolute_path, config_folder
from gateway.config.validation.warnings import log_warnings
from gateway.core.clock import unix_ms
from gateway.core.errors import GatewayError, StartupError
from gateway.observability.file_fingerprint import FileFingerprint, file_fingerprint
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import TaskSupervisor
from gateway.server.shutdown import Shutdown
from gateway.server.systemd import SystemdNotifier


def locate_faults(text: str, file: str, faults: Sequence[ConfigIssue]) -> ConfigError:
    """Return the error that reports faults of a valid text at their lines and columns."""
    return ConfigError(file, parse_yaml(text, file).locate(faults))


def referenced_files(
    content: str, folder: FilePath, environ: Mapping[str, str] = os.environ
) -> list[FilePath]:
    """Return the files whose content belongs to a configuration; none if ``content`` is not valid YAML."""
    found: list[FilePath] = []
    with suppress(ConfigError):
        for key, text in _string_values(parse_yaml(content, "").data, ""):
            is_origin = key == "origins" and text.startswith("file://")
            is_reference = text.startswith("file:") and not is_origin
            name = text[5:] if is_reference else text if key == "public_key_file" else ""
            if name:
                found.append(FilePath(absolute_path(expand_variables(name, environ), folder)))
    return found


def _string_values(data: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _string_values(value, name)
    elif isinstance(data, list):
        for value in data:
            yield from _string_values(value, key)


log = structlog.get_logger("gateway.server.reload")

POLL_SECONDS = 1.0
"""How often the files are polled."""


ApplyConfig = Callable[[Config], Awaitable[int]]
"""Serves by another configuration, and returns how many streams it ended. Raises GatewayError."""

OnSignal = Callable[[signal.Signals], None]


class ConfigFile:
    """The configuration file, and its fingerprint when it was last read."""

    def __init__(self, path: str | Path, local: LocalChecker | None = None) -> None:
        """``local`` checks the files that a valid configuration names, see `gateway.config.loader.load`."""
        self.path = Path(path)
        self._folder = config_folder(path)
        self._local = local
        self.warnings: Sequence[ConfigIssue] = ()
        """The warnings of the last read that ``check.allow`` does not accept."""
        self.name = str(path)
        """The name of the file in messages."""
        self._watched_files: Sequence[Path] = [self.path]
        self._loaded_fingerprint: FileFingerprint = ()
        self._text = ""

    def load(self) -> Config:
        """Read the file. Raises ConfigError or StartupError."""
        is_first = not self._loaded_fingerprint
        # Fingerprints come before contents, so that a write in between is noticed later.
        self._watched_files, self._loaded_fingerprint = [self.path], file_fingerprint([self.path])
        if not is_first and self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
            raise StartupError(
                f"{self.name} is not a regular file, so it cannot be read again; restart the gateway"
            )
        self._text = text = read_config_text(self.path)
        others = referenced_files(text, self._folder)
        self._watched_files, self._loaded_fingerprint = (
            [self.path, *others],
            (*self._loaded_fingerprint, *file_fingerprint(others)),
        )
        reading = load_text(
            text, file=self.name, folder=self._folder, local_checker=self._local, is_reload=not is_first
        )
        config = reading.require_config()
        self.warnings = tuple(each.issue for each in reading.warnings)
        return config

    def locate_faults(self, faults: Sequence[ConfigIssue]) -> ConfigError:
        """Return the error that reports faults of the text that was read last."""
        return locate_faults(self._text, self.name, faults)

    def read_fingerprint(self) -> FileFingerprint:
        """Return the current fingerprint of the file and the files that it refers to."""
        return file_fingerprint(self._watched_files)

    @property
    def loaded_fingerprint(self) -> FileFingerprint:
        """The fingerprint of what was read last."""
        return self._loaded_fingerprint


class Reloader:
    """Reloads the file, watches it, and reports the last result."""

    def __init__(
        self,
        file: ConfigFile,
        config: Config,
        metrics: Metrics,
        shutdown: Shutdown,
        systemd: SystemdNotifier,
        background: TaskSupervisor,
    ) -> None:
        """``config`` is what was read from the file at the start."""
        self._file = file
        self._config = config
        self._reload_counter = metrics.config_reloads
        self._shutdown = shutdown
        self._systemd = systemd
        self._background = background
        self._apply_config: ApplyConfig | None = None
        self._loaded_ms = unix_ms()
        self._last_success_ms = self._loaded_ms
        self._last_result: ReloadResult | None = None
        self._serving = asyncio.Event()
        self._lock = asyncio.Lock()
        self._is_sighup_pending = False
        self._is_stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._had_terminal = os.isatty(2)
        metrics.bind_gauge(
            "config_last_reload_successful",
            lambda: self._last_result is None or self._last_result.result != "failed",
        )
        metrics.bind_gauge(
            "config_last_reload_success_timestamp_seconds", lambda: self._last_success_ms / 1000
        )

    def handle_sighup(self, on_hangup: OnSignal) -> None:
        """Reload on SIGHUP, which would otherwise end this process, also before it serves.

        ``on_hangup`` is called instead when the terminal of this process was closed. Needs a running loop.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._on_sighup, on_hangup)

    def start(self, apply_config: ApplyConfig) -> None:
        """Reload from now on, and watch the files."""
        self._apply_config = apply_config
        self._serving.set()
        self._track_task(self._background.start_task("config_watch", self._watch))

    async def stop(self) -> None:
        """Stop reloading; harmless when repeated. SIGHUP is still handled: it must not cut a drain short."""
        self._is_stopping = True
        self._serving.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _has_failed(self) -> bool:
        return self._last_result is not None and self._last_result.result == "failed"

    def config_status(self) -> ConfigStatus:
        """Return what ``/status`` shows of the configuration."""
        return ConfigStatus(self._file.name, self._loaded_ms, self._last_result)

    async def reload(self, trigger: str) -> ReloadResult:
        """Read the file and apply it, one reload at a time, once `start` was called. Cancelling is safe.

        ``trigger`` is what caused it, for the log.
        """
        await self._serving.wait()
        async with self._lock:
            self._is_sighup_pending = False  # a signal from here on may be about a newer file
            if self._is_stopping or self._shutdown.requested.is_set():
                return ReloadResult(unix_ms(), "failed", "the gateway is shutting down")
            self._systemd.notify_reloading()
            try:
                outcome = await self._apply_file()
            finally:
                self._systemd.notify_ready("serving")
        self._last_result = outcome
        self._reload_counter.labels(outcome.result).inc()
        if outcome.result != "failed":
            self._last_success_ms = outcome.at_ms
        if outcome.result == "ok":
            self._loaded_ms = outcome.at_ms
        self._log_result(outcome, trigger)
        return outcome

    async def _apply_file(self) -> ReloadResult:
        assert self._apply_config is not None, "start comes first"
        try:
            config = await asyncio.to_thread(self._file.load)
            changes = diff_configs(self._config, config)
            refused = [each.issue for each in changes if each.needs_restart]
            if refused:
                raise await asyncio.to_thread(self._file.locate_faults, refused)
            # Also if nothing in it changed: a key file that it names may have.
            ended = await self._apply_config(config)
            self._config = config
        except ConfigError as error:
            errors = [_reload_error(each) for each in error.errors]
            return ReloadResult(unix_ms(), "failed", _summarize(error), errors)
        except GatewayError as error:
            return ReloadResult(unix_ms(), "failed", error.message)
        except Exception as error:
            log.exception("config_reload_crashed")
            return ReloadResult(unix_ms(), "failed", f"{type(error).__name__}; the log has more")
        if not changes and not ended:
            message = "no setting changed; the files that the configuration refers to were read again"
            return ReloadResult(unix_ms(), "unchanged", message)
        what = _pluralize(len(changes), "change") if changes else "a file that it refers to changed"
        message = f"{what}; {_pluralize(ended, 'stream')} ended"
        return ReloadResult(unix_ms(), "ok", message, changes=[str(each) for each in changes], ended=ended)

    def _log_result(self, result: ReloadResult, trigger: str) -> None:
        about: dict[str, Any] = {"file": self._file.name, "why": trigger}
        if result.result == "failed":
            errors = msgspec.to_builtins(result.errors)
            note = "nothing changed; the previous configuration stays in use"
            log.error("config_reload_failed", **about, error=result.message, mistakes=errors, note=note)
        elif result.result == "unchanged":
            log.info("config_unchanged", **about)
        else:
            log_warnings(self._file.warnings)
            log.info("config_reloaded", **about, changes=result.changes, streams_ended=result.ended)

    def _on_sighup(self, on_hangup: OnSignal) -> None:
        if self._had_terminal and not os.isatty(2):
            # The terminal that the gateway was started in was closed: it ends with it.
            on_hangup(signal.SIGHUP)
            return
        if not self._is_sighup_pending:
            self._is_sighup_pending = True
            self._track_task(asyncio.create_task(self.reload("SIGHUP"), name="reload"))

    async def _watch(self) -> None:
        before = tried = self._file.loaded_fingerprint
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                now = await asyncio.to_thread(self._file.read_fingerprint)
                if now == before and now not in (self._file.loaded_fingerprint, tried):
                    tried = now
                    await self.reload("the file changed")
                before = now
            except Exception as error:
                self._background.record_failure("config_watch", error)

    def _track_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _reload_error(found: LocatedIssue) -> ReloadError:
    return ReloadError(found.line, found.column, format_path(found.issue.path), found.issue.message)


def _summarize(error: ConfigError) -> str:
    """Return the first error in one line, with its position, and how many more there are."""
    first = error.errors[0].render(error.file).partition("\n")[0]
    more = len(error.errors) - 1
    return f"{first} (and {more} more)" if more else first


def _pluralize(number: int, thing: str) -> str:
    return f"1 {thing}" if number == 1 else f"{number} {thing}s"
