"""What the messages about a configuration file never show."""

import pytest

from gateway.config.loader.issues import ConfigError
from tests.config.test_load import GOOD, one_error
from tests.support.config import loads


@pytest.mark.parametrize(
    "more",
    [
        "brokr: {uri: 'redis://:c4n4ry@h'}",
        "broker: redis://:c4n4ry@h",
        "broker: {ulr: 'redis://:c4n4ry@h', timeout: 5}",
        "server: {admin_tokn: c4n4ry}",
        "server:\n  admin_tokn:\n    - c4n4ry\n    - {a: c4n4ry}",
        "server: {admin_token: c4n4ry, admin: 5}",
        "server: {admin_token: !c4n4ry }",
        "server: {listen: '${PW}'}",
        "log: {level: '${PW}', format: '${PW}'}",
        "timeouts: {retry: '${PW}'}",
        "cors: {origins: ['${PW}']}",
        "auth: {jwt: c4n4ry}",
        "auth: {jwt: {algorithms: [HS256], secret: c4n4ry, secrt: c4n4ry}}",
        "auth: {jwt: {algorithms: c4n4ry}}",
        "auth: {jwt: {algorithms: [HS256], secret: {a: c4n4ry}}}",
        "auth: {jwt: {algorithms: [HS256], secret: 'c4n4ry}}",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(more: str) -> None:
    """A misspelled key, a wrong shape, a variable too many: check's output ends up in the log of a build."""
    with pytest.raises(ConfigError) as caught:
        loads(GOOD + more, environ={"PW": "c4n4ry-password"})
    assert "c4n4ry" not in caught.value.message


def test_a_variable_that_is_wrong_is_quoted_by_its_name() -> None:
    """What it stands for may be a secret; the name is what the operator can change."""
    assert "'${PORT}' is not an address" in one_error("server: {listen: '${PORT}'}", {"PORT": "8080"})


def test_an_unknown_key_is_shown_without_its_value() -> None:
    """The eye finds the place, and no password."""
    with pytest.raises(ConfigError) as caught:
        loads("log: {lvl: secret, level: 5}\n" + GOOD, file="g.yaml")
    assert "\n  1 |       lvl: …\n    |       ^\n" in caught.value.message
    assert "secret" not in caught.value.message
