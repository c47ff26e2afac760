"""The router: which channels a record reaches, and what its events contain."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import ChannelConfig
from gateway.config.model.sources import EventMappingConfig
from gateway.core.errors import RecordRejected
from gateway.core.event import Draft, Record, Retention
from gateway.sources.router import Router


def router(channels: dict[str, dict[str, object]]) -> Router:
    specs = {
        name: ChannelConfig.model_validate({"access": "public", **spec}) for name, spec in channels.items()
    }
    return Router(ChannelCatalog(specs), event_bytes=1000)


def at(topic: str, source: str = "s") -> dict[str, str]:
    return {"source": source, "topic": topic}


ONE = router({"c": {"from": [at("t")]}, "txt": {"from": [at("txt")], "payload": "text"},
              "env": {"from": [at("env")], "payload": "envelope"}})  # fmt: skip


def drafts(topic: str, payload: bytes, **more: object) -> list[Draft]:
    return ONE.route("s", Record(topic, payload, **more), now=99)  # type: ignore[arg-type]


def reason(topic: str, payload: bytes, **more: object) -> str:
    with pytest.raises(RecordRejected) as caught:
        drafts(topic, payload, **more)
    return caught.value.code


def test_a_record_goes_to_every_channel_that_takes_its_topic_once() -> None:
    """A record would be two events of one channel, or reach channels of another source."""
    many = router(
        {
            "all": {"from": [at("orders.*"), at("orders.new"), at("orders.?ew")]},
            "new": {"from": [at("orders.new")], "history": "none"},
            "other": {"from": [at("orders.*", "elsewhere")]},
            "order.{id}": {"from": [at("orders.{id}")]},
        }
    )
    found = many.route("s", Record("orders.new", b"1"), now=5)
    assert sorted(draft.channel for draft in found) == ["all", "new", "order.new"]
    retention = {draft.channel: draft.retention for draft in found}
    assert retention["new"] == Retention(0)
    assert retention["all"] == Retention(1000, 300_000)
    assert {draft.timestamp_ms for draft in found} == {5}


def test_json_is_checked_and_embedded_as_it_is() -> None:
    """Numbers and key order of the sender's JSON would change."""
    (draft,) = drafts("t", b' {"a": 12345678901234567890.0} \n')
    assert draft.payload == b'{"a": 12345678901234567890.0}'


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "not_json"), (b"{", "not_json"), (b"NaN", "not_json"), (b'{"a":NaN}', "not_json"), (b"[1,]", "not_json"),
        (b"{} {}", "not_json"), (b"[" * 100_000, "not_json"), (b'"\xff"', "not_utf8"), (b"\xef\xbb\xbf{}", "not_json"),
        (b'"' + b"x" * 1000 + b'"', "too_large"),
    ],
)  # fmt: skip
def test_what_is_not_json_is_rejected(payload: bytes, code: str) -> None:
    """A client would get a payload that it cannot parse."""
    assert reason("t", payload) == code


def test_text_takes_any_utf8() -> None:
    """Text payloads with line ends would be rejected or changed."""
    assert drafts("txt", b"a\r\nb\n")[0].payload == b"a\r\nb\n"
    assert reason("txt", b"\xff") == "not_utf8"


def test_an_envelope_gives_type_and_timestamp() -> None:
    """A payload in an envelope would be re-encoded."""
    (draft,) = drafts("env", b'{"type":"created","timestamp":1763870000001,"payload":{"n": 1.10},"extra":1}')
    assert (draft.type, draft.timestamp_ms, draft.payload) == ("created", 1763870000001, b'{"n": 1.10}')
    (draft,) = drafts("env", b'{"payload":null}')
    assert (draft.type, draft.timestamp_ms, draft.payload) == (None, 99, b"null")


@pytest.mark.parametrize(
    "payload",
    [b"1", b"[]", b"{}", b'{"type":1,"payload":1}', b'{"payload":1,"timestamp":"now"}',
     b'{"payload":1,"timestamp":-1}', b'{"payload":1,"timestamp":1e300}'],
)  # fmt: skip
def test_what_is_no_envelope_is_rejected(payload: bytes) -> None:
    """A sender's mistake would be hidden, because a record without an envelope is guessed to be a payload."""
    assert reason("env", payload) == "bad_envelope"


def test_types_are_made_safe() -> None:
    """An upstream could send the gateway's own event types, or inject lines into a stream."""
    assert drafts("t", b"1", type="stream.gap")[0].type == "message"
    assert reason("t", b"1", type="a\nb") == "bad_type"
    assert reason("env", b'{"type":"a\\nid: 9","payload":1}') == "bad_type"


