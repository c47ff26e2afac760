"""Fan-out: the streams with one subscription, and the frames on their way to them.

How it works. An event that arrives is put into ``_pending`` and the audience asks the hub's pump
for a turn. Its turn seals what is pending into one frame: the bytes are joined once, the members
at that moment are its recipients, and `step` writes it to a slice of them per turn. While a frame is
under way, events gather in ``_pending``: that is the coalescing, and it grows with load by itself.

Order. Frames go out one after the other, so every member sees the log's order. A member that
joins seals what is pending first, so each frame covers whole members: nobody gets half of one.

Cost. A delivery is one write() and nothing else: no object is touched but the number of a file. Who got what
is known without notes, as members sit in the order in which they joined: whoever sits before `Frame.next_recipient` has
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
from gateway.hub.encoded_event import EncodedEvent
from gateway.hub.subscription import Subscription

MAX_FRAME_BYTES = 64 * 1024
"""Bytes after which a frame is closed; one event may be larger."""

MAX_PENDING_BYTES = 16 * 1024 * 1024
"""Bytes that may wait for one audience before its members catch up from the ring instead."""


class Transport(Protocol):
    """The part of `asyncio.Transport` that fan-out uses."""

    def write(self, data: bytes | memoryview) -> None: ...


class Stream(Protocol):
    """What each part of the gateway that handles streams needs of one."""

    subscription: Subscription
    close_reason: str | None
    """Why it ends; None while it is open."""

    @property
    def is_writable(self) -> bool:
        """Whether it is neither closing nor paused."""

    def send(self, blocks: bytes, events: int) -> None:
        """Write whole blocks now; ``events`` is how many events of the log are among them."""

    def close(self, reason: str) -> None:
        """Close at this event boundary."""


class Member(Stream, Protocol):
    """A stream as an audience needs it. ``cursor`` is the id up to which it has everything."""

    @property
    def transport(self) -> Transport: ...

    @property
    def fd(self) -> int:
        """The socket's descriptor, where bytes may be written past the transport; else -1."""

    audience: "Audience | None"
    cursor: EventId
    join_number: int
    """Its place in the order of joining."""
    totals_at_join: tuple[int, int]
    """Events and bytes of the audience when it joined."""
    events_sent: int
    bytes_sent: int


class Frame:
    """Bytes for everybody who was a member when they were sealed. ``until`` is the id they lead up to."""

    __slots__ = (
        "counts_by_channel",
        "data",
        "event_count",
        "fds",
        "has_all_recipients",
        "last_join_number",
        "next_recipient",
        "oldest_ms",
        "payload_bytes",
        "recipients",
        "totals_before",
        "until",
    )

    def __init__(
        self,
        data: bytes,
        entries: list[EncodedEvent],
        recipients: list[Member],
        fds: list[int],
        until: EventId,
        before: tuple[int, int],
    ) -> None:
        self.data = data
        self.event_count = len(entries)
        self.counts_by_channel = Counter(entry.declared.name for entry in entries)
        self.oldest_ms = entries[0].id.ms
        self.payload_bytes = sum(len(entry.event.payload) for entry in entries)
        self.recipients = recipients
        self.fds = fds
        self.last_join_number = recipients[-1].join_number
        self.until = until
        self.totals_before = before  # events and bytes of the audience before this
        self.next_recipient = 0  # how many recipients have it
        self.has_all_recipients = True  # whether all recipients are still there

    def has_reached(self, member: Member) -> bool:
        """Tell whether a recipient has it."""
        return (
            self.next_recipient > 0
            and member.join_number <= self.recipients[self.next_recipient - 1].join_number
        )


