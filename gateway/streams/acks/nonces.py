"""Signs and verifies the nonces that clients send back to acknowledge heartbeats, without storing any.

A nonce is ``<key>-<number>-<code>``: the name of the key, the number of the heartbeat, and a code over the
number and the stream's connection (HMAC, 128 bits of it). So only the stream's client can send it, and every
node can verify the nonces of any stream by itself: forged ones get no further than the node that gets them.

For that all nodes share one key. A node that finds none in the shared store puts its own there; one that
finds another uses it, and still accepts the previous one. Until then a node uses its own.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from gateway.broker.shared_store import SharedStore
from gateway.core.backoff import jittered
from gateway.core.bounded_dict import BoundedDict
from gateway.core.errors import Unavailable
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

KEY_BYTES = 32

MAC_BYTES = 16
"""Bytes of the code: 128 bits cannot be guessed."""

MAX_KNOWN_KEYS = 4
"""Keys that a node accepts at the same time."""

SHARED_KEY_NAME = "ack-key"

SHARED_KEY_SECONDS = 7 * 86400.0
"""How long the shared store keeps the key."""

POLL_SECONDS = 15.0
"""How often a node checks the shared key: a Redis may have lost it."""

MIN_POLL_SECONDS = 1.0
"""Least time between two checks that nonces of unknown keys cause: they may be forged."""

SETTLE_SECONDS = 0.5
"""How long after storing its own key a node checks again: another may have stored one at the same time."""

FIRST_POLL_TIMEOUT_SECONDS = 2.0
"""How long a start waits for the shared store."""

_NONCE_PATTERN = re.compile(r"([0-9a-f]{8})-([1-9][0-9]{0,8})-([0-9a-f]{32})")


class _Key(NamedTuple):
    name: str
    secret: bytes

    @classmethod
    def from_secret(cls, key: bytes) -> "_Key":
        return cls(hashlib.sha256(b"name of " + key).hexdigest()[:8], key)


class NonceSigner:
    """Creates and verifies nonces. Call `start_sharing` if there may be other nodes."""

    def __init__(self, shared_store: SharedStore, background: TaskSupervisor = UNCOUNTED_SUPERVISOR) -> None:
        self._shared_store = shared_store
        self._background = background
        self._key = _Key.from_secret(secrets.token_bytes(KEY_BYTES))
        self._known_keys: BoundedDict[str, bytes] = BoundedDict(MAX_KNOWN_KEYS)
        self._known_keys.put(*self._key)
        self._task: asyncio.Task[None] | None = None
        self._first_poll_done = asyncio.Event()
        self._wake = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called when the key has changed: other nodes may not have known the previous one."""

    def create(self, connection: str, number: int) -> str:
        """Return the nonce of a stream's heartbeat."""
        name, key = self._key
        return f"{name}-{number}-{_mac(key, connection, number)}"

    def verify(self, connection: str, nonce: str) -> int | None:
        """Return the number of the heartbeat that a nonce acknowledges; None if no node has signed it."""
        match = _NONCE_PATTERN.fullmatch(nonce)
        if match is None:
            return None
        key = self._known_keys.get(match[1])
        if key is None:  # maybe a new node's: the next one is known
            self._wake.set()
            self.start_sharing()
            return None
        number = int(match[2])
        return number if hmac.compare_digest(_mac(key, connection, number), match[3]) else None

    def start_sharing(self) -> None:
        """Share the key with other nodes, if there can be any. Harmless when repeated.

        Needs a running loop.
        """
        if self._task is None and self._shared_store.is_shared:
            self._task = self._background.start_task("ack_key", self._poll_loop)

    async def wait_for_shared_key(self) -> None:
        """Wait for the first check of the shared key, `FIRST_POLL_TIMEOUT_SECONDS` at the most."""
        if self._task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_POLL_TIMEOUT_SECONDS):
                    await self._first_poll_done.wait()

    async def close(self) -> None:
        """Stop sharing; harmless when repeated."""
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
                pass  # the broker logs the outage, and misses do not count meanwhile
            except Exception as error:  # go on: without the shared key, other nodes reject valid nonces
                self._background.record_failure("ack_key", error)
            await asyncio.sleep(MIN_POLL_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(jittered(POLL_SECONDS - MIN_POLL_SECONDS, 0.2)):
                    await self._wake.wait()
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
        self._known_keys.put(*self._key)
        self.on_change()


def _mac(key: bytes, connection: str, number: int) -> str:
    return hmac.digest(key, f"{connection}-{number}".encode(), "sha256")[:MAC_BYTES].hex()
