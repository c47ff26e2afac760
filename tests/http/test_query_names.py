"""Query names in any case, and unknown ones."""

from typing import Any

import pytest
import structlog.testing
from yarl import URL

from gateway.config.model.auth import RESERVED_QUERY_NAMES, canonical_query_name
from gateway.core.errors import BadRequest
from gateway.core.event import EventId
from gateway.http.query import _parse_since
from gateway.http.request import _normalize_query_names
from gateway.http.routes.subscribe import MAX_LOGGED_UNKNOWN_NAMES
from gateway.observability.log_throttle import MAX_THROTTLED_KEYS
from tests.support.gateway import Gateway, gateway_running

WAYS = {"front": {}, "aiohttp": {"Content-Length": "0"}}
"""A request with a body is aiohttp's."""


def told(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["event"] == "query_name_unknown"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", ["lastEventID", "LASTEVENTID", "LAST_EVENT_ID", "last-event-id", "EVS_last_event_id", "LastEvent"]
)
async def test_a_resume_point_is_known_in_any_case(gateway: Gateway, way: str, name: str) -> None:
    """Mercure's own spelling is lastEventID: ignored in silence, it loses what was missed."""
    first, second = await gateway.post("orders", "1"), await gateway.post("orders", "2")
    stream = await gateway.open(f"/events/orders?{name}={first[0]}", WAYS[way])
    assert (await stream.next()).json["resume"] == "complete"
    message = await stream.next()
    assert (message.json["payload"], message.id) == (2, second[0])


@pytest.mark.parametrize("way", WAYS)
async def test_all_names_are_known_in_any_case(gateway: Gateway, way: str) -> None:
    """Channel= and FORMAT= work like channel= and format=."""
    await gateway.post("orders", "1")
    query = "Channel=orders&CHANNEL=stock&FORMAT=data&Last=9&Heartbeat=event&CLIENT=a"
    stream = await gateway.open(f"/events?{query}", WAYS[way])
    assert (await stream.next()).json["channels"] == ["orders", "stock"]
    assert (await stream.next()).data == "1"
    (served,) = gateway.daemon.streams.active
    assert served.has_heartbeat_events
    assert len(gateway.daemon.limits.quotas_by_client) == 1


def test_each_name_has_one_usual_spelling() -> None:
    """Two names that differ in case alone would be one, and one of them would never be read."""
    assert len({name.lower() for name in RESERVED_QUERY_NAMES}) == len(RESERVED_QUERY_NAMES)
    assert {canonical_query_name(name.upper()) for name in RESERVED_QUERY_NAMES} == RESERVED_QUERY_NAMES
    assert canonical_query_name("Other") == "Other"


@pytest.mark.parametrize("way", WAYS)
async def test_a_name_that_nobody_reads_is_told(gateway: Gateway, way: str) -> None:
    """?type=a filters nothing: without a line, its author looks for the fault elsewhere."""
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            await gateway.subscribe("/events/orders?type=s3cr3t&_=1", WAYS[way])
    assert [(line["name"], line["meant"], line["times"]) for line in told(lines)] == [
        ("type", "types", 1),
        ("_", None, 1),
    ]
    assert "s3cr3t" not in str(lines)


async def test_what_may_be_a_secret_is_no_name(gateway: Gateway) -> None:
    """A token in the place of a name must not reach the log."""
    with structlog.testing.capture_logs() as lines:
        await gateway.subscribe("/events/orders?eyJhbGciOiJIUzI1NiJ9")
        await gateway.subscribe(f"/events/orders?{'x' * 41}=1&a%20b=1")
    assert told(lines) == []


async def test_names_are_told_within_bounds(gateway: Gateway) -> None:
    """A client that makes up names must fill neither the log nor the memory."""
    with structlog.testing.capture_logs() as lines:
        query = "&".join(f"n{number}=1" for number in range(500))
        await gateway.subscribe(f"/events/orders?{query}")
    assert len(told(lines)) == MAX_LOGGED_UNKNOWN_NAMES
    for number in range(2 * MAX_THROTTLED_KEYS):
        gateway.daemon.subscribe_handler.unknown_name_throttle.should_log(f"n{number}")
    assert len(gateway.daemon.subscribe_handler.unknown_name_throttle._last_logged) == MAX_THROTTLED_KEYS


@pytest.mark.parametrize(
    "auth",
    [
        {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}, "query": "access_token"},
        {"forward": {"url": "http://127.0.0.1:1/"}},
    ],
)
async def test_names_that_decide_who_may_read_are_known(auth: Any) -> None:
    """A warning about a name that works would send its reader in the wrong direction."""
    async with gateway_running({"auth": auth}) as gateway:
        with structlog.testing.capture_logs() as lines:
            await gateway.subscribe("/events/orders?access_token=x")
        assert told(lines) == []


def test_a_query_that_is_spelled_as_usual_is_not_copied() -> None:
    """Opening a stream costs what a herd costs."""
    query = URL("/events?channel=a&lastEventId=1-0&other=1").query
    assert _normalize_query_names(query) is query


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1767225600", 1767225600000),
        ("1767225600123", 1767225600123),
        ("99999999999", 99999999999000),
        ("2026-01-01t00:00:00z", 1767225600000),
        ("2026-01-01T02:00:00 02:00", 1767225600000),
        ("2026-01-01 02:00:00.000 0200", 1767225600000),
        ("2026-01-01 02:00", 1767232800000),
    ],
)
def test_times_that_people_write(text: str, ms: int) -> None:
    """An event's timestamp, and a zone with an unencoded plus, are accepted as times."""
    assert _parse_since(text) == EventId.last_before_ms(ms)


@pytest.mark.parametrize("text", ["0", "15", "12345678", "123456789012345", "1767225600123456", "1e12", "-1"])
def test_numbers_that_are_no_times(text: str) -> None:
    """A number of another unit must not begin anywhere by chance."""
    with pytest.raises(BadRequest, match="unix milliseconds"):
        _parse_since(text)
