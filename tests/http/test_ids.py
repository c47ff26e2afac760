"""User ids of any characters (``auth0|5f7c``, ``Jürgen``, ``a b``) in channel names, from publisher to subscriber."""

import json
import random
import time
import unicodedata
from collections.abc import Iterator
from urllib.parse import quote, urlencode

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict
from yarl import URL

from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import ChannelConfig
from gateway.config.template import MAX_FIELD_CHARS, invalid_channel_name_reason, invalid_field_reason
from gateway.http.request import RequestParser
from gateway.streams.quotas.client_limits import UNKNOWN_CALLER
from tests.support.gateway import Gateway, gateway_running

SECRET = "s" * 32
IDS = [
    "auth0|5f7c8ec7c33c6c004bbafe82", "alice+tag@example.com", "Jürgen", "octo/hello", "x==", "Ada Lovelace",
    "waad|9kW-z:1", "arn:aws:iam::1:user/Bob", "a,b", "cn=Doe\\, John,dc=example", "100%", "%41", "a&b=c?d#e", "日本語",
    "مرحبا", "наташа", "😀", "[x]", "~", "'\"`", "!", "a.b", "..", "(a)", "$1", "^", "\\", "user.1", "a;b", "<b>",
]  # fmt: skip
REFUSED = {
    "a\u200bb": "U+200B", "a\u202eb": "U+202E", "e\u0301": "NFC", "a\nb": "U+000A", "\x7f": "U+007F", "a\u00a0b": "U+00A0",
    "*": "U+002A", "{id}": "U+007B", "\u3164": "U+3164", "\ufe0f": "U+FE0F", "\u2800": "U+2800", "a\ufffd": "U+FFFD",
    "\u2028": "U+2028", "\u00ad": "U+00AD", "\ufeff": "U+FEFF", "a ": "blank",
}  # fmt: skip

CATALOG = ChannelCatalog(
    {
        name: ChannelConfig.model_validate({"from": [{"source": "s", "topic": "t"}], "access": "public"})
        for name in ("user.{id}", "t.{a}.{b}", "orders")
    }
)


def some_ids(seed: int, count: int) -> Iterator[str]:
    """Yield ids of characters from everywhere in Unicode."""
    randomly = random.Random(seed)
    while count:
        text = "".join(
            chr(randomly.randrange(0x20, randomly.choice([0x7F, 0x250, 0x3000, 0x11000]))) for _ in range(3)
        )
        text = unicodedata.normalize("NFC", text)
        if invalid_channel_name_reason(f"user.{text}") is None and text:
            count -= 1
            yield text


def asked(path: str) -> tuple[str, ...]:
    """Return the channels that a request's target names."""
    url = URL(path, encoded=True)

    class Message:
        method, headers, version = "GET", MultiDict[str](), (1, 1)

    Message.path, Message.url = path, url  # type: ignore[attr-defined]
    parser = RequestParser(CATALOG.resolve, lambda peer, forwarded: peer)
    request = parser.from_message(Message, UNKNOWN_CALLER)  # type: ignore[arg-type]
    assert request is not None
    return request.channels


@given(st.text(max_size=MAX_FIELD_CHARS))
def test_a_name_means_one_id_and_an_id_one_name(id: str) -> None:
    """Whatever the id is: it is taken as it is by URLs and templates, or refused with the reason."""
    name = f"user.{id}"
    found = CATALOG.resolve(name)
    assert (found is not None) == (invalid_channel_name_reason(name) is None and id != "")
    if found is None:
        return
    assert found.fields == {"id": id}
    assert unicodedata.normalize("NFC", name) == name
    assert asked(f"/events/{quote(name, safe='')}") == (name,)
    names = asked(f"/events?{urlencode({'channel': name})}")
    assert names == (name,) or "," in id


@given(st.text(max_size=8), st.text(max_size=8))
def test_two_ids_never_share_a_name(a: str, b: str) -> None:
    """No user reads another's channel: fields that render to one name parse back to the same fields."""
    match = CATALOG.resolve_instance(CATALOG.declared["t.{a}.{b}"], {"a": a, "b": b})
    if match is not None:
        assert match.fields == {"a": a, "b": b}
        assert "." not in a


@given(st.binary(max_size=12))
def test_bytes_that_are_no_text_are_nobodys_name(data: bytes) -> None:
    """A client's %FF must not lead to the channel of an id that is spelled like that."""
    try:
        data.decode()
    except UnicodeDecodeError:
        for path in (f"/events/user.{quote(data, safe='')}", f"/events?channel=user.{quote(data, safe='')}"):
            # A comma in it separates names: one that is nobody's refuses the request.
            assert any(CATALOG.resolve(name) is None for name in asked(path))


