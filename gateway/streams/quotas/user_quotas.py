"""Limits the streams per user, over all nodes.

Each node counts its own streams. If the log is shared, each stream also occupies a slot in the shared store
for `SLOT_TTL_SECONDS`, renewed while the stream is open: slots of a node that dies expire. Slots are acquired
in batches. While the store is unavailable, each node's own count decides: an outage closes and rejects no
streams.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import structlog

from gateway.broker.shared_store import QuotaSlot, SharedStore
from gateway.core.bounded_dict import BoundedDict
from gateway.core.errors import Draining, Overloaded, Unavailable
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.limits")

SLOT_TTL_SECONDS = 60.0
"""How long the slot of a dead node's stream counts."""

RENEW_INTERVAL_SECONDS = 20.0
"""How often slots of open streams are renewed."""

RETRY_SECONDS = 0.2
"""Pause after the shared store failed."""

RESERVE_TIMEOUT_SECONDS = 5.0
"""How long a stream waits for its slot before this node's own count decides."""

MAX_PENDING_RELEASES = 20_000
"""Slots that wait for their release; the oldest are left to expire."""

STOP_TIMEOUT_SECONDS = 1.0
"""How long a stop waits for the request that is under way."""

MAX_SLOTS_PER_BATCH = 500
"""Slots in one request to the shared store."""


T = TypeVar("T")


class UserLimitReached(Overloaded):
    """A user has as many streams as it may."""

    code = "user_limit"


