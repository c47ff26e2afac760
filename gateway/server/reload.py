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

from gateway.admin.status import ReloadError, ReloadResult
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

# The files that a configuration is made of, and places in them.


def locate_faults(text: str, file: str, faults: Sequence[ConfigIssue]) -> ConfigError:
    """Return the error that reports faults of a text that could be used otherwise, at their places."""
    return ConfigError(file, parse_yaml(text, file).locate(faults))


def referenced_files(
    content: str, folder: FilePath, environ: Mapping[str, str] = os.environ
) -> list[FilePath]:
    """Return the files that a configuration refers to: a change of one is a change of the whole.

    What is no YAML refers to none.
    """
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
"""How often the files are looked at."""


class ReloadTarget(Protocol):
    """Whoever serves: one node, or the parent of several."""

    config: Config
    shutdown: Shutdown
    systemd: SystemdNotifier
    metrics: Metrics
    background: TaskSupervisor

    def on_signal(self, number: signal.Signals) -> None:
        """Begin to end."""

    async def apply_config(self, config: Config) -> int:
        """Serve by another configuration, and return how many streams end by it. Raises GatewayError."""


class ConfigFile:
    """The file, and what it looked like when it was read last."""

    def __init__(self, path: str | Path, local: LocalChecker | None = None) -> None:
        """``local`` looks at the files that a good configuration names, see `gateway.config.loader.load`."""
        self.path = Path(path)
        self._folder = config_folder(path)
        self._local = local
        self.warnings: Sequence[ConfigIssue] = ()
        """What was told of it when it was read last, and is not accepted."""
        self.name = str(path)
        """How messages name it."""
        self._watched_files: Sequence[Path] = [self.path]
        self._loaded_fingerprint: FileFingerprint = ()
        self._text = ""

    def load(self) -> Config:
        """Return what it says now. Raises ConfigError or StartupError."""
        is_first = not self._loaded_fingerprint
        # Before what they hold: what is written meanwhile is seen later.
        self._watched_files, self._loaded_fingerprint = [self.path], file_fingerprint([self.path])
        if not is_first and self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
            raise StartupError(f"{self.name} is no file that can be read again; it takes a restart")
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
        """Return the error that reports what else is wrong with what was read last."""
        return locate_faults(self._text, self.name, faults)

    def read_fingerprint(self) -> FileFingerprint:
        """Return what it looks like now, and the files that it refers to."""
        return file_fingerprint(self._watched_files)

    @property
    def loaded_fingerprint(self) -> FileFingerprint:
        """What they looked like when they were read."""
        return self._loaded_fingerprint