def test_no_route_is_a_404() -> None:
    """A sender would retry a topic that no channel reads, for ever."""
    with pytest.raises(RecordRejected) as caught:
        drafts("nowhere", b"1")
    assert (caught.value.status, caught.value.code) == (404, "no_route")


def test_keys_belong_to_their_source() -> None:
    """Equal keys of two sources would drop one of their events."""
    assert drafts("t", b"1", deduplication_key="k")[0].deduplication_key == "s/k"


@given(st.binary(max_size=60), st.sampled_from(["t", "txt", "env"]))
def test_no_bytes_escape_as_another_error(payload: bytes, topic: str) -> None:
    """Some input would stop its source with an unexpected exception."""
    with contextlib.suppress(RecordRejected):
        assert len(drafts(topic, payload)) == 1


MAPPED = Router(
    ChannelCatalog(
        {
            "user.{id}": ChannelConfig.model_validate(
                {"from": [{**at("users"), "fields": {"id": "{key}"}}], "access": "public"}
            ),
            "all": ChannelConfig.model_validate({"from": [at("orders")], "access": "public"}),
        }
    ),
    event_bytes=1000,
    events={
        "s": EventMappingConfig(
            type="{headers.kind}", timestamp="{/at}", deduplicate="{headers.delivery}-{/id}"
        ),
    },
)


def mapped(topic: str, payload: bytes, **more: object) -> Draft:
    (draft,) = MAPPED.route("s", Record(topic, payload, **more), now=99)  # type: ignore[arg-type]
    return draft


def test_a_record_names_its_own_channel() -> None:
    """A channel per user would need a topic per user."""
    assert mapped("users", b"{}", placeholder_values={"key": "42"}).channel == "user.42"
    for values, why in (
        ({}, ""),
        ({"key": ""}, ""),
        ({"key": "a\nb"}, r"in {id} the character U\+000A at position 2 is not allowed"),
        ({"key": "*"}, r"in {id} the character U\+002A \(ASTERISK\) at position 1"),
        ({"key": "e\u0301"}, "NFC"),
        ({"key": "x" * 200}, "{id} is longer than 128 characters"),
        ({"key": "a "}, ""),
    ):
        with pytest.raises(RecordRejected, match=f"channel's name.*{why}") as caught:
            mapped("users", b"{}", placeholder_values=values)
        assert caught.value.code == "no_field"


def test_type_time_and_key_come_from_where_the_file_says() -> None:
    """Type, timestamp or key in a record's fields would be ignored."""
    draft = mapped(
        "orders", b'{"at": "2026-01-01T00:00:00Z", "id": 7}',
        placeholder_values={"headers.kind": "new", "headers.delivery": "d"}, type="other", deduplication_key="old",
    )  # fmt: skip
    assert (draft.type, draft.timestamp_ms) == ("new", 1767225600000)
    assert draft.deduplication_key not in (None, "s/old")
    draft = mapped("orders", b"{}", type="other", timestamp_ms=5, deduplication_key="old")
    assert (draft.type, draft.timestamp_ms, draft.deduplication_key) == ("other", 5, "s/old")
    assert mapped("orders", b'{"at": 1767225600001}').timestamp_ms == 1767225600001


def test_what_all_records_of_a_request_share_is_no_key_of_one() -> None:
    """A batch under one delivery id would be one event."""
    shared = {"headers.delivery": "d"}
    keys = {
        mapped("orders", b'{"id": 7}', shared_values=shared, batch_index=index).deduplication_key
        for index in range(3)
    }
    assert len(keys) == 3


@pytest.mark.parametrize("at", ['"soon"', "-1", "1e20", "9999999999999999", '""'])
def test_a_time_that_is_none_is_rejected(at: str) -> None:
    """Microseconds taken for milliseconds would give events a time 50,000 years ahead."""
    with pytest.raises(RecordRejected) as caught:
        mapped("orders", f'{{"at": {at}}}'.encode())
    assert caught.value.code == "bad_timestamp"


def test_keys_that_no_log_stores_are_digests() -> None:
    """Keys that are long or not printable could not be stored, or would be equal to others."""
    long = drafts("t", b"1", deduplication_key="k" * 300)[0].deduplication_key
    assert long is not None and len(long) == 64
    assert (
        long
        == drafts("t", b"1", deduplication_key="k" * 300)[0].deduplication_key
        != drafts("t", b"1", deduplication_key="\udcff")[0].deduplication_key
    )
