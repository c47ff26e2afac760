"""Fan-out: the streams with one subscription, and the frames on their way to them.

How it works. An event that arrives is put into ``_pending`` and the audience asks the hub's pump
for a turn. Its turn seals what is pending into one frame: the bytes are joined once, the members
at that moment are its recipients, and `step` writes it to a slice of them per turn. While a frame is
under way, events gather in ``_pending``: that is the coalescing, and it grows with load by itself.

Order. Frames go out one after the other, so every member sees the log's order. A member that
joins seals what is pending first, so each frame covers whole members: nobody gets half of one.

Cost. A delivery is one write() and nothing else: no object is touched but the number of a file. Who got what
is known without notes, as members sit in the order in which they joined: whoever sits before `Frame.next` has
the frame. A member that leaves meanwhile makes the frames that were sealed for it ask each member whether
it is still there; most frames are *whole*, and need not.

Files. A write goes past the transport, which is right only while that holds nothing back itself. So a stream
is told to pause as soon as a byte had to stay in its transport, and leaves its audience then. And it is right
only while the file is the stream's own: transports close theirs after `connection_lost`, which leaves first.
"""

from collections import Counter
from itertools import count
from os import write
from typing import Protocol

from gateway.core.event import EventId
from gateway.hub.encoded_event import Entry
from gateway.hub.subscription import Subscription

MAX_FRAME = 64 * 1024
"""Bytes after which a frame is closed; one event may be larger."""

MAX_PENDING = 16 * 1024 * 1024
"""Bytes that may wait for one audience before its members catch up from the ring instead."""


class Transport(Protocol):
    """The part of `asyncio.Transport` that fan-out uses."""

    def write(self, data: bytes | memoryview) -> None: ...


class Member(Protocol):
    """What an audience needs of a stream. ``cursor`` is the id up to which it has everything."""

    @property
    def transport(self) -> Transport: ...

    @property
    def fd(self) -> int:
        """The socket's descriptor, where bytes may be written past the transport; else -1."""

    audience: "Audience | None"
    cursor: EventId
    seat: int
    """Its place in the order of joining."""
    since: tuple[int, int]
    """Events and bytes of the audience when it joined."""
    events: int
    bytes: int

    def end(self, reason: str) -> None:
        """Close at this event boundary."""


class Frame:
    """Bytes for everybody who was a member when they were sealed. ``until`` is the id they lead up to."""

    __slots__ = (
        "before",
        "counts",
        "data",
        "events",
        "fds",
        "last_seat",
        "next",
        "oldest_ms",
        "payload_bytes",
        "recipients",
        "until",
        "whole",
    )

    def __init__(
        self,
        data: bytes,
        entries: list[Entry],
        recipients: list[Member],
        fds: list[int],
        until: EventId,
        before: tuple[int, int],
    ) -> None:
        self.data = data
        self.events = len(entries)
        self.counts = Counter(entry.declared.name for entry in entries)
        self.oldest_ms = entries[0].id.ms
        self.payload_bytes = sum(len(entry.event.payload) for entry in entries)
        self.recipients = recipients
        self.fds = fds
        self.last_seat = recipients[-1].seat
        self.until = until
        self.before = before  # events and bytes of the audience before this
        self.next = 0  # how many recipients have it
        self.whole = True  # whether all recipients are still there

    def reached(self, member: Member) -> bool:
        """Tell whether a recipient has it."""
        return self.next > 0 and member.seat <= self.recipients[self.next - 1].seat


