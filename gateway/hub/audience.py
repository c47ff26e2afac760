"""Fan-out: the streams with one subscription, and the frames on their way to them.

How it works. An event that arrives is put into ``_pending`` and the audience asks the hub's pump
for a turn. Its turn seals what is pending into one frame: the bytes are joined once, the members
at that moment are its recipients, and `step` writes it to a slice of them per turn. While a frame is
under way, events gather in ``_pending``: that is the coalescing, and it grows with load by itself.

Order. Frames go out one after the other, so every member sees the log's order. A member that
joins or leaves seals what is pending first, so each frame covers whole members: nobody gets half of one.
"""

from collections import Counter, deque
from typing import Protocol

from gateway.event import EventId
from gateway.hub.entry import Entry
from gateway.hub.subscription import Subscription

MAX_FRAME = 64 * 1024
"""Bytes after which a frame is closed; one event may be larger."""

MAX_PENDING = 16 * 1024 * 1024
"""Bytes that may wait for one audience before its members catch up from the ring instead."""


class Transport(Protocol):
    """The part of `asyncio.Transport` that fan-out uses."""

    def write(self, data: bytes) -> None: ...


class Member(Protocol):
    """What an audience needs of a stream. ``cursor`` is the id up to which it has everything."""

    @property
    def transport(self) -> Transport: ...

    audience: "Audience | None"
    cursor: EventId
    events: int
    bytes: int


class Frame:
    """Bytes for everybody who was a member when they were sealed. ``until`` is the id they lead up to."""

    __slots__ = ("counts", "data", "events", "next", "oldest_ms", "payload_bytes", "recipients", "until")

    def __init__(self, data: bytes, entries: list[Entry], recipients: list[Member], until: EventId) -> None:
        self.data = data
        self.events = len(entries)
        self.counts = Counter(entry.declared.name for entry in entries)
        self.oldest_ms = entries[0].id.ms
        self.payload_bytes = sum(len(entry.event.payload) for entry in entries)
        self.recipients = recipients
        self.until = until
        self.next = 0


class Audience:
    """All streams of this node with one subscription."""

    __slots__ = ("_frames", "_pending", "_settled", "_waiting", "members", "queued", "subscription")

    def __init__(self, subscription: Subscription, head: EventId) -> None:
        self.subscription = subscription
        self.members: dict[Member, None] = {}
        self.queued = False  # has its turn in the pump coming
        self._pending: list[Entry] = []
        self._waiting = 0
        self._frames: deque[Frame] = deque()
        # Everything up to here was delivered to all members that were there.
        self._settled = head

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
        self.members[member] = None

    def leave(self, member: Member, head: EventId) -> None:
        """Let a stream go; its cursor then says exactly what it was given. Harmless when repeated."""
        if member.audience is not self:
            return
        member.audience = None
        del self.members[member]
        member.cursor = max(member.cursor, self._settled if self.is_busy else head)

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
        data, until, events, size = frame.data, frame.until, frame.events, len(frame.data)
        first, last = frame.next, min(frame.next + budget, len(frame.recipients))
        written = 0
        # Inlined on purpose: this loop is what a delivery costs besides its send().
        for member in (
            frame.recipients[first:last] if last - first < len(frame.recipients) else frame.recipients
        ):
            # Gone or paused; or it was, and came back with this frame already read from the ring.
            if member.audience is not self or member.cursor >= until:
                continue
            member.cursor = until
            member.events += events
            member.bytes += size
            member.transport.write(data)
            written += 1
        frame.next = last
        if last == len(frame.recipients):
            self._frames.popleft()
            self._waiting -= frame.payload_bytes
            self._settled = until
        return written, frame

    def _seal(self, head: EventId) -> None:
        """Close what is pending into frames for the members of this moment."""
        if not self._pending:
            return
        recipients = list(self.members)
        entries, size = [], 0
        pending, self._pending = self._pending, []
        for position, entry in enumerate(pending):
            entries.append(entry)
            size += len(entry.event.payload)
            is_last = position == len(pending) - 1
            if size >= MAX_FRAME or is_last:
                data = self.subscription.frame(self.subscription.encode(entries))
                self._frames.append(Frame(data, entries, recipients, head if is_last else entry.id))
                entries, size = [], 0
