"""Warnings at a start; the corpus shows each of them."""

from structlog.testing import capture_logs

from gateway.config.loader.load import load_text
from gateway.config.validation.warnings import MAX_LOGGED_WARNINGS, log_warnings, unaccepted_warnings
from tests.config.test_load import GOOD
from tests.support.config import loads


def test_a_start_with_very_many_warnings_writes_some_and_their_number() -> None:
    """A generated file of thousands of channels must not flood the log."""
    channels = "".join(
        f"  c{number}.{{id}}: {{from: [{{source: hooks, topic: 'c{number}:{{id}}'}}], access: public}}\n"
        for number in range(MAX_LOGGED_WARNINGS + 20)
    )
    config = loads(GOOD + channels, environ={})
    with capture_logs() as lines:
        log_warnings(unaccepted_warnings(config, {}))
    assert len(lines) == MAX_LOGGED_WARNINGS + 1
    assert (lines[-1]["event"], lines[-1]["number"]) == ("config_warnings_truncated", 21)


def test_an_old_name_of_a_key_works_and_is_reported() -> None:
    """An upgrade that renames a key must not stop a node whose file has the old name."""
    result = load_text("log: {level: debug}" + GOOD, environ={})
    assert result.require_config().logging.level == "debug"
    found = [(each.issue.warning_code, each.issue.path, each.line) for each in result.warnings]
    assert ("renamed-key", ("logging",), 1) in found
    accepted = load_text("check: {allow: [renamed-key]}\nlog: {level: debug}" + GOOD, environ={})
    assert accepted.config is not None
    assert "renamed-key" not in [each.issue.warning_code for each in accepted.warnings]


def test_old_and_new_name_of_a_key_together_are_an_error() -> None:
    """One of the two would be ignored in silence."""
    result = load_text("logging: {level: info}\nlog: {level: debug}" + GOOD, environ={})
    assert [each.issue.message for each in result.errors] == [
        "the key 'logging' is already given in line 1; remove one"
    ]