class Reloader:
    """Owns the watch, and tells what became of the last reload."""

    def __init__(self, file: ConfigFile, target: ReloadTarget) -> None:
        self._file = file
        self._target = target
        self._loaded_ms = unix_ms()
        self._last_success_ms = self._loaded_ms
        self._last_result: ReloadResult | None = None
        self._serving = asyncio.Event()
        self._lock = asyncio.Lock()
        self._is_sighup_pending = False
        self._is_stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._had_terminal = os.isatty(2)
        metrics = target.metrics
        metrics.bind_gauge(
            "config_last_reload_successful",
            lambda: self._last_result is None or self._last_result.result != "failed",
        )
        metrics.bind_gauge(
            "config_last_reload_success_timestamp_seconds", lambda: self._last_success_ms / 1000
        )

    def handle_sighup(self) -> None:
        """Listen to SIGHUP, which would end this process, also before it serves. Needs a running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_sighup)

    def start(self) -> None:
        """Reload from now on, and watch the files."""
        self._serving.set()
        self._track_task(self._target.background.start_task("config_watch", self._watch))

    async def stop(self) -> None:
        """End; harmless when repeated. SIGHUP is still heard: it must not cut a drain short."""
        self._is_stopping = True
        self._serving.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _has_failed(self) -> bool:
        return self._last_result is not None and self._last_result.result == "failed"

    def config_status(self) -> dict[str, Any]:
        """Return what ``/status`` shows of the configuration."""
        last = None if self._last_result is None else msgspec.to_builtins(self._last_result)
        return {"file": self._file.name, "loaded_ms": self._loaded_ms, "last_reload": last}

    async def reload(self, trigger: str) -> ReloadResult:
        """Read the file and go over to it. One at a time, once it serves; ``why`` is for the log.

        Cancelling is safe.
        """
        await self._serving.wait()
        async with self._lock:
            self._is_sighup_pending = False  # who asks from here on may mean another file
            if self._is_stopping or self._target.shutdown.requested.is_set():
                return ReloadResult(unix_ms(), "failed", "the gateway is shutting down")
            systemd = self._target.systemd
            systemd.notify_reloading()
            try:
                outcome = await self._apply_file()
            finally:
                systemd.notify_ready("serving")
        self._last_result = outcome
        self._target.metrics.config_reloads.labels(outcome.result).inc()
        if outcome.result != "failed":
            self._last_success_ms = outcome.at_ms
        if outcome.result == "ok":
            self._loaded_ms = outcome.at_ms
        self._log_result(outcome, trigger)
        return outcome

    async def _apply_file(self) -> ReloadResult:
        server, old = self._target, self._target.config
        try:
            config = await asyncio.to_thread(self._file.load)
            changes = diff_configs(old, config)
            refused = [each.issue for each in changes if each.needs_restart]
            if refused:
                raise await asyncio.to_thread(self._file.locate_faults, refused)
            # Also without a change in it: a key file that it names may be another one.
            ended = await server.apply_config(config)
        except ConfigError as error:
            mistakes = [_reload_error(each) for each in error.errors]
            return ReloadResult(unix_ms(), "failed", _summarize(error), mistakes)
        except GatewayError as error:
            return ReloadResult(unix_ms(), "failed", error.message)
        except Exception as error:
            log.exception("config_reload_crashed")
            return ReloadResult(unix_ms(), "failed", f"{type(error).__name__}; the log has more")
        if not changes and not ended:
            message = "nothing in the file differs from what is served; what it refers to was read again"
            return ReloadResult(unix_ms(), "unchanged", message)
        what = _pluralize(len(changes), "change") if changes else "a file that it refers to changed"
        message = f"{what}; {_pluralize(ended, 'stream')} ended"
        return ReloadResult(unix_ms(), "ok", message, changes=[str(each) for each in changes], ended=ended)

    def _log_result(self, result: ReloadResult, trigger: str) -> None:
        about: dict[str, Any] = {"file": self._file.name, "why": trigger}
        if result.result == "failed":
            mistakes = msgspec.to_builtins(result.errors)
            note = "nothing was changed; the configuration from before goes on"
            log.error("config_reload_failed", **about, error=result.message, mistakes=mistakes, note=note)
        elif result.result == "unchanged":
            log.info("config_unchanged", **about)
        else:
            log_warnings(self._file.warnings)
            log.info("config_reloaded", **about, changes=result.changes, streams_ended=result.ended)

    def _on_sighup(self) -> None:
        if self._had_terminal and not os.isatty(2):
            # The terminal that it was started in was closed: nobody wants a gateway that nobody sees.
            self._target.on_signal(signal.SIGHUP)
            return
        if not self._is_sighup_pending:
            self._is_sighup_pending = True
            self._track_task(asyncio.create_task(self.reload("SIGHUP"), name="reload"))

    async def _watch(self) -> None:
        before = told = self._file.loaded_fingerprint
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                now = await asyncio.to_thread(self._file.read_fingerprint)
                if now == before and now not in (self._file.loaded_fingerprint, told):
                    told = now
                    await self.reload("the file changed")
                before = now
            except Exception as error:
                self._target.background.record_failure("config_watch", error)

    def _track_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _reload_error(found: LocatedIssue) -> ReloadError:
    return ReloadError(found.line, found.column, format_path(found.issue.path), found.issue.message)


def _summarize(error: ConfigError) -> str:
    """Return the first mistake in one line, with its place, and how many more there are."""
    first = error.errors[0].render(error.file).partition("\n")[0]
    more = len(error.errors) - 1
    return f"{first} (and {more} more)" if more else first


def _pluralize(number: int, thing: str) -> str:
    return f"1 {thing}" if number == 1 else f"{number} {thing}s"
