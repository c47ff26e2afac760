"""Grants: what two of them say together, and who is meant by a revocation."""

import pytest

from gateway.auth import revocation as revocations
from gateway.auth.grant import ANONYMOUS, Grant
from gateway.auth.revocation import RecentRevocations, Revocation
from gateway.config.channel_catalog import ChannelCatalog
from tests.support.config import loads

CHANNELS = ChannelCatalog(
    loads(
        """
        sources: {hooks: {type: webhook, verify: {none: true}}}
        channels:
          a: {from: [{source: hooks, topic: a}], access: public}
          b: {from: [{source: hooks, topic: b}], access: public}
        """
    ).channels
).declared


def test_two_grants_end_with_the_first() -> None:
    """Each keeps its own leeway: a token in its leeway must not be thrown out by the endpoint's yes."""
    token = Grant(subject="1", claims={}, expires=100.0, leeway=30.0)
    forever, soon = Grant(opened=frozenset("a")), Grant(subject="2", opened=frozenset("b"), expires=90.0)
    assert token.merge(forever) == Grant("1", None, {}, frozenset("a"), 100.0, 30.0)
    assert token.merge(soon) == Grant("1", None, {}, frozenset("b"), 90.0, 0.0)
    assert forever.merge(soon).subject == "2"
    assert token.merge(forever).seconds_left(105.0) == 25.0
    assert ANONYMOUS.merge(forever).expires is None


@pytest.mark.parametrize(
    ("subject", "channel", "meant"),
    [
        ("1", None, True),
        ("2", None, False),
        (None, "a", True),
        (None, "c", False),
        ("1", "a", True),
        ("1", "c", False),
        ("2", "a", False),
        (None, None, True),
    ],
)
def test_who_is_meant(subject: str | None, channel: str | None, meant: bool) -> None:
    """Both together narrow; nothing at all means whoever showed something."""
    assert Revocation(subject, channel).match(Grant(subject="1"), CHANNELS, None) == (
        "revoked" if meant else None
    )
    assert Revocation(None, None).match(ANONYMOUS, CHANNELS, None) is None


def test_what_was_revoked_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever began before all that is remembered is taken to be meant: too many to know."""
    monkeypatch.setattr(revocations, "MAX_RECENT_REVOCATIONS", 3)
    known = RecentRevocations()
    grant = Grant(subject="1")
    known.add(Revocation("1", None))
    since = known.count
    assert not known.match_since(since, grant, {})
    known.add(Revocation("2", None))
    assert not known.match_since(since, grant, {})
    assert known.match_since(since - 1, grant, {})
    for _ in range(5):
        known.add(Revocation("2", None))
    assert known.match_since(0, grant, {}) and known.match_since(since, grant, {})
    assert not known.match_since(0, ANONYMOUS, {})
