"""Redis URLs: the syntax of every kind of deployment, and errors that must not be misread."""

import pytest

from gateway.config.model.redis_url import RedisUrl


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://h", RedisUrl("single", "redis://h")),
        (
            "rediss://u:p@h:6380/2?ssl_ca_certs=ca.pem",
            RedisUrl("single", "rediss://u:p@h:6380/2?ssl_ca_certs=ca.pem"),
        ),
        ("unix:///run/redis.sock?db=1", RedisUrl("single", "unix:///run/redis.sock?db=1")),
        (
            "redis+sentinel://u:p@a,b:1,[::1]:2/main/3?sentinel_password=s",
            RedisUrl(
                "sentinel",
                "redis://u:p@host:1/3?sentinel_password=s",
                (("a", 26379), ("b", 1), ("::1", 2)),
                "main",
            ),
        ),
        ("rediss+cluster://a,b:7001", RedisUrl("cluster", "rediss://host:1/?", (("a", 6379), ("b", 7001)))),
    ],
)
def test_what_a_url_says(text: str, expected: RedisUrl) -> None:
    """Hosts, names, databases, and the rest as redis-py will read it."""
    assert RedisUrl.parse(text) == expected


@pytest.mark.parametrize("scheme", ["rediss://h/", "rediss+sentinel://h/main", "rediss+cluster://h"])
@pytest.mark.parametrize("value", ["none", "optional", "NONE", "%6eone"])
def test_verification_cannot_be_switched_off(scheme: str, value: str) -> None:
    """Whoever is on the way would be given the password, and could write into the log."""
    RedisUrl.parse(f"{scheme}?ssl_cert_reqs=required")
    with pytest.raises(ValueError, match="ssl_ca_certs=/path") as error:
        RedisUrl.parse(f"{scheme}?db=1&ssl_cert_reqs={value}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", True),
        ("?ssl_check_hostname=true", True),
        ("?ssl_check_hostname=False", False),
        ("?ssl_check_hostname=0", False),
    ],
)
def test_whether_the_host_is_checked(query: str, expected: bool) -> None:
    """A disabled host name check is warned about at the start, so it must be detected."""
    assert RedisUrl.parse(f"rediss://h/{query}").is_hostname_checked is expected
    assert RedisUrl.parse(f"rediss+cluster://h{query}").is_hostname_checked is expected


@pytest.mark.parametrize(
    "text",
    [
        "http://h",
        "redis://",
        "redis://:pa/ss@h",
        "redis://h:99999",
        "redis+sentinel://a:1",
        "redis+sentinel://a:1/main/x",
        "redis+sentinel:///main",
        "redis+cluster://a:0",
        "redis+cluster://a:1/2",
        "redis+other://a:1",
        "redis+sentinel://u:secret@a:b/main",
    ],
)
def test_what_is_none(text: str) -> None:
    """Refused when the file is read, with words that quote no password."""
    with pytest.raises(ValueError, match=r"\w") as error:
        RedisUrl.parse(text)
    assert "secret" not in str(error.value)
