"""How many streams a user has, over all nodes.

This node's own are counted here. Where the log is shared, each also has a seat on the board, for
`SLOT_TTL_SECONDS`, kept while the stream lives: a node that dies takes nothing along for longer. Seats are asked
for together, a batch for each exchange with the board. While the board cannot be reached, this node's own
count decides: a log that is away ends nobody's streams and refuses none.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

import structlog

from gateway.broker.shared_store import QuotaSlot, SharedStore
from gateway.core.errors import Draining, Overloaded, Unavailable
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.limits")

SLOT_TTL_SECONDS = 60.0
"""How long the seat of a dead node's stream counts."""

RENEW_INTERVAL_SECONDS = 20.0
"""How often living streams ask for their seats again."""

RETRY_SECONDS = 0.2
"""Until the board is asked again after it could not be."""

RESERVE_TIMEOUT_SECONDS = 5.0
"""How long a stream waits for its seat before this node's own count decides."""

MAX_PENDING_RELEASES = 20_000
"""Seats that wait to be given back; the oldest are left to their time."""
STOP_TIMEOUT_SECONDS = 1.0
"""How long a stop waits for the exchange that is under way."""

MAX_SLOTS_PER_BATCH = 500
"""Seats in one exchange with the board."""


class UserLimitReached(Overloaded):
    """One user has as many streams as it may."""

    code = "user_limit"


class UserQuotas:
    """Counts. ``limit`` None counts nobody."""

    def __init__(
        self, shared_store: SharedStore, limit: int | None, background: TaskSupervisor = UNCOUNTED_SUPERVISOR
    ) -> None:
        self.limit = limit
        self._background = background
        self._shared_store = shared_store
        # Streams of each member, as one client may have two; of most users a single one is all there is.
        self._members: dict[str, dict[str, int] | str] = {}
        self._pending_reservations: list[tuple[QuotaSlot, asyncio.Future[bool]]] = []
        self._pending_releases: dict[tuple[str, str], None] = {}
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._log_throttle = LogThrottle()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_shared(self) -> bool:
        """Whether other nodes have a say."""
        return self._shared_store.is_shared

    def start(self) -> None:
        """Begin to ask the board where there is a limit. Needs a running loop. Harmless when repeated."""
        if self._task is None and self.limit is not None and self.is_shared:
            self._task = self._background.start_task("user_quotas", self._run)

    async def stop(self) -> None:
        """Give all seats back and end; harmless when repeated."""
        if self._task is None:
            return
        # Not cancelled in the middle of an exchange: the board could take seats after they were given back.
        self._is_stopping = True
        self._wake.set()
        await asyncio.wait([self._task], timeout=STOP_TIMEOUT_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task, self._is_stopping = None, False
        _resolve_reservations(self._pending_reservations, Draining("the gateway is shutting down"))
        with suppress(Unavailable):  # they expire by themselves
            await self._release_batches()

    def acquire(self, user: str, member: str) -> None:
        """Count a stream of a user here. Raises UserFull. Pair with `leave`."""
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
        """Ask for the seat of a stream that entered. Raises Overload; it must `leave` all the same."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pending_reservations.append((QuotaSlot(user, member, self.limit), answer))
        self._wake.set()
        try:
            async with asyncio.timeout(RESERVE_TIMEOUT_SECONDS):
                is_had = await answer
        except TimeoutError:
            is_had = True
        if not is_had:
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
            self._queue_releases([(user, member)])
            self._wake.set()

    def _queue_releases(self, places: Sequence[tuple[str, str]]) -> None:
        self._pending_releases.update(dict.fromkeys(places))
        while (
            len(self._pending_releases) > MAX_PENDING_RELEASES
        ):  # the board cannot be reached; these seats end by themselves
            del self._pending_releases[next(iter(self._pending_releases))]

    def _limit_error(self) -> UserLimitReached:
        return UserLimitReached(f"limits.connections_per_user ({self.limit}) is reached")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        renew = loop.time() + RENEW_INTERVAL_SECONDS
        while not self._is_stopping:
            try:
                async with asyncio.timeout_at(renew):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._is_stopping:
                return
            # Each once, so that none waits for the others to have nothing to do.
            try:
                await self._release_batches()  # first: who asks may have left just now
                await self._reserve_batches()
                if loop.time() >= renew:
                    renew = loop.time() + RENEW_INTERVAL_SECONDS
                    await self._renew_slots()
            except Unavailable as error:
                self._log_unshared(error)
                _resolve_reservations(
                    self._pending_reservations, None
                )  # nobody's question may wait for a board that is away
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:  # whatever it was, whoever asks next must get an answer
                self._background.record_failure("user_quotas", error)
                _resolve_reservations(self._pending_reservations, None)
                await asyncio.sleep(RETRY_SECONDS)
            if self._pending_reservations or self._pending_releases:
                self._wake.set()

    async def _reserve_batches(self) -> None:
        asking, self._pending_reservations = self._pending_reservations, []
        try:
            while asking:
                # Who left meanwhile would have a seat that nobody gives back.
                batch = [
                    each
                    for each in asking[:MAX_SLOTS_PER_BATCH]
                    if self._is_held(each[0].name, each[0].member)
                ]
                try:
                    had: Sequence[bool] = await self._shared_store.acquire_slots(
                        [seat for seat, _ in batch], SLOT_TTL_SECONDS
                    )
                except Unavailable as error:
                    self._log_unshared(error)
                    had = [True] * len(batch)
                for (_, answer), is_had in zip(batch, had, strict=True):
                    if not answer.done():
                        answer.set_result(is_had)
                del asking[:MAX_SLOTS_PER_BATCH]
        finally:  # nobody may wait for an answer that never comes
            _resolve_reservations(asking, None)

    async def _release_batches(self) -> None:
        leaving, self._pending_releases = list(self._pending_releases), {}
        while leaving:
            batch = leaving[:MAX_SLOTS_PER_BATCH]
            # Somebody who came back meanwhile has the same seat.
            gone = [QuotaSlot(*place, None) for place in batch if not self._is_held(*place)]
            try:
                await self._shared_store.release_slots(gone)
            except BaseException:
                self._queue_releases(leaving)
                raise
            del leaving[:MAX_SLOTS_PER_BATCH]

    async def _renew_slots(self) -> None:
        seats = iter(list(self._held_slots()))
        while batch := list(islice(seats, MAX_SLOTS_PER_BATCH)):
            await self._shared_store.acquire_slots(batch, SLOT_TTL_SECONDS)

    def _held_slots(self) -> Iterator[QuotaSlot]:
        for user, members in self._members.items():
            for member in (members,) if isinstance(members, str) else members:
                yield QuotaSlot(user, member, None)

    def _is_held(self, user: str, member: str) -> bool:
        members = self._members.get(user)
        return member == members if isinstance(members, str) else bool(members and member in members)

    def _log_unshared(self, error: Unavailable) -> None:
        if self._log_throttle.should_log("alone") is not None:
            log.warning(
                "user_quotas_unshared", error=error.message, note="limits.connections_per_user is per node"
            )


def _resolve_reservations(
    asking: list[tuple[QuotaSlot, asyncio.Future[bool]]], error: Exception | None
) -> None:
    """Answer whoever is left: with an error, or that this node's own count decides."""
    for _, answer in asking:
        if answer.done():
            continue
        if error is None:
            answer.set_result(True)
        else:
            answer.set_exception(error)
    asking.clear()


def user_key(subject: str, issuer: str | None) -> str:
    """Return the name of a user's seats: nobody's subject is written into the board."""
    text = f"{issuer or ''}\0{subject}"
    return "user:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