class Audience:
    """All streams of this node with one subscription."""

    __slots__ = (
        "_direct",
        "_frames",
        "_new",
        "_pending",
        "_seats",
        "_settled",
        "_waiting",
        "members",
        "queued",
        "sealed",
        "subscription",
    )

    def __init__(self, subscription: Subscription, head: EventId) -> None:
        self.subscription = subscription
        self.members: dict[Member, int] = {}
        self.queued = False  # has its turn in the pump coming
        self._pending: list[Entry] = []
        self._waiting = 0
        self._frames: list[Frame] = []  # few; a deque takes 600 bytes, empty too
        # Everything up to here was delivered to all members that were there.
        self._settled = head
        self._seats = count()
        self._direct = True  # whether all members that ever joined can be written to past their transport
        # Whose file is not known yet: most streams wait long for their first event, and many get none.
        self._new: dict[Member, None] = {}
        self.sealed = (0, 0)
        """Events and bytes of all frames so far."""

    @property
    def is_busy(self) -> bool:
        """Whether anything is on its way to the members."""
        return bool(self._pending or self._frames)

    @property
    def is_flooded(self) -> bool:
        """Whether so much is waiting that history is the cheaper way."""
        return self._waiting > MAX_PENDING

    def add(self, entry: Entry, head: EventId) -> bool:
        """Take an event for the members; ``head`` is the log before it. Returns False if filtered out."""
        if not self.subscription.wants(entry):
            return False
        if not self.is_busy:
            self._settled = head
        self._pending.append(entry)
        self._waiting += len(entry.event.payload)
        return True

    def join(self, member: Member, head: EventId) -> None:
        """Let a stream that has everything up to ``head`` take part from there on."""
        assert member.cursor <= head, "a stream that is ahead of this node would get events twice"
        self._seal(head)
        member.audience = self
        member.cursor = head
        member.seat = next(self._seats)
        member.since = self.sealed
        self.members[member] = -1
        self._new[member] = None

    def leave(self, member: Member, head: EventId) -> None:
        """Let a stream go; its cursor then says exactly what it was given. Harmless when repeated."""
        if member.audience is not self:
            return
        member.audience = None
        del self.members[member]
        self._new.pop(member, None)
        (events, size), until = self.sealed, head
        if self.is_busy:
            until = self._settled
            for frame in self._frames:
                frame.whole = False
            if self._frames:
                first = self._frames[0]
                events, size = first.before
                if first.reached(member):
                    events, size, until = events + first.events, size + len(first.data), first.until
        # What was sealed before it joined was not for it.
        member.events += max(0, events - member.since[0])
        member.bytes += max(0, size - member.since[1])
        member.cursor = max(member.cursor, until)

    def clear(self) -> None:
        """Drop what is waiting, once all members have left."""
        self._pending.clear()
        self._waiting = 0
        self._frames.clear()

    def step(self, budget: int, head: EventId) -> tuple[int, Frame | None]:
        """Write the oldest frame to at most ``budget`` members.

        Returns how many got it, and the frame.
        """
        if not self._frames:
            self._seal(head)
            if not self._frames:
                return 0, None
        frame = self._frames[0]
        first, last = frame.next, min(frame.next + budget, len(frame.recipients))
        written = last - first
        if frame.whole and self._direct:
            self._write_all(frame, first, last)
        else:
            written = self._write_each(frame, first, last)
        frame.next = last
        if last == len(frame.recipients):
            del self._frames[0]
            self._waiting -= frame.payload_bytes
            self._settled = frame.until
        return written, frame

    def _write_all(self, frame: Frame, first: int, last: int) -> None:
        data, size = frame.data, len(frame.data)
        for fd in frame.fds[first:last] if last - first < len(frame.fds) else frame.fds:
            try:
                sent = write(fd, data)
            except OSError:  # full, or gone: its transport will find out
                sent = 0
            if sent != size:
                position = frame.fds.index(fd, first)
                frame.next = position + 1
                frame.recipients[position].transport.write(memoryview(data)[sent:])

    def _write_each(self, frame: Frame, first: int, last: int) -> int:
        data, last_seat = frame.data, frame.last_seat
        written = 0
        for member in frame.recipients[first:last]:
            frame.next += 1
            # Gone or paused; or it was, and came back with this frame already read from the ring.
            if member.audience is self and member.seat <= last_seat:
                member.transport.write(data)
                written += 1
        return written

    def _seal(self, head: EventId) -> None:
        """Close what is pending into frames for the members of this moment."""
        if not self.members:
            self._pending.clear()  # the last one left before its turn came
        if not self._pending:
            return
        for member in self._new:
            fd = self.members[member] = member.fd
            self._direct = self._direct and fd >= 0
        self._new.clear()
        recipients, fds = list(self.members), list(self.members.values())
        frames, sealed = [], self.sealed
        entries, size = [], 0
        for position, entry in enumerate(self._pending):
            entries.append(entry)
            size += len(entry.event.payload)
            is_last = position == len(self._pending) - 1
            if size >= MAX_FRAME or is_last:
                data = self.subscription.frame(self.subscription.encode(entries))
                until = head if is_last else entry.id
                frames.append(Frame(data, entries, recipients, fds, until, sealed))
                sealed = (sealed[0] + len(entries), sealed[1] + len(data))
                entries, size = [], 0
        # Only now: if one cannot be encoded, all is still pending, and the members read it from the ring.
        self._pending, self.sealed = [], sealed
        self._frames += frames
