"""The admin port."""

from tests.support.gateway import Gateway, eventually, gateway_running


async def test_metrics_tell_the_way_of_an_event(gateway: Gateway) -> None:
    """One event to three streams, in numbers."""
    streams = [
        await gateway.subscribe(path)
        for path in ("/events/orders", "/events/orders", "/events?channel=orders,stock")
    ]
    await gateway.post("orders", "1")
    for stream in streams:
        await stream.next()
    for name, value in {
        "active_connections": 3,
        "connections_total": 3,
        'channel_connections{channel="orders"}': 3,
        'channel_connections{channel="stock"}': 1,
        'events_received_total{source="hooks"}': 1,
        'events_published_total{channel="orders"}': 1,
        'events_delivered_total{channel="orders"}': 3,
        'source_up{source="hooks"}': 1,
        "broker_up": 1,
        "broker_append_seconds_count": 1,
        "lagging_streams": 0,
    }.items():
        assert await gateway.metric(name) == value, name
    assert await gateway.metric("bytes_sent_total") == sum(stream.size for stream in streams)
    assert await gateway.metric('source_last_event_timestamp_seconds{source="hooks"}') > 1e9


async def test_who_leaves_is_counted_out() -> None:
    """Counts that are kept could drift; each stream counts once on each channel as it is declared."""
    user = {"from": [{"source": "hooks", "topic": "u.{id}"}], "access": "public"}
    async with gateway_running({"channels": {"user.{id}": user}}) as gateway:
        stream = await gateway.subscribe("/events?channel=orders,user.1,user.2")
        other = await gateway.subscribe("/events/user.1")
        listeners = gateway.daemon.streams.streams_per_channel
        assert +listeners == {"orders": 1, "user.{id}": 2}
        assert await gateway.metric('channel_connections{channel="user.{id}"}') == 2
        stream.close()
        await eventually(lambda: +listeners == {"user.{id}": 1})
        other.close()
        await eventually(lambda: not +listeners)
        assert await gateway.metric('channel_connections{channel="user.{id}"}') == 0


async def test_status_and_health(gateway: Gateway) -> None:
    """What ops look at first."""
    await gateway.subscribe("/events/orders")
    assert await gateway.admin("/healthz") == (200, {"alive": True})
    code, ready = await gateway.admin("/readyz")
    assert (code, ready["ready"], ready["not_ready"], ready["sources"]) == (200, True, [], {"hooks": "up"})
    code, status = await gateway.admin("/status")
    assert code == 200
    assert status["streams"]["active"] == 1
    assert status["broker"]["up"] is True
    assert {channel["name"]: channel["listeners"] for channel in status["channels"]} == {
        "orders": 1, "stock": 0, "news": 0,
    }  # fmt: skip
    (source,) = status["sources"]
    assert (source["name"], source["type"], source["status"]) == ("hooks", "webhook", "up")


async def test_the_ports_do_not_mix(gateway: Gateway) -> None:
    """Metrics are not public, streams are not on the admin port."""
    async with gateway.session.get(f"{gateway.url}/metrics") as answer:
        assert answer.status == 404
    assert (await gateway.admin("/events/orders"))[0] == 404