class Audience:
    """All streams of this node with one subscription."""

    __slots__ = (
        "_delivered_until",
        "_frames",
        "_is_direct",
        "_join_numbers",
        "_members_without_fd",
        "_pending",
        "_pending_bytes",
        "is_scheduled",
        "members",
        "sealed_totals",
        "subscription",
    )

    def __init__(self, subscription: Subscription, head: EventId) -> None:
        self.subscription = subscription
        self.members: dict[Member, int] = {}
        self.is_scheduled = False  # has its turn in the pump coming
        self._pending: list[EncodedEvent] = []
        self._pending_bytes = 0
        self._frames: list[Frame] = []  # few; a deque takes 600 bytes, empty too
        # Everything up to here was delivered to all members that were there.
        self._delivered_until = head
        self._join_numbers = count()
        self._is_direct = True  # whether all members that ever joined can be written to past their transport
        # Whose file is not known yet: most streams wait long for their first event, and many get none.
        self._members_without_fd: dict[Member, None] = {}
        self.sealed_totals = (0, 0)
        """Events and bytes of all frames so far."""

    @property
    def is_busy(self) -> bool:
        """Whether anything is on its way to the members."""
        return bool(self._pending or self._frames)

    @property
    def is_flooded(self) -> bool:
        """Whether so much is waiting that history is the cheaper way."""
        return self._pending_bytes > MAX_PENDING_BYTES

    def enqueue(self, entry: EncodedEvent, head: EventId) -> bool:
        """Take an event for the members; ``head`` is the log before it. Returns False if filtered out."""
        if not self.subscription.accepts(entry):
            return False
        if not self.is_busy:
            self._delivered_until = head
        self._pending.append(entry)
        self._pending_bytes += len(entry.event.payload)
        return True

    def join(self, member: Member, head: EventId) -> None:
        """Let a stream that has everything up to ``head`` take part from there on."""
        assert member.cursor <= head, "a stream that is ahead of this node would get events twice"
        self._seal_frames(head)
        member.audience = self
        member.cursor = head
        member.join_number = next(self._join_numbers)
        member.totals_at_join = self.sealed_totals
        self.members[member] = -1
        self._members_without_fd[member] = None

    def leave(self, member: Member, head: EventId) -> None:
        """Let a stream go; its cursor then says exactly what it was given. Harmless when repeated."""
        if member.audience is not self:
            return
        member.audience = None
        del self.members[member]
        self._members_without_fd.pop(member, None)
        (events, size), until = self.sealed_totals, head
        if self.is_busy:
            until = self._delivered_until
            for frame in self._frames:
                frame.has_all_recipients = False
            if self._frames:
                first = self._frames[0]
                events, size = first.totals_before
                if first.has_reached(member):
                    events, size, until = events + first.event_count, size + len(first.data), first.until
        # What was sealed before it joined was not for it.
        member.events_sent += max(0, events - member.totals_at_join[0])
        member.bytes_sent += max(0, size - member.totals_at_join[1])
        member.cursor = max(member.cursor, until)

    def clear(self) -> None:
        """Drop what is waiting, once all members have left."""
        self._pending.clear()
        self._pending_bytes = 0
        self._frames.clear()

    def write_slice(self, budget: int, head: EventId) -> tuple[int, Frame | None]:
        """Write the oldest frame to at most ``budget`` members.

        Returns how many got it, and the frame.
        """
        if not self._frames:
            self._seal_frames(head)
            if not self._frames:
                return 0, None
        frame = self._frames[0]
        first, last = frame.next_recipient, min(frame.next_recipient + budget, len(frame.recipients))
        written = last - first
        if frame.has_all_recipients and self._is_direct:
            self._write_direct(frame, first, last)
        else:
            written = self._write_checked(frame, first, last)
        frame.next_recipient = last
        if last == len(frame.recipients):
            del self._frames[0]
            self._pending_bytes -= frame.payload_bytes
            self._delivered_until = frame.until
        return written, frame

    def _write_direct(self, frame: Frame, first: int, last: int) -> None:
        data, size = frame.data, len(frame.data)
        for fd in frame.fds[first:last] if last - first < len(frame.fds) else frame.fds:
            try:
                sent = write(fd, data)
            except OSError:  # full, or gone: its transport will find out
                sent = 0
            if sent != size:
                position = frame.fds.index(fd, first)
                frame.next_recipient = position + 1
                frame.recipients[position].transport.write(memoryview(data)[sent:])

    def _write_checked(self, frame: Frame, first: int, last: int) -> int:
        data, last_seat = frame.data, frame.last_join_number
        written = 0
        for member in frame.recipients[first:last]:
            frame.next_recipient += 1
            # Gone or paused; or it was, and came back with this frame already read from the ring.
            if member.audience is self and member.join_number <= last_seat:
                member.transport.write(data)
                written += 1
        return written

    def _seal_frames(self, head: EventId) -> None:
        """Close what is pending into frames for the members of this moment."""
        if not self.members:
            self._pending.clear()  # the last one left before its turn came
        if not self._pending:
            return
        for member in self._members_without_fd:
            fd = self.members[member] = member.fd
            self._is_direct = self._is_direct and fd >= 0
        self._members_without_fd.clear()
        recipients, fds = list(self.members), list(self.members.values())
        frames, sealed = [], self.sealed_totals
        entries, size = [], 0
        for position, entry in enumerate(self._pending):
            entries.append(entry)
            size += len(entry.event.payload)
            is_last = position == len(self._pending) - 1
            if size >= MAX_FRAME_BYTES or is_last:
                data = self.subscription.frame(self.subscription.encode(entries))
                until = head if is_last else entry.id
                frames.append(Frame(data, entries, recipients, fds, until, sealed))
                sealed = (sealed[0] + len(entries), sealed[1] + len(data))
                entries, size = [], 0
        # Only now: if one cannot be encoded, all is still pending, and the members read it from the ring.
        self._pending, self.sealed_totals = [], sealed
        self._frames += frames
