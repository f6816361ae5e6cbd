"""One connection between the guest and the host: its state, its credit, and what each packet does to it (pure).

::

    guest's REQUEST               our REQUEST
         |                             |
      OPENING                       OFFERED
         | the host's side accepts     | RESPONSE
         +------------> OPEN <---------+
                         |  |
      the guest closed   |  |  the host's side closed, all its data are in the rx queue, SHUTDOWN is sent
       FLUSHING <--------+  +--------> CLOSING
    what the guest sent is          until the guest's RST, or its SHUTDOWN
    still being passed on;          of both directions, or until the time
    the guest is done with it       for it is over
         |                             |
         +----------> gone <-----------+

Half-closes do not change the state: each direction of an OPEN connection ends by itself, and :attr:`Connection
.guest_shut` and :attr:`Connection.host_shut` hold what was said. In FLUSHING the pair of ports is free again, so a
guest may use it for the next connection at once.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, StrEnum, auto
from typing import Any, Final, Protocol

from .credit import Incoming, Outgoing
from .packet import HOST_CID, STREAM, Op, Shutdown

WOULD_BLOCK: Final = 0
"""Result of :meth:`End.receive`: nothing is there now."""
END: Final = -1
"""Result of :meth:`End.receive`: the host's side sends no more."""
BROKEN: Final = -2
"""Result of :meth:`End.receive` and :meth:`End.send`: the host's side is gone."""

FIRST_WINDOW_BYTES: Final = 4096
"""How much is asked of the host's side at first: one buffer of a Linux guest."""


class State(Enum):
    """See the picture above."""

    OPENING = auto()
    OFFERED = auto()
    OPEN = auto()
    CLOSING = auto()
    FLUSHING = auto()
    GONE = auto()


class Act(Enum):
    """What a packet of the guest does to a connection."""

    RESTART = auto()
    """The guest knows nothing of the connection: it ends as a reset, and a new one begins."""
    ACCEPT = auto()
    """The guest takes the connection."""
    GONE = auto()
    """The guest ended it; it is not answered, since RST never is."""
    SHUT = auto()
    """One direction ends, or both."""
    DATA = auto()
    """Payload."""
    CREDIT = auto()
    """The counters alone matter."""
    TELL = auto()
    """The guest asks for our counters."""
    LATE = auto()
    """Payload for a side that has closed is lost: the connection ends as a reset, and the guest gets RST."""
    RESET = auto()
    """It makes no sense here: the connection ends as a reset, and the guest gets RST."""


TABLE: Final[dict[State, dict[Op, Act]]] = {
    State.OPENING: {
        Op.REQUEST: Act.RESTART,
        Op.RESPONSE: Act.RESET,
        Op.RST: Act.GONE,
        Op.SHUTDOWN: Act.RESET,
        Op.RW: Act.RESET,
        Op.CREDIT_UPDATE: Act.CREDIT,
        Op.CREDIT_REQUEST: Act.CREDIT,
    },
    State.OFFERED: {
        Op.REQUEST: Act.RESET,
        Op.RESPONSE: Act.ACCEPT,
        Op.RST: Act.GONE,
        Op.SHUTDOWN: Act.RESET,
        Op.RW: Act.RESET,
        Op.CREDIT_UPDATE: Act.CREDIT,
        Op.CREDIT_REQUEST: Act.CREDIT,
    },
    State.OPEN: {
        Op.REQUEST: Act.RESTART,
        Op.RESPONSE: Act.RESET,
        Op.RST: Act.GONE,
        Op.SHUTDOWN: Act.SHUT,
        Op.RW: Act.DATA,
        Op.CREDIT_UPDATE: Act.CREDIT,
        Op.CREDIT_REQUEST: Act.TELL,
    },
    State.CLOSING: {
        Op.REQUEST: Act.RESTART,
        Op.RESPONSE: Act.RESET,
        Op.RST: Act.GONE,
        Op.SHUTDOWN: Act.SHUT,
        Op.RW: Act.LATE,
        Op.CREDIT_UPDATE: Act.CREDIT,
        Op.CREDIT_REQUEST: Act.TELL,
    },
}
"""What each packet does in each state; a FLUSHING connection is not the guest's any more and gets none."""


