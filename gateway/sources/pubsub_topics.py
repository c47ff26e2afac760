"""What a Redis pub/sub source is subscribed to, and the way from one set of topics to another.

Every node must count the same records after a marker, so topics change at a marker: what is new is subscribed
first, and its records are left out until a marker has come that was published after all subscriptions were
confirmed. From there on the new topics count, and what is not wanted any more is unsubscribed.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache

from redis.asyncio.client import PubSub

from gateway.config.template import Template

REMEMBERED = 20_000
"""How many topics are remembered with the subscription that counts for them."""

LONGEST = 1024
"""Bytes of the longest topic that is remembered: routes know none of more than 255 characters."""

_AT_ONCE = 1000
_GLOB = re.compile(rb"\\(.)|([*?])|(.)", re.DOTALL)
_NOBODY = b""


class Topics:
    """Exact names, and patterns. Bytes, because Redis matches bytes: '?' stands for one of them."""

    def __init__(self, topics: Sequence[Template]) -> None:
        self.exact = frozenset(topic.text.encode() for topic in topics if topic.is_exact)
        patterns = sorted(topic.redis_pattern.encode() for topic in topics if not topic.is_exact)
        self.patterns = {pattern: _regex(pattern) for pattern in patterns}
        # Places mean the same only to nodes that count the same records.
        self.plan = hashlib.sha256(b"\n".join([*sorted(self.exact), b"", *patterns])).hexdigest()[:12]
        self._owner = lru_cache(REMEMBERED)(self._find_owner)

    def counts(self, topic: bytes, pattern: bytes | None) -> bool:
        """Tell whether a copy of a message counts: Redis sends one per subscription that matches.

        ``pattern`` is what it came through; None where that was the topic's own name.
        """
        owner = self._owner(topic) if len(topic) <= LONGEST else self._find_owner(topic)
        return owner == pattern

    def _find_owner(self, topic: bytes) -> bytes | None:
        if topic in self.exact:
            return None
        return next((each for each, regex in self.patterns.items() if regex.fullmatch(topic)), _NOBODY)


class Change:
    """On the way from some topics to others, on one connection."""

    def __init__(self, before: Topics, topics: Topics) -> None:
        self.before = before
        self.topics = topics
        self.unconfirmed = 0
        """Subscriptions that Redis has not confirmed yet."""
        self.marker = ""
        """The one with which the new topics begin to count; empty until it is published."""

    async def subscribe(self, pubsub: PubSub) -> None:
        """Subscribe to what is new."""
        new, old = self.topics, self.before
        self.unconfirmed = await subscribe(pubsub, new.exact - old.exact, new.patterns.keys() - old.patterns)

    def mark(self) -> str:
        """Return the marker to publish."""
        self.marker = secrets.token_hex(6)
        return self.marker

    async def unsubscribe(self, pubsub: PubSub) -> None:
        """Let go of what is not wanted any more."""
        new, old = self.topics, self.before
        for names, let_go in (
            (old.exact - new.exact, pubsub.unsubscribe),
            (old.patterns.keys() - new.patterns, pubsub.punsubscribe),
        ):
            for some in _some(names):
                await let_go(*some)  # without a name it would be all of them


async def subscribe(pubsub: PubSub, exact: Iterable[bytes], patterns: Iterable[bytes]) -> int:
    """Ask for subscriptions, and return how many confirmations to expect."""
    asked = 0
    for names, ask in ((exact, pubsub.subscribe), (patterns, pubsub.psubscribe)):
        for some in _some(names):
            await ask(*some)
            asked += len(some)
    return asked


def _some(names: Iterable[bytes]) -> Iterable[Sequence[bytes]]:
    every = sorted(names)
    return [every[first : first + _AT_ONCE] for first in range(0, len(every), _AT_ONCE)]


def _regex(pattern: bytes) -> re.Pattern[bytes]:
    """Return what Redis's ``stringmatch`` does with a pattern of `Template.redis_pattern`."""

    def piece(match: re.Match[bytes]) -> bytes:
        escaped, wild, literal = match.groups()
        return {b"*": b".*", b"?": b"."}[wild] if wild else re.escape(escaped or literal)

    return re.compile(_GLOB.sub(piece, pattern), re.DOTALL)
