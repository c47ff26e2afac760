"""How many streams a user has, over all nodes.

This node's own are counted here. Where the log is shared, each also has a seat on the board, for
`SEAT_SECONDS`, kept while the stream lives: a node that dies takes nothing along for longer. Seats are asked
for together, a batch for each exchange with the board. While the board cannot be reached, this node's own
count decides: a log that is away ends nobody's streams and refuses none.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

import structlog

from gateway.broker.shared_store import Board, Seat
from gateway.core.errors import Draining, Overload, Unavailable
from gateway.observability.background import UNCOUNTED, Background
from gateway.observability.log_throttle import Seldom

log = structlog.get_logger("gateway.limits")

SEAT_SECONDS = 60.0
"""How long the seat of a dead node's stream counts."""

RENEW_SECONDS = 20.0
"""How often living streams ask for their seats again."""

AGAIN_SECONDS = 0.2
"""Until the board is asked again after it could not be."""

CONFIRM_SECONDS = 5.0
"""How long a stream waits for its seat before this node's own count decides."""

LEAVING = 20_000
"""Seats that wait to be given back; the oldest are left to their time."""
STOP_SECONDS = 1.0
"""How long a stop waits for the exchange that is under way."""

BATCH = 500
"""Seats in one exchange with the board."""


class UserFull(Overload):
    """One user has as many streams as it may."""

    code = "user_limit"


class Users:
    """Counts. ``limit`` None counts nobody."""

    def __init__(self, board: Board, limit: int | None, background: Background = UNCOUNTED) -> None:
        self.limit = limit
        self._background = background
        self._board = board
        # Streams of each member, as one client may have two; of most users a single one is all there is.
        self._members: dict[str, dict[str, int] | str] = {}
        self._asking: list[tuple[Seat, asyncio.Future[bool]]] = []
        self._leaving: dict[tuple[str, str], None] = {}
        self._wake = asyncio.Event()
        self._is_ending = False
        self._seldom = Seldom()
        self._task: asyncio.Task[None] | None = None

    @property
    def must_ask(self) -> bool:
        """Whether other nodes have a say."""
        return self._board.is_shared

    def start(self) -> None:
        """Begin to ask the board where there is a limit. Needs a running loop. Harmless when repeated."""
        if self._task is None and self.limit is not None and self.must_ask:
            self._task = self._background.start("seats", self._run)

    async def stop(self) -> None:
        """Give all seats back and end; harmless when repeated."""
        if self._task is None:
            return
        # Not cancelled in the middle of an exchange: the board could take seats after they were given back.
        self._is_ending = True
        self._wake.set()
        await asyncio.wait([self._task], timeout=STOP_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task, self._is_ending = None, False
        _answer(self._asking, Draining("the gateway is shutting down"))
        with suppress(Unavailable):  # they expire by themselves
            await self._give_back()

    def enter(self, user: str, member: str) -> None:
        """Count a stream of a user here. Raises UserFull. Pair with `leave`."""
        members = self._members.get(user)
        if members is None:
            self._members[user] = member
            return
        if isinstance(members, str):
            members = self._members[user] = {members: 1}
        if member not in members and self.limit is not None and len(members) >= self.limit:
            raise self._full()
        members[member] = members.get(member, 0) + 1

    async def confirm(self, user: str, member: str) -> None:
        """Ask for the seat of a stream that entered. Raises Overload; it must `leave` all the same."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asking.append((Seat(user, member, self.limit), answer))
        self._wake.set()
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                is_had = await answer
        except TimeoutError:
            is_had = True
        if not is_had:
            raise self._full()

    def leave(self, user: str, member: str) -> None:
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
            self._note_leaving([(user, member)])
            self._wake.set()

    def _note_leaving(self, places: Sequence[tuple[str, str]]) -> None:
        self._leaving.update(dict.fromkeys(places))
        while len(self._leaving) > LEAVING:  # the board cannot be reached; these seats end by themselves
            del self._leaving[next(iter(self._leaving))]

    def _full(self) -> UserFull:
        return UserFull(f"limits.connections_per_user ({self.limit}) is reached")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        renew = loop.time() + RENEW_SECONDS
        while not self._is_ending:
            try:
                async with asyncio.timeout_at(renew):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._is_ending:
                return
            # Each once, so that none waits for the others to have nothing to do.
            try:
                await self._give_back()  # first: who asks may have left just now
                await self._ask()
                if loop.time() >= renew:
                    renew = loop.time() + RENEW_SECONDS
                    await self._renew()
            except Unavailable as error:
                self._tell(error)
                _answer(self._asking, None)  # nobody's question may wait for a board that is away
                await asyncio.sleep(AGAIN_SECONDS)
            except Exception as error:  # whatever it was, whoever asks next must get an answer
                self._background.failed("seats", error)
                _answer(self._asking, None)
                await asyncio.sleep(AGAIN_SECONDS)
            if self._asking or self._leaving:
                self._wake.set()

    async def _ask(self) -> None:
        asking, self._asking = self._asking, []
        try:
            while asking:
                # Who left meanwhile would have a seat that nobody gives back.
                batch = [each for each in asking[:BATCH] if self._is_here(each[0].name, each[0].member)]
                try:
                    had: Sequence[bool] = await self._board.seats([seat for seat, _ in batch], SEAT_SECONDS)
                except Unavailable as error:
                    self._tell(error)
                    had = [True] * len(batch)
                for (_, answer), is_had in zip(batch, had, strict=True):
                    if not answer.done():
                        answer.set_result(is_had)
                del asking[:BATCH]
        finally:  # nobody may wait for an answer that never comes
            _answer(asking, None)

    async def _give_back(self) -> None:
        leaving, self._leaving = list(self._leaving), {}
        while leaving:
            batch = leaving[:BATCH]
            # Somebody who came back meanwhile has the same seat.
            gone = [Seat(*place, None) for place in batch if not self._is_here(*place)]
            try:
                await self._board.leave(gone)
            except BaseException:
                self._note_leaving(leaving)
                raise
            del leaving[:BATCH]

    async def _renew(self) -> None:
        seats = iter(list(self._seats()))
        while batch := list(islice(seats, BATCH)):
            await self._board.seats(batch, SEAT_SECONDS)

    def _seats(self) -> Iterator[Seat]:
        for user, members in self._members.items():
            for member in (members,) if isinstance(members, str) else members:
                yield Seat(user, member, None)

    def _is_here(self, user: str, member: str) -> bool:
        members = self._members.get(user)
        return member == members if isinstance(members, str) else bool(members and member in members)

    def _tell(self, error: Unavailable) -> None:
        if self._seldom.tell("alone") is not None:
            log.warning(
                "users_counted_alone", error=error.message, note="limits.connections_per_user is per node"
            )


def _answer(asking: list[tuple[Seat, asyncio.Future[bool]]], error: Exception | None) -> None:
    """Answer whoever is left: with an error, or that this node's own count decides."""
    for _, answer in asking:
        if answer.done():
            continue
        if error is None:
            answer.set_result(True)
        else:
            answer.set_exception(error)
    asking.clear()


def user_name(subject: str, issuer: str | None) -> str:
    """Return the name of a user's seats: nobody's subject is written into the board."""
    text = f"{issuer or ''}\0{subject}"
    return "user:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