def test_a_comma_separates_channels_unless_it_is_in_a_name() -> None:
    """`a,b` names two channels if both exist, else one whose name has a comma."""
    assert asked("/events?channel=orders,user.1") == ("orders", "user.1")
    assert asked("/events?channel=orders%2C%20user.1") == ("orders", "user.1")
    assert asked("/events?channel=user.a%2Cb") == ("user.a,b",)
    assert asked("/events?channel=user.a%2Cb&channel=orders") == ("user.a,b", "orders")
    assert asked("/events/user.a%2Corders") == ("user.a,orders",)
    assert asked("/events?channel=nobody,orders") == ("nobody", "orders")


@pytest.mark.parametrize("id", REFUSED)
def test_a_message_names_the_character(id: str) -> None:
    """The developer sees nothing of a zero-width space: the message must say what it is."""
    why = invalid_channel_name_reason(f"user.{id}")
    assert why is not None
    assert REFUSED[id] in why
    assert invalid_field_reason("".join(IDS)) is None


OVER = {
    "auth": {"jwt": {"secret": SECRET, "algorithms": ["HS256"]}, "tickets": {}},
    "channels": {
        "user.{id}": {
            "access": {"claims": {"sub": "{id}"}},
            "from": [
                {"source": "hooks", "topic": "user:{id}"},
                {"source": "hooks", "topic": "users", "fields": {"id": "{/to}"}},
            ],
        },
    },
}


def bearer(sub: str, **claims: object) -> dict[str, str]:
    token = jwt.encode({"exp": time.time() + 60, "sub": sub, **claims}, SECRET)
    return {"Authorization": f"Bearer {token}"}


async def posted(gateway: Gateway, query: str, body: object) -> int:
    url = URL(f"{gateway.url}/hooks/hooks?{query}", encoded=True)
    async with gateway.session.post(url, data=json.dumps(body)) as answer:
        return answer.status


async def test_ids_go_the_whole_way_round() -> None:
    """Events published by topic and by field are read by path, query and ticket, and by no other user."""
    async with gateway_running(OVER) as gateway:
        for number, id in enumerate([*IDS, *some_ids(1, 40)]):
            name = f"user.{id}"
            streams = [
                await gateway.subscribe(f"/events/{quote(name, safe='')}", bearer(id)),
                await gateway.subscribe(f"/events?{urlencode({'channel': name})}", bearer(id)),
            ]
            url = URL(f"{gateway.url}/tickets?{urlencode({'channel': name})}", encoded=True)
            async with gateway.session.post(url, headers=bearer(id)) as answer:
                told = await answer.json()
                assert (answer.status, told.get("channels")) == (201, [name]), told
            query = urlencode({"channel": name, "ticket": told["ticket"]})
            streams.append(await gateway.subscribe(f"/events?{query}"))
            assert await posted(gateway, urlencode({"topic": f"user:{id}"}), {"n": number}) == 200
            assert await posted(gateway, "topic=users", {"to": id, "n": number}) == 200
            for stream in streams:
                events = [(await stream.next()).json for _ in range(2)]
                assert [event["channel"] for event in events] == [name, name]
                assert [event["payload"]["n"] for event in events] == [number, number]
                stream.close()
            async with gateway.session.get(
                URL(f"{gateway.url}/events/{quote(name, safe='')}", encoded=True), headers=bearer(f"{id}x")
            ) as answer:
                assert answer.status == 403


@pytest.mark.parametrize("id", REFUSED)
async def test_ids_that_cannot_be_are_refused_with_the_reason(id: str) -> None:
    """Subscribers and publishers learn what is wrong with an id, without the error quoting it."""
    async with gateway_running(OVER) as gateway:
        url = URL(f"{gateway.url}/events/{quote(f'user.{id}', safe='')}", encoded=True)
        async with gateway.session.get(url, headers=bearer(id)) as answer:
            told = await answer.json()
            assert (answer.status, told["error"]) == (404, "unknown_channel")
            assert REFUSED[id] in told["message"]
            assert id not in told["message"] or id.isascii()
        assert await posted(gateway, "topic=users", {"to": id}) == 422
        assert await posted(gateway, urlencode({"topic": f"user:{id}"}), {}) == 404
