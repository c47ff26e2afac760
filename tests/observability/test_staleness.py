"""Staleness: detected in time, reported once, and not on nodes that do not receive the events."""

import pytest

from gateway.observability.staleness import StalenessMonitor, StalenessWatch
from tests.support.gateway import eventually, gateway_running


class Clock:
    now = 1_000_000

    def __call__(self) -> int:
        return self.now


def test_silence_counts_from_the_last_word_or_from_when_somebody_listens() -> None:
    """A start is no silence, and a node that reads nothing misses nothing."""
    clock, last = Clock(), {"s": 0, "c": None}
    freshness = StalenessMonitor(
        [
            StalenessWatch("source", "s", 10, is_critical=True, read_last_event_ms=lambda: last["s"]),
            StalenessWatch("channel", "c", 10, is_critical=False, read_last_event_ms=lambda: last["c"]),
        ],
        clock,
    )

    def after(seconds: float) -> list[float | None]:
        clock.now += round(seconds * 1000)
        freshness.update_all()
        return [*freshness.stale_samples("source").values(), *freshness.stale_samples("channel").values()]

    assert after(0) == [0, 0]
    assert after(9) == [0, 0]
    assert after(2) == [1, 0]
    assert freshness.unready_reasons() == ["source s is stale"]
    last["s"], last["c"] = clock.now, 0
    assert after(0) == [0, 0]
    assert freshness.unready_reasons() == []
    assert after(10.1) == [1, 1], "the channel is heard by now, from then on"
    last["c"] = None
    assert after(0) == [1, 0]
    last["c"] = 0
    assert after(1) == [1, 0], "heard again: silence begins anew"
    assert (freshness.is_stale("source", "s"), freshness.is_stale("source", "other")) == (True, None)


@pytest.mark.idle_clock
async def test_a_silent_channel_makes_a_node_unready_until_it_speaks(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metric, /status, /readyz and one line in the log."""
    clock = Clock()
    monkeypatch.setattr("gateway.server.components.unix_ms", clock)
    over = {
        "logging": {"level": "info"},
        "sources": {"hooks": {"stale_after": "1h"}},
        "channels": {"orders": {"stale_after": "1h", "critical": True}},
    }
    async with gateway_running(over) as gateway:

        async def is_ready() -> bool:
            return (await gateway.admin("/readyz"))[0] == 200

        async def is_unready() -> bool:
            status, answer = await gateway.admin("/readyz")
            return status == 503 and answer["not_ready"] == ["channel orders is stale"]

        await eventually(is_ready)
        clock.now += 3_599_000
        gateway.daemon.staleness_monitor.update_all()
        assert await is_ready()
        clock.now += 2_000
        await eventually(is_unready)
        assert await gateway.metric('channel_stale{channel="orders"}') == 1
        assert await gateway.metric('source_stale{source="hooks"}') == 1
        _, status = await gateway.admin("/status")
        assert [each["stale"] for each in status["channels"]] == [True, None, None]
        await gateway.post("orders", "1")
        await eventually(is_ready)
        assert await gateway.metric('source_stale{source="hooks"}') == 0
    lines = "".join(capfd.readouterr())
    assert '"event": "stale"' in lines or "stale" in lines
    assert "staleness_ended" in lines