class Reason(StrEnum):
    """Why a connection ended; the counters of resets have these names."""

    CLOSED = "closed"
    """Both sides were done."""
    REFUSED = "refused"
    """Nobody took it."""
    TIMED_OUT = "timed_out"
    """The guest did not answer."""
    GUEST_RESET = "guest_reset"
    """The guest's socket was reset, or closed while it was being opened."""
    HOST_RESET = "host_reset"
    """The host's side was reset, or closed with data of the guest unread."""
    PROTOCOL = "protocol"
    """The guest sent what makes no sense."""
    CREDIT = "credit"
    """The guest sent more than it had credit for, or told counters that cannot be."""
    MESSAGE = "message"
    """A SEQPACKET message of the guest is empty, or one for it longer than all its room."""
    REUSED = "reused"
    """The guest began a new connection between the same two ports."""
    CANCELLED = "cancelled"
    """The service was disabled, or its partition removed."""
    PAUSED = "paused"
    """The VM was paused, and the socket did not ask to live on."""
    DEVICE_RESET = "device_reset"
    """The guest was started again, or its driver reset the device."""


class End(Protocol):
    """The host's side of one connection. No method waits, and none raises."""

    def send(self, pieces: list[Any]) -> int:
        """Take bytes in order; the number taken, or BROKEN. SEQPACKET gives one message, taken whole or not."""

    def receive(self, views: list[memoryview]) -> int:
        """Fill `views` in order; the number of bytes, or WOULD_BLOCK, END, BROKEN.

        SEQPACKET gives one message, and BROKEN for one that is longer than `views`.
        """

    def finish(self) -> None:
        """The guest sends no more: after what was sent comes a clean end of stream. It may be said twice."""

    def deafen(self) -> None:
        """The guest receives no more: whoever sends at the other end gets an error."""

    def is_closed(self) -> bool:
        """Whether the other end takes nothing any more."""

    def accept(self) -> None:
        """The guest took the connection that was offered to it."""

    def refuse(self, reason: Reason) -> None:
        """The guest did not take the connection; close() follows."""

    def close(self) -> None:
        """Let go; without finish() before, this is a reset."""


class Connection:
    """A connection and all that is counted of it; made and changed by the muxer.

    Attributes:
        key: guest's port, peer's CID, peer's port: what tells it from the guest's other connections.
        type: STREAM or SEQPACKET.
        state: see the picture.
        end: the host's side; None while OPENING and CLOSING.
        service: what the counters call it.
        survives_pause: whether it lives on while the VM is paused (HVSOCKET_CONNECTED_SUSPEND).
        outgoing, incoming: credit of the two directions.
        guest_shut, host_shut: what the guest said by SHUTDOWN, and what it was told.
        pending: bytes of the guest, in order, that the host's side had no room for; a message each for SEQPACKET.
        message: SEQPACKET: what came of a message whose end is still to come.
        unsent: SEQPACKET: what is left of a message on its way to the guest.
        readable: whether the host's side may have something to read.
        ending: whether a short read says nothing, since its end of stream, or descriptors, may be behind it.
        stalled: whether it has something for the guest, and the guest no room.
        due: packets without payload that wait for the rx queue, a bit each: ``1 << op``.
        asked: whether the guest asked for a CREDIT_UPDATE.
        window: bytes to ask the host's side for at once.
        deadline: when the wait of OFFERED or CLOSING is over, in the muxer's time.
    """

    __slots__ = (
        "asked", "bytes_from_guest", "bytes_to_guest", "deadline", "due", "end", "ending", "guest_port",
        "guest_shut", "host_shut", "incoming", "key", "message", "outgoing", "packets_from_guest",
        "packets_to_guest", "peer_cid", "peer_port", "pending", "readable", "service", "stalled", "stalls",
        "state", "survives_pause", "type", "unsent", "window",
    )  # fmt: skip

    def __init__(self, key: tuple[int, int, int], type_: int, state: State, buffer_bytes: int) -> None:
        self.key = key
        self.guest_port, self.peer_cid, self.peer_port = key
        self.type = type_
        self.state = state
        self.end: End | None = None
        self.service = ""
        self.survives_pause = False
        self.outgoing = Outgoing()
        self.incoming = Incoming(buffer_bytes)
        self.guest_shut = 0
        self.host_shut = 0
        self.pending: deque[bytes] | None = None
        self.message: bytearray | None = None
        self.unsent: memoryview | None = None
        self.readable = False
        self.ending = False
        self.stalled = False
        self.due = 0
        self.asked = False
        self.window = FIRST_WINDOW_BYTES
        self.deadline = 0.0
        self.packets_from_guest = self.packets_to_guest = 0
        self.bytes_from_guest = self.bytes_to_guest = 0
        self.stalls = 0

    def __repr__(self) -> str:
        kind = "stream" if self.type == STREAM else "seqpacket"
        peer = "host" if self.peer_cid == HOST_CID else f"cid {self.peer_cid}"
        return f"<{kind} guest:{self.guest_port} {peer}:{self.peer_port} {self.state.name}>"

    @property
    def guest_is_done(self) -> bool:
        """Whether the guest neither sends nor receives any more."""
        return self.guest_shut == Shutdown.BOTH
