"""Templates and topics."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import ChannelConfig
from gateway.config.template import Template
from gateway.sources.redis.pubsub import _compile_pattern

values = st.text(alphabet="ab.:_~@-9", min_size=1, max_size=8)


def catalog(*names: str) -> ChannelCatalog:
    spec = ChannelConfig.model_validate({"from": [{"source": "s", "topic": "t"}], "access": "public"})
    return ChannelCatalog(dict.fromkeys(names, spec))


@given(values, values)
def test_fields_that_lead_to_a_name_lead_back_or_nowhere(tenant: str, id: str) -> None:
    """(x.y, z) and (x, y.z) render alike; events of tenant x.y must not reach the readers of tenant x."""
    channels = catalog("t.{tenant}.{id}")
    (declared,) = channels.declared.values()
    match = channels.resolve_instance(declared, {"tenant": tenant, "id": id})
    if match is not None:
        found = channels.resolve(match.name)
        assert found is not None
        assert found.fields == {"tenant": tenant, "id": id}


def test_a_fixed_name_wins_and_a_template_cannot_write_into_it() -> None:
    """user.all is its own channel even beside user.{id}."""
    channels = catalog("user.{id}", "user.all")
    found = channels.resolve("user.all")
    assert found is not None
    assert found.declared.name == "user.all"
    assert channels.resolve_instance(channels.declared["user.{id}"], {"id": "all"}) is None
    assert channels.resolve("user.") is None
    assert channels.resolve("user.a*b") is None


@pytest.mark.parametrize(
    ("topic", "name", "fields"),
    [
        ("orders.*", "orders.created", {}),
        ("orders.*", "orders.", {}),
        ("orders.*", "order", None),
        ("user:{id}", "user:42", {"id": "42"}),
        ("user:{id}", "user:", None),
        ("user:{id}", "user:a b", {"id": "a b"}),
        ("user:{id}", "user:a\u200bb", None),
        ("user:{id}", "user:a*", None),
        ("a?c", "abc", {}),
        ("a?c", "ac", None),
        ("[x]*", "[x]y", {}),
        ("{a}:{b}", "x:y", {"a": "x", "b": "y"}),
        ("exact", "exact", {}),
        ("exact", "exactly", None),
    ],
)
def test_topics(topic: str, name: str, fields: dict[str, str] | None) -> None:
    """What a topic of the YAML matches, and what it captures."""
    assert Template(topic, glob=True).match(name) == fields


@given(st.text(alphabet="ab*?[]\\{}.", min_size=1, max_size=10), st.text(alphabet="ab[]\\.", max_size=10))
def test_redis_delivers_whatever_a_topic_matches(topic: str, name: str) -> None:
    """The pattern that Redis gets must never be narrower than the topic, or messages are lost unheard."""
    try:
        template = Template(topic, glob=True)
    except ValueError:
        return
    if template.match(name) is not None and not template.is_exact:
        assert _compile_pattern(template.redis_pattern.encode()).fullmatch(name.encode())


@pytest.mark.parametrize("bad", ["", "a{", "a}b", "{a}{b}", "{a}-{a}", "a b", "a,b", "a/b", "x" * 256, "{1}"])
def test_names_that_no_client_could_ask_for_are_refused(bad: str) -> None:
    """A comma would split in ?channel=a,b; a slash would leave the path."""
    with pytest.raises(ValueError, match=re.compile(".+")):
        Template(bad)


def test_a_field_ends_where_the_template_goes_on() -> None:
    """One reading of every name, so that matching is linear: t.{tenant}.{id} splits at the first dot."""
    template = Template("t.{tenant}.{id}")
    assert template.match("t.a.b.c") == {"tenant": "a", "id": "b.c"}
    assert template.match("t." + "a" * 200 + ".x") is None
    hostile = Template("{a}.{b}.{c}.{d}.{e}.{f}!".replace("!", ":x"))
    assert hostile.match(".".join("a" * 40 for _ in range(6)) + ":y") is None


def test_names_that_callers_make_up_are_not_remembered() -> None:
    """20,000 preflights for names of 8 KB once cost 612 MB that stayed."""
    known = catalog("u.{id}")
    for number in range(1000):
        assert known.resolve(f"nothing.{number}") is None
        assert known.resolve(f"u.{number}" + "\N{PILE OF POO}" * 8000) is None
    assert len(known._resolved_instances) == 0
    assert known.resolve("u.1") is not None
    assert len(known._resolved_instances) == 1
