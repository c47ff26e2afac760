"""The nonces that clients are asked for: nothing of them is kept, as each says of itself what it is.

A nonce is ``<key>-<number>-<code>``: which key made it, the number of the question, and a code over that and
the stream's connection (HMAC, 128 bits of it). So whoever was not on the stream cannot make one, and every
node can tell a true one of any stream, without asking anybody: what strangers send goes no further than the
node that they sent it to.

For that all nodes have one key. Who finds none on the board puts its own there; who finds another takes it,
and goes on to know the one before. Until then a node uses its own, which is good for what comes back to it.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from typing import NamedTuple

from gateway.broker.shared_store import Board
from gateway.core.backoff import jittered
from gateway.core.errors import Unavailable
from gateway.observability.background import UNCOUNTED, Background

KEY_BYTES = 32

CODE_BYTES = 16
"""Bytes of a code: 128 bits cannot be guessed."""

KNOWN = 4
"""Keys that a node knows at the same time."""

NOTE = "ack-key"

NOTE_SECONDS = 7 * 86400.0
"""How long the board holds a key that nobody puts there again."""

LOOK_SECONDS = 15.0
"""How often a node looks whether the key on the board is another one: a Redis may have lost it."""

AGAIN_SECONDS = 1.0
"""How soon it looks again, where a nonce of an unknown key comes: strangers make up what they like."""

SETTLE_SECONDS = 0.5
"""After how long a node that put its own looks again: another one may have done so in the same moment."""

FIRST_SECONDS = 2.0
"""How long a start waits for the board."""

_SHAPE = re.compile(r"([0-9a-f]{8})-([1-9][0-9]{0,8})-([0-9a-f]{32})")


class _Key(NamedTuple):
    name: str
    secret: bytes

    @classmethod
    def of(cls, key: bytes) -> "_Key":
        return cls(hashlib.sha256(b"name of " + key).hexdigest()[:8], key)


class Nonces:
    """Makes and reads them. `share` the key where other nodes have a say."""

    def __init__(self, board: Board, background: Background = UNCOUNTED) -> None:
        self._board = board
        self._background = background
        self._key = _Key.of(secrets.token_bytes(KEY_BYTES))
        self._known: dict[str, bytes] = dict([self._key])
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        self._wake = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called when the key is another one: other nodes may not have known the one before."""

    def make(self, connection: str, number: int) -> str:
        """Return the nonce of a stream's question."""
        name, key = self._key
        return f"{name}-{number}-{_code(key, connection, number)}"

    def number(self, connection: str, nonce: str) -> int | None:
        """Return which question of a stream a nonce answers; None where no node of ours made it."""
        match = _SHAPE.fullmatch(nonce)
        if match is None:
            return None
        key = self._known.get(match[1])
        if key is None:  # a new node's, or this one's configuration asks nobody yet: the next answer is known
            self._wake.set()
            self.share()
            return None
        number = int(match[2])
        return number if hmac.compare_digest(_code(key, connection, number), match[3]) else None

    def share(self) -> None:
        """Begin to share the key with other nodes, if there can be any. Needs a running loop where there are.

        Harmless when repeated.
        """
        if self._task is None and self._board.is_shared:
            self._task = self._background.start("ack_key", self._run)

    async def settled(self) -> None:
        """Wait until the board was looked at once, for `FIRST_SECONDS` at the most."""
        if self._task is not None:
            try:
                async with asyncio.timeout(FIRST_SECONDS):
                    await self._looked.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """End; harmless when repeated."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._look()
                self._looked.set()
            except Unavailable:
                pass  # the log says so itself, and closing is suspended meanwhile
            except Exception as error:  # sharing goes on: without it other nodes refuse true answers
                self._background.failed("ack_key", error)
            await asyncio.sleep(AGAIN_SECONDS)
            try:
                async with asyncio.timeout(jittered(LOOK_SECONDS - AGAIN_SECONDS, 0.2)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _look(self) -> None:
        found = await self._board.get(NOTE)
        if found is None:
            await self._board.put(NOTE, self._key.secret, NOTE_SECONDS)
            await asyncio.sleep(SETTLE_SECONDS)
            found = await self._board.get(NOTE)
        if found is None or len(found) != KEY_BYTES or found == self._key.secret:
            return
        self._key = _Key.of(found)
        self._known[self._key.name] = found
        while len(self._known) > KNOWN:
            del self._known[next(iter(self._known))]
        self.on_change()


def _code(key: bytes, connection: str, number: int) -> str:
    return hmac.digest(key, f"{connection}-{number}".encode(), "sha256")[:CODE_BYTES].hex()
