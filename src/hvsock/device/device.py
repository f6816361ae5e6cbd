"""The device of one VM: everything joined, and the loop that moves packets."""

from __future__ import annotations

import logging
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hvsock.virtio.memory import GuestError
from hvsock.virtio.muxer import DEFAULT_BUFFER_BYTES, DEFAULT_CONNECTIONS, Muxer
from hvsock.virtio.packet import F_NO_IMPLIED_STREAM, F_SEQPACKET, F_STREAM
from hvsock.virtio.session import RX, TX
from hvsock.virtio.vhost_user import Feature
from hvsock.virtio.virtqueue import Virtqueue

from .connecting import Connects
from .frontend import FrontEnd
from .offering import Offers
from .reporting import report_of

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor, Timer

log = logging.getLogger(__name__)

FEATURES: Final = (
    Feature.VERSION_1
    | Feature.PROTOCOL_FEATURES
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | F_STREAM
    | F_SEQPACKET
    | F_NO_IMPLIED_STREAM
)
"""What is offered to the guest."""
ROUNDS_PER_TURN: Final = 8
"""How often both queues are gone through before other descriptors are looked at."""
_CONFIG = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a guest may use.

    Attributes:
        connections: most connections at once.
        buffer_bytes: room of each connection for what the guest sent and nobody took yet.
    """

    connections: int = DEFAULT_CONNECTIONS
    buffer_bytes: int = DEFAULT_BUFFER_BYTES


class Device:
    """The device of one VM.

    Args:
        reactor: runs it.
        cid: the guest's CID.
        folder: the VM's partition folder.
        limits: what the guest may use.

    Raises:
        OSError: the broker refuses the device's listener, or there is none.
    """

    def __init__(self, reactor: Reactor, cid: int, folder: str, limits: Limits = Limits()) -> None:
        self.cid = cid
        self._reactor = reactor
        self._limits = limits
        self._connects = Connects(reactor, folder, self._wake)
        self._muxer = Muxer(cid, self._connects, connections=limits.connections, buffer_bytes=limits.buffer_bytes)
        self._connects.muxer = self._muxer
        self._offers = Offers(reactor, self._muxer, folder, self._wake)
        self._front_end: FrontEnd | None = None
        self._on_left: Callable[[], None] | None = None
        self._queues: tuple[Virtqueue, Virtqueue] | None = None
        self._turn_is_due = False
        self._deadline: tuple[float, Timer] | None = None

    def serve(self, sock: socket.socket, on_left: Callable[[], None] | None = None) -> None:
        """Serve the front end at the other end of `sock`, which is the device's now; one at a time.

        `on_left` is called when that front end is gone.
        """
        if self._front_end is not None:
            log.warning("a second front end is turned away: the device serves one VM")
            sock.close()
            return
        sock.setblocking(False)
        self._on_left = on_left
        self._front_end = FrontEnd(self._reactor, self, sock, FEATURES, _CONFIG.pack(self.cid))

    def close(self) -> None:
        """End all that there is; connections end as a reset."""
        if self._front_end is not None:
            self._front_end.close()
        self._offers.close()
        self._muxer.close()
        self._connects.close()
        self._turn_is_due = False
        if self._deadline is not None:
            self._deadline[1].cancel()

    def report(self) -> dict[str, Any]:
        """The state of the guest's driver, its limits, and what :func:`~.reporting.report_of` says."""
        state = "running" if self._muxer.attached else "paused" if self._offers.asleep else "down"
        limits = {"connections": self._limits.connections, "buffer_bytes": self._limits.buffer_bytes}
        return {"cid": self.cid, "driver": state, "limits": limits, **report_of(self._muxer)}

    # -- what the front end tells

    def started(self, rx: Virtqueue, tx: Virtqueue) -> None:
        """See :class:`~.frontend.Guest`."""
        self._queues = rx, tx
        self._offers.asleep = False
        self._muxer.attach(rx, tx)
        self._wake()

    def stopped(self) -> None:
        """See :class:`~.frontend.Guest`."""
        self._publish()
        self._muxer.detach()
        self._queues = None

    def paused(self) -> None:
        """See :class:`~.frontend.Guest`."""
        self._offers.asleep = True
        self._muxer.pause()

    def was_reset(self) -> None:
        """See :class:`~.frontend.Guest`."""
        self._muxer.reset()

    def kicked(self) -> None:
        """See :class:`~.frontend.Guest`."""
        self._turn()

    def left(self) -> None:
        """See :class:`~.frontend.Guest`."""
        self._front_end = None
        self._offers.asleep = False
        self._muxer.reset()
        if self._on_left is not None:
            self._on_left()

    # -- moving packets

    def _wake(self) -> None:
        """Something changed: have a turn soon."""
        if not self._turn_is_due:
            self._turn_is_due = True
            self._reactor.soon(self._have_turn)

    def _have_turn(self) -> None:
        if self._turn_is_due:
            self._turn()

    def _turn(self) -> None:
        """Move what there is to move, and ask to be told of more."""
        self._turn_is_due = False
        if self._queues is not None:
            try:
                self._move(*self._queues)
            except GuestError as error:
                if self._front_end is not None:
                    self._front_end.broken(error)
                self._muxer.reset()
        self._muxer.tick(self._reactor.clock())
        self._set_deadline()

    def _move(self, rx: Virtqueue, tx: Virtqueue) -> None:
        muxer = self._muxer
        tx.suppress()
        for _ in range(ROUNDS_PER_TURN):
            more = muxer.drain()
            more |= muxer.fill()
            self._publish()
            # a kick is asked for before the last look, so nothing that comes from now on is missed
            if more or (tx.rearm() and muxer.takes_packets):
                continue
            if not muxer.depth:
                rx.suppress()
                return
            if not rx.rearm():
                return
        self._wake()

    def _publish(self) -> None:
        if self._queues is not None and self._front_end is not None:
            for index, queue in zip((RX, TX), self._queues, strict=True):
                if queue.publish():
                    self._front_end.interrupt(index)

    def _set_deadline(self) -> None:
        """Have a turn when the next wait of the muxer is over."""
        due = self._muxer.next_deadline
        if self._deadline is not None:
            if self._deadline[0] == due:
                return
            self._deadline[1].cancel()
            self._deadline = None
        if due is not None:
            self._deadline = due, self._reactor.after(max(0.0, due - self._reactor.clock()), self._expired)

    def _expired(self) -> None:
        self._deadline = None
        self._turn()
