"""Fan-out: the streams with the same subscription, and the frames on their way to them.

How it works. An event that arrives is appended to ``_pending``, and the hub's pump gives the audience a turn.
The turn seals the pending events into one frame: the bytes are joined once, the members at that moment are
its recipients, and `Audience.write_slice` writes it to a slice of them per turn. Meanwhile further events
gather in ``_pending``: so they are coalesced, the more the higher the load.

Order. Frames are written one after the other, so every member sees the log's order. Joining seals the pending
events first, so a frame is either for a member or not: nobody gets half of one.

Cost (bench rows: fanout, throughput). A delivery is one write() and nothing else: no object is touched but a
file descriptor. Nothing is recorded per member: recipients are in the order in which they joined, so those
before `Frame.next_recipient` have the frame. If a member leaves, the frames that were sealed for it check
each recipient from then on; most frames never have to.

File descriptors. A write bypasses the transport, which is right only while that has nothing buffered itself.
So a stream pauses as soon as a byte stays in its transport's buffer, and leaves its audience then. And it is
right only while the descriptor is the stream's own: a transport closes it after `connection_lost`, where the
stream leaves first.
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
    """Its position in the order of joining."""
    totals_at_join: tuple[int, int]
    """Events and bytes of the audience when it joined."""
    events_sent: int
    bytes_sent: int


class Frame:
    """Encoded events for the members of one moment. ``until`` is the id up to which they reach."""

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
        self.next_recipient = 0  # the position of the first one that does not have it
        self.has_all_recipients = True  # none has left since it was sealed

    def has_reached(self, member: Member) -> bool:
        """Tell whether a recipient was sent this frame."""
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
        self.is_scheduled = False  # whether it waits for a turn in the pump
        self._pending: list[EncodedEvent] = []
        self._pending_bytes = 0
        self._frames: list[Frame] = []  # few; an empty deque takes 600 bytes (bench row: own-channels)
        # Every member of that time was sent everything up to here.
        self._delivered_until = head
        self._join_numbers = count()
        self._is_direct = True  # whether all members that ever joined have a descriptor; bench row: fanout
        # Members whose descriptor was not looked up yet: many never get an event. Bench row: idle.
        self._members_without_fd: dict[Member, None] = {}
        self.sealed_totals = (0, 0)
        """Events and bytes of all frames so far."""

    @property
    def is_busy(self) -> bool:
        """Whether events are on their way to the members."""
        return bool(self._pending or self._frames)

    @property
    def is_flooded(self) -> bool:
        """Whether so much is pending that the members should catch up from history instead."""
        return self._pending_bytes > MAX_PENDING_BYTES

    def enqueue(self, entry: EncodedEvent, head: EventId) -> bool:
        """Add an event for the members; ``head`` is the id before it. Returns False if it is filtered out."""
        if not self.subscription.accepts(entry):
            return False
        if not self.is_busy:
            self._delivered_until = head
        self._pending.append(entry)
        self._pending_bytes += len(entry.event.payload)
        return True

    def join(self, member: Member, head: EventId) -> None:
        """Add a stream that has everything up to ``head``."""
        assert member.cursor <= head, "a stream that is ahead of this node would get events twice"
        self._seal_frames(head)
        member.audience = self
        member.cursor = head
        member.join_number = next(self._join_numbers)
        member.totals_at_join = self.sealed_totals
        self.members[member] = -1
        self._members_without_fd[member] = None

    def leave(self, member: Member, head: EventId) -> None:
        """Remove a stream and set its cursor to what it was sent. Harmless when repeated."""
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
        # Frames that were sealed before it joined were not for it.
        member.events_sent += max(0, events - member.totals_at_join[0])
        member.bytes_sent += max(0, size - member.totals_at_join[1])
        member.cursor = max(member.cursor, until)

    def clear(self) -> None:
        """Drop what is pending, once all members have left."""
        self._pending.clear()
        self._pending_bytes = 0
        self._frames.clear()

    def write_slice(self, budget: int, head: EventId) -> tuple[int, Frame | None]:
        """Write the oldest frame to at most ``budget`` members; return to how many, and the frame."""
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
        # The inner loop of every broadcast (bench rows: fanout, throughput).
        data, size = frame.data, len(frame.data)
        for fd in frame.fds[first:last] if last - first < len(frame.fds) else frame.fds:
            try:
                sent = write(fd, data)
            except OSError:  # full or closed: the transport's own write handles that
                sent = 0
            if sent != size:
                position = frame.fds.index(fd, first)
                frame.next_recipient = position + 1
                frame.recipients[position].transport.write(memoryview(data)[sent:])

    def _write_checked(self, frame: Frame, first: int, last: int) -> int:
        data, last_join_number = frame.data, frame.last_join_number
        written = 0
        for member in frame.recipients[first:last]:
            frame.next_recipient += 1
            # Skipped: it has left, or left and joined again after it read this frame's events from the ring.
            if member.audience is self and member.join_number <= last_join_number:
                member.transport.write(data)
                written += 1
        return written

    def _seal_frames(self, head: EventId) -> None:
        """Turn the pending events into frames for the current members."""
        if not self.members:
            self._pending.clear()  # the last member left before the turn
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
        # Only now: if one cannot be encoded, all are still pending, and the members read them from the ring.
        self._pending, self.sealed_totals = [], sealed
        self._frames += frames
