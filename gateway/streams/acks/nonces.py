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
from typing import NamedTuple

from gateway.broker.shared_store import SharedStore
from gateway.core.backoff import jittered
from gateway.core.errors import Unavailable
from gateway.core.observers import Observers
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

KEY_BYTES = 32

MAC_BYTES = 16
"""Bytes of a code: 128 bits cannot be guessed."""

MAX_KNOWN_KEYS = 4
"""Keys that a node knows at the same time."""

SHARED_KEY_NAME = "ack-key"

SHARED_KEY_SECONDS = 7 * 86400.0
"""How long the board holds a key that nobody puts there again."""

POLL_SECONDS = 15.0
"""How often a node looks whether the key on the board is another one: a Redis may have lost it."""

MIN_POLL_SECONDS = 1.0
"""How soon it looks again, where a nonce of an unknown key comes: strangers make up what they like."""

SETTLE_SECONDS = 0.5
"""After how long a node that put its own looks again: another one may have done so in the same moment."""

FIRST_POLL_TIMEOUT_SECONDS = 2.0
"""How long a start waits for the board."""

_NONCE_PATTERN = re.compile(r"([0-9a-f]{8})-([1-9][0-9]{0,8})-([0-9a-f]{32})")


class _Key(NamedTuple):
    name: str
    secret: bytes

    @classmethod
    def from_secret(cls, key: bytes) -> "_Key":
        return cls(hashlib.sha256(b"name of " + key).hexdigest()[:8], key)


class NonceSigner:
    """Makes and reads them. `share` the key where other nodes have a say."""

    def __init__(self, shared_store: SharedStore, background: TaskSupervisor = UNCOUNTED_SUPERVISOR) -> None:
        self._shared_store = shared_store
        self._background = background
        self._key = _Key.from_secret(secrets.token_bytes(KEY_BYTES))
        self._known_keys: dict[str, bytes] = dict([self._key])
        self._task: asyncio.Task[None] | None = None
        self._first_poll_done = asyncio.Event()
        self._wake = asyncio.Event()
        self.on_change = Observers[()]()
        """Called when the key is another one: other nodes may not have known the one before."""

    def create(self, connection: str, number: int) -> str:
        """Return the nonce of a stream's question."""
        name, key = self._key
        return f"{name}-{number}-{_mac(key, connection, number)}"

    def verify(self, connection: str, nonce: str) -> int | None:
        """Return which question of a stream a nonce answers; None where no node of ours made it."""
        match = _NONCE_PATTERN.fullmatch(nonce)
        if match is None:
            return None
        key = self._known_keys.get(match[1])
        if key is None:  # a new node's, or this one's configuration asks nobody yet: the next answer is known
            self._wake.set()
            self.start_sharing()
            return None
        number = int(match[2])
        return number if hmac.compare_digest(_mac(key, connection, number), match[3]) else None

    def start_sharing(self) -> None:
        """Begin to share the key with other nodes, if there can be any. Needs a running loop where there are.

        Harmless when repeated.
        """
        if self._task is None and self._shared_store.is_shared:
            self._task = self._background.start_task("ack_key", self._poll_loop)

    async def wait_for_shared_key(self) -> None:
        """Wait until the board was looked at once, for `FIRST_POLL_TIMEOUT_SECONDS` at the most."""
        if self._task is not None:
            try:
                async with asyncio.timeout(FIRST_POLL_TIMEOUT_SECONDS):
                    await self._first_poll_done.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """End; harmless when repeated."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _poll_loop(self) -> None:
        while True:
            try:
                await self._poll_shared_key()
                self._first_poll_done.set()
            except Unavailable:
                pass  # the log says so itself, and closing is suspended meanwhile
            except Exception as error:  # sharing goes on: without it other nodes refuse true answers
                self._background.record_failure("ack_key", error)
            await asyncio.sleep(MIN_POLL_SECONDS)
            try:
                async with asyncio.timeout(jittered(POLL_SECONDS - MIN_POLL_SECONDS, 0.2)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _poll_shared_key(self) -> None:
        found = await self._shared_store.get(SHARED_KEY_NAME)
        if found is None:
            await self._shared_store.put(SHARED_KEY_NAME, self._key.secret, SHARED_KEY_SECONDS)
            await asyncio.sleep(SETTLE_SECONDS)
            found = await self._shared_store.get(SHARED_KEY_NAME)
        if found is None or len(found) != KEY_BYTES or found == self._key.secret:
            return
        self._key = _Key.from_secret(found)
        self._known_keys[self._key.name] = found
        while len(self._known_keys) > MAX_KNOWN_KEYS:
            del self._known_keys[next(iter(self._known_keys))]
        self.on_change()


def _mac(key: bytes, connection: str, number: int) -> str:
    return hmac.digest(key, f"{connection}-{number}".encode(), "sha256")[:MAC_BYTES].hex()
