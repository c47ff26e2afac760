"""Warnings in the log of a start; which there are is shown by the corpus."""

from structlog.testing import capture_logs

from gateway.config.loader.load import loads
from gateway.config.validation.warnings import MAX_LOGGED_WARNINGS, log_warnings, unaccepted_warnings
from tests.config.test_load import GOOD


def test_a_start_with_very_many_warnings_writes_some_and_their_number() -> None:
    """A generated file of thousands of channels must not fill the log with one thought."""
    channels = "".join(
        f"  c{number}.{{id}}: {{from: [{{source: hooks, topic: 'c{number}:{{id}}'}}], access: public}}\n"
        for number in range(MAX_LOGGED_WARNINGS + 20)
    )
    config = loads(GOOD + channels, environ={})
    with capture_logs() as lines:
        log_warnings(unaccepted_warnings(config, {}))
    assert len(lines) == MAX_LOGGED_WARNINGS + 1
    assert (lines[-1]["event"], lines[-1]["number"]) == ("config_warnings_truncated", 21)
