"""Credit: how much each side may send before the other has passed it on (pure; virtio 5.10.6.3).

Both counters run freely and wrap at 2**32, so every difference is taken modulo that. Only payload counts.

For what we send, the guest tells ``buf_alloc``, the room it has, and ``fwd_cnt``, what it has passed on to its
program; we count ``sent``. For what we receive, it is the other way round.
"""

from __future__ import annotations

from typing import Final

WRAP: Final = 0xFFFF_FFFF
"""Counters are of 32 bits: ``x & WRAP``."""


class Outgoing:
    """What may be sent to the guest.

    Attributes:
        buf_alloc: room of the guest's socket, in bytes, as it said last.
        fwd_cnt: bytes that the guest's socket has passed on, as it said last.
        sent: bytes sent to it.
    """

    __slots__ = ("buf_alloc", "fwd_cnt", "sent")

    def __init__(self) -> None:
        self.buf_alloc = 0
        self.fwd_cnt = 0
        self.sent = 0

    def told(self, buf_alloc: int, fwd_cnt: int) -> bool:
        """Take what a packet of the guest says; False when it cannot be: more passed on than was sent.

        What is older than what is known is ignored: a guest that sends from two processors at once may send
        its packets in another order than it counted.
        """
        newer = (fwd_cnt - self.fwd_cnt) & WRAP
        if newer > (self.sent - self.fwd_cnt) & WRAP:
            return newer > WRAP // 2
        self.buf_alloc = buf_alloc
        self.fwd_cnt = fwd_cnt
        return True

    @property
    def free(self) -> int:
        """Bytes that may be sent now; 0 as well when the guest took back room that is in use."""
        return max(0, self.buf_alloc - ((self.sent - self.fwd_cnt) & WRAP))

    def take(self, count: int) -> None:
        """`count` bytes, at most :attr:`free`, are sent."""
        self.sent = (self.sent + count) & WRAP


class Incoming:
    """What the guest may send.

    Attributes:
        buf_alloc: room of our side, in bytes; it does not change.
        fwd_cnt: bytes passed on to the host's program.
        told_fwd_cnt: the fwd_cnt in the last packet that was sent to the guest.
        received: bytes that came from it.
    """

    __slots__ = ("buf_alloc", "fwd_cnt", "received", "told_fwd_cnt")

    def __init__(self, buf_alloc: int) -> None:
        self.buf_alloc = buf_alloc
        self.fwd_cnt = 0
        self.told_fwd_cnt = 0
        self.received = 0

    def receive(self, count: int) -> bool:
        """`count` bytes came; False, and nothing changes, when the guest had no credit for them."""
        if ((self.received - self.fwd_cnt) & WRAP) + count > self.buf_alloc:
            return False
        self.received = (self.received + count) & WRAP
        return True

    def forward(self, count: int) -> None:
        """`count` bytes were passed on."""
        self.fwd_cnt = (self.fwd_cnt + count) & WRAP

    @property
    def should_tell(self) -> bool:
        """Whether the guest has to be told of room that it does not know of, lest it wait.

        That is when it knows of less than half: seldom enough to cost nothing, and early enough that a
        sender in full run is not held up.
        """
        return (self.fwd_cnt - self.told_fwd_cnt) & WRAP >= self.buf_alloc // 2