class UserQuotas:
    """Counts streams by user. ``limit`` None: no limit, nothing is shared."""

    def __init__(
        self, shared_store: SharedStore, limit: int | None, background: TaskSupervisor = UNCOUNTED_SUPERVISOR
    ) -> None:
        self.limit = limit
        self._background = background
        self._shared_store = shared_store
        # By user: streams by member, of which a client may have two; just the member if it is the only one.
        self._members: dict[str, dict[str, int] | str] = {}
        self._pending_reservations: list[tuple[QuotaSlot, asyncio.Future[bool]]] = []
        self._pending_releases: BoundedDict[tuple[str, str], None] = BoundedDict(MAX_PENDING_RELEASES)
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._log_throttle = LogThrottle()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_shared(self) -> bool:
        """Whether other nodes count, too."""
        return self._shared_store.is_shared

    def start(self) -> None:
        """Begin to share slots if there is a limit. Needs a running loop. Harmless when repeated."""
        if self._task is None and self.limit is not None and self.is_shared:
            self._task = self._background.start_task("user_quotas", self._run)

    async def stop(self) -> None:
        """Release all slots and end; harmless when repeated."""
        if self._task is None:
            return
        # Not cancelled during a request: the store could acquire slots after they were released.
        self._is_stopping = True
        self._wake.set()
        await asyncio.wait([self._task], timeout=STOP_TIMEOUT_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task, self._is_stopping = None, False
        _resolve_reservations(self._pending_reservations, Draining("the gateway is shutting down"))
        with suppress(Unavailable):  # then they expire
            await self._release_batches()

    def acquire(self, user: str, member: str) -> None:
        """Count a stream of a user on this node. Raises UserLimitReached. Pair with `release`."""
        members = self._members.get(user)
        if members is None:
            self._members[user] = member
            return
        if isinstance(members, str):
            members = self._members[user] = {members: 1}
        if member not in members and self.limit is not None and len(members) >= self.limit:
            raise self._limit_error()
        members[member] = members.get(member, 0) + 1

    async def reserve(self, user: str, member: str) -> None:
        """Acquire the slot of a stream after `acquire`. Raises UserLimitReached; `release` is still due."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending_reservations.append((QuotaSlot(user, member, self.limit), answer))
        self._wake.set()
        try:
            async with asyncio.timeout(RESERVE_TIMEOUT_SECONDS):
                is_acquired = await answer
        except TimeoutError:
            is_acquired = True
        if not is_acquired:
            raise self._limit_error()

    def release(self, user: str, member: str) -> None:
        """Uncount a stream."""
        members = self._members[user]
        if isinstance(members, dict):
            members[member] -= 1
            if members[member]:
                return
            del members[member]
        if isinstance(members, str) or not members:
            del self._members[user]
        if self._task is not None:
            self._pending_releases.put((user, member), None)
            self._wake.set()

    def _limit_error(self) -> UserLimitReached:
        return UserLimitReached(f"limits.connections_per_user ({self.limit}) is reached")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + RENEW_INTERVAL_SECONDS
        while not self._is_stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(renew_at):
                    await self._wake.wait()
            self._wake.clear()
            if self._is_stopping:
                return
            # Each once, so that none waits until the others have nothing to do.
            try:
                await self._release_batches()  # first: it may make room for a reservation
                await self._reserve_batches()
                if loop.time() >= renew_at:
                    renew_at = loop.time() + RENEW_INTERVAL_SECONDS
                    await self._renew_slots()
            except Exception as error:
                if isinstance(error, Unavailable):
                    self._log_unshared(error)
                else:
                    self._background.record_failure("user_quotas", error)
                _resolve_reservations(self._pending_reservations, None)  # none may wait for a retry
                await asyncio.sleep(RETRY_SECONDS)
            if self._pending_reservations or self._pending_releases:
                self._wake.set()

    async def _reserve_batches(self) -> None:
        waiting, self._pending_reservations = self._pending_reservations, []
        try:
            for some in _batches(waiting):
                # The slot of a stream that was released meanwhile would never be released.
                batch = [each for each in some if self._is_held(each[0].name, each[0].member)]
                try:
                    acquired: Sequence[bool] = await self._shared_store.acquire_slots(
                        [slot for slot, _ in batch], SLOT_TTL_SECONDS
                    )
                except Unavailable as error:
                    self._log_unshared(error)
                    acquired = [True] * len(batch)
                for (_, answer), is_acquired in zip(batch, acquired, strict=True):
                    if not answer.done():
                        answer.set_result(is_acquired)
        finally:
            _resolve_reservations(waiting, None)

    async def _release_batches(self) -> None:
        for batch in _batches(list(self._pending_releases)):
            # A client that reconnected meanwhile has the same slot.
            free = [QuotaSlot(*key, None) for key in batch if not self._is_held(*key)]
            await self._shared_store.release_slots(free)
            for key in batch:
                self._pending_releases.remove(key)

    async def _renew_slots(self) -> None:
        for batch in _batches(self._held_slots()):
            await self._shared_store.acquire_slots(batch, SLOT_TTL_SECONDS)

    def _held_slots(self) -> list[QuotaSlot]:
        return [
            QuotaSlot(user, member, None)
            for user, members in self._members.items()
            for member in ((members,) if isinstance(members, str) else members)
        ]

    def _is_held(self, user: str, member: str) -> bool:
        members = self._members.get(user)
        return member == members if isinstance(members, str) else bool(members and member in members)

    def _log_unshared(self, error: Unavailable) -> None:
        if self._log_throttle.should_log("unshared") is not None:
            log.warning(
                "user_quotas_unshared", error=error.message, note="limits.connections_per_user is per node"
            )


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[first : first + MAX_SLOTS_PER_BATCH] for first in range(0, len(items), MAX_SLOTS_PER_BATCH))


def _resolve_reservations(
    reservations: list[tuple[QuotaSlot, asyncio.Future[bool]]], error: Exception | None
) -> None:
    """Resolve the reservations that still wait, with an error or with this node's own count."""
    for _, answer in reservations:
        if answer.done():
            continue
        if error is None:
            answer.set_result(True)
        else:
            answer.set_exception(error)
    reservations.clear()


def user_key(subject: str, issuer: str | None) -> str:
    """Return the name of a user's slots, without the subject: the shared store must not reveal it."""
    text = f"{issuer or ''}\0{subject}"
    return "user:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
