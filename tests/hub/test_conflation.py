"""The keys of channels that conflate: few bytes each, bounded together, and gone with the last watcher."""

import pytest

from gateway.broker.memory import MemoryBroker
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import ChannelConfig
from gateway.core.clock import unix_ms
from gateway.core.event import Draft, Event, EventId, Retention
from gateway.hub import conflation as module
from gateway.hub.conflation import CHANNEL_OVERHEAD_BYTES, KEY_OVERHEAD_BYTES, ConflationIndex
from gateway.hub.encoded_event import MAX_KEY_BYTES, EncodedEvent
from gateway.hub.hub import CONFLATION_BYTES_DIVISOR, Hub
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from tests.support.memory import traced

CONFLATE = ChannelConfig.model_validate(
    {"from": [{"source": "s", "topic": "*"}], "access": "public", "slow_client": {"conflate": "{/id}"}}
)
CATALOG = ChannelCatalog({"prices": CONFLATE, "stocks": CONFLATE, "user.{id}": CONFLATE})
LONG = 200_000
"""Characters of a key."""


def entry(number: int, key: str, channel: str = "prices") -> EncodedEvent:
    """Return an event of a channel, the ``number``-th of all."""
    match = CATALOG.resolve(channel)
    assert match is not None
    payload = b'{"id":"%s"}' % key.encode()
    return EncodedEvent(
        Event(EventId(1, number), channel, payload, 0, None, is_retained=True), match.declared
    )


def long(number: int) -> str:
    """Return a key that differs from others at its end, in text that takes four bytes a character."""
    return f"{'😀' * (LONG // 4)}{number}"


def test_a_key_takes_as_many_bytes_as_it_is_counted_with() -> None:
    """The bound is one of memory only if a key takes no more, whatever a sender puts there."""
    newest = ConflationIndex(10_000 * KEY_OVERHEAD_BYTES + CHANNEL_OVERHEAD_BYTES)
    with traced() as grown:
        for number in range(300):
            newest.record(entry(number, long(number)))
        assert grown() <= 300 * KEY_OVERHEAD_BYTES
        for number in range(300, 12_000):
            newest.record(entry(number, f"{number:0>32}{number}"))
        assert len(newest) == 10_000
        assert grown() <= 10_000 * KEY_OVERHEAD_BYTES


def test_channels_with_a_single_key_are_counted_whole() -> None:
    """Each user's channel may have one key, and be two thirds of what that takes."""
    newest = ConflationIndex(1 << 20)
    with traced() as grown:
        for number in range(3000):
            newest.record(entry(number, long(number), f"user.{number}".ljust(120, "x")))
        assert len(newest) == (1 << 20) // (KEY_OVERHEAD_BYTES + CHANNEL_OVERHEAD_BYTES)
        CATALOG._declare({"prices": CONFLATE, "stocks": CONFLATE, "user.{id}": CONFLATE})
        assert grown() <= 1 << 20


@pytest.mark.parametrize("key", ["a", "a" * 31, "a" * 32, "😀" * 1000])
def test_keys_of_any_length_are_told_apart(key: str) -> None:
    """A slow client gets the newest event of each key, and not of some keys together."""
    newest = ConflationIndex(10**6)
    old, new, other = entry(1, key), entry(2, key), entry(3, f"{key}b")
    for each in (old, new, other):
        newest.record(each)
    assert [newest.is_superseded(each) for each in (old, new, other)] == [True, False, False]
    assert not newest.is_superseded(entry(1, key, "stocks")), "another channel's key is another key"


def test_no_key_is_spelled_like_the_digest_of_another() -> None:
    """Who knows how long keys are shortened could make a client miss an event of somebody else's."""
    shortened = entry(1, "a" * 1000).conflation_key
    assert shortened is not None
    with pytest.raises(UnicodeDecodeError):
        shortened.decode()


def test_an_event_does_not_hold_its_long_key() -> None:
    """A ring counts the payload twice, and text may take four times as many bytes as it has."""
    event = entry(1, long(1))
    assert event.conflation_key is not None
    assert len(event.conflation_key) <= MAX_KEY_BYTES


def test_the_quietest_channel_forgets_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are forgotten cost bytes on the wire: best those of a channel that hardly speaks."""
    monkeypatch.setattr(module, "MAX_KEYS", 4)
    newest = ConflationIndex(10**6)
    for number in range(3):
        newest.record(entry(number, str(number), "stocks"))
    for number in range(10, 13):
        newest.record(entry(number, str(number)))
    assert len(newest) == 4
    old = [entry(1, str(number), "stocks") for number in (0, 1)]
    assert not any(newest.is_superseded(each) for each in old), "forgotten, oldest first"
    assert all(newest.is_superseded(entry(1, str(number))) for number in range(10, 13))
    newest.set_max_bytes(0)
    newest.record(entry(20, "20"))
    assert len(newest) == 0


async def test_the_memory_goes_with_the_last_stream() -> None:
    """A process must shrink again once nobody listens to channels with many keys."""
    limit = 4 << 20
    broker = MemoryBroker(history_bytes=1 << 16)
    hub = Hub(broker, CATALOG, Metrics(), ring_seconds=60, ring_bytes=limit, clock=unix_ms)
    hub.start()
    match = CATALOG.resolve("user.7")
    assert match is not None
    subscription = Subscription.of((match,))
    with traced() as grown:
        hub.watch(subscription)
        for number in range(500):
            payload = entry(number, long(number)).event.payload
            await broker.append([Draft("user.7", payload, 0, Retention(0))])
            del payload
        for number in range(500, 4000):
            await broker.append([Draft("user.7", b'{"id":%d}' % number, 0, Retention(0))])
        assert (
            len(hub.conflation)
            == (limit // CONFLATION_BYTES_DIVISOR - CHANNEL_OVERHEAD_BYTES) // KEY_OVERHEAD_BYTES
        )
        assert limit // 2 < grown() <= limit + limit // CONFLATION_BYTES_DIVISOR
        hub.unwatch(subscription)
        assert len(hub.conflation) == 0
        assert grown() <= limit // 16, "tables that were large stay so; nothing is in them"
