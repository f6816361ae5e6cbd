"""The front end's socket: vhost-user messages in, and what the session says about them, done.

A front end is QEMU, or whoever speaks for a VM in its way. It brings the guest's memory and the eventfds of the
queues, and is trusted no further: what breaks the protocol ends the session, and the device waits for the next.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import socket
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

from hvsock.errors import ProtocolError
from hvsock.fabric import passing
from hvsock.virtio import session as actions
from hvsock.virtio import vhost_user
from hvsock.virtio.memory import GuestError, GuestMemory, Region
from hvsock.virtio.session import RX, TX, Session
from hvsock.virtio.virtqueue import Ring, Virtqueue

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor

log = logging.getLogger(__name__)

MAX_DESCRIPTORS: Final = 32
"""Most descriptors with one message, as many as the protocol has at most; of regions there are 8."""
MESSAGES_PER_TURN: Final = 64
"""Messages handled before the guest's packets have their turn; a start takes some 20."""
MAX_UNREAD_BYTES: Final = 64 << 10
"""Replies that wait for a front end to read them: it asks one thing at a time, so more of them is none."""


class Guest(Protocol):
    """What the front end tells of its guest."""

    def started(self, rx: Virtqueue, tx: Virtqueue) -> None:
        """Both queues run."""

    def stopped(self) -> None:
        """The queues are not to be used any more; what was taken and not given is put back."""

    def paused(self) -> None:
        """The VM is paused, or on its way to a reset or to its end."""

    def was_reset(self) -> None:
        """The guest starts the device anew."""

    def kicked(self) -> None:
        """The guest put something into a queue."""

    def left(self) -> None:
        """The front end is gone."""


class FrontEnd:
    """One session with a front end.

    Args:
        reactor: watches the descriptors.
        guest: is told what happens.
        sock: the front end's socket, non-blocking; closed at the end.
        features: what to offer to the guest.
        config: the device's config space.
    """

    def __init__(self, reactor: Reactor, guest: Guest, sock: socket.socket, features: int, config: bytes) -> None:
        self._reactor = reactor
        self._guest = guest
        self._sock = sock
        self._session = Session(features, config)
        self._memory = GuestMemory([])
        self._queues: dict[int, Virtqueue] = {}
        self._kicks: dict[int, int] = {}
        self._calls: dict[int, int | None] = {}
        self._errors: dict[int, int | None] = {}
        self._running = False
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._outgoing = bytearray()
        self._barrier = threading.Lock()
        reactor.watch(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP, self._ready)

    def interrupt(self, queue: int) -> None:
        """Tell the guest that there is something in a queue."""
        _signal(self._calls.get(queue))

    def broken(self, error: GuestError) -> None:
        """The guest broke the rules: the queues stop until it resets the device."""
        log.warning("the guest's driver is stopped until it resets the device: %s", str(error))
        self._halt()
        for err in self._errors.values():
            _signal(err)

    def close(self) -> None:
        """End the session; calling this twice is fine."""
        if self._sock.fileno() < 0:
            return
        self._halt()
        for kick in self._kicks.values():
            self._reactor.forget(kick)
        self._queues.clear()
        self._memory = GuestMemory([])
        _close_all((*self._session.close(), *self._descriptors))
        self._descriptors.clear()
        self._reactor.forget(self._sock.fileno())
        self._sock.close()
        self._guest.left()

    # -- messages

    def _ready(self, events: int) -> None:
        try:
            if self._outgoing:
                self._flush()
            if not self._receive():
                self.close()
        except (OSError, ProtocolError) as error:
            log.warning("the front end is lost: %s", str(error))
            self.close()

    def _receive(self) -> bool:
        """Read what is there, and handle what is whole; False when the session is over.

        Raises:
            ProtocolError: a header is none.

        Descriptors come with the first byte of their message, and one read ends where others begin, so no
        message is read beyond its end.
        """
        handled = 0
        while handled < MESSAGES_PER_TURN:
            missing = _missing_bytes(self._received)
            if missing:
                try:
                    data, descriptors, _ = passing.receive(self._sock, missing, MAX_DESCRIPTORS)
                except BlockingIOError:
                    return True
                self._descriptors += descriptors
                if not data:
                    return False
                self._received += data
                continue
            message, descriptors = bytes(self._received), self._descriptors
            self._received, self._descriptors = bytearray(), []
            handled += 1
            was_running = self._running
            if not self._perform(self._session.handle(message, descriptors)):
                return False
            if was_running and not self._running:
                self._guest.paused()
        return True

    def _perform(self, todo: list[actions.Action]) -> bool:
        """Do what the session says; False when it is over. Descriptors are closed in any case."""
        goes_on = True
        for action in todo:
            match action:
                case actions.Close(descriptors):
                    _close_all(descriptors)
                case actions.MapMemory(regions):
                    goes_on = goes_on and self._map(regions)
                    _close_all(descriptor for _, descriptor in regions)
                case _ if goes_on:
                    goes_on = self._perform_one(action)
        return goes_on

    def _perform_one(self, action: actions.Action) -> bool:
        match action:
            case actions.Reply(data):
                self._outgoing += data
                self._flush()
                if len(self._outgoing) > MAX_UNREAD_BYTES:
                    log.warning("the front end does not read what it asked for")
                    return False
            case actions.StartQueue():
                return self._start(action)
            case actions.StopQueue(queue):
                self._halt()
                virtqueue = self._queues.pop(queue)
                self._reactor.forget(self._kicks.pop(queue))
                return self._perform(self._session.stopped(queue, virtqueue.next_available))
            case actions.SetCall(queue, call):
                self._calls[queue] = _unblocked(call)
            case actions.Reset():
                self._guest.was_reset()
            case actions.Note(text):
                log.info("%s", text)
            case actions.End(text):
                log.warning("the front end broke the protocol: %s", text)
                return False
        return True

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        del self._outgoing[:sent]
        events = select.EPOLLIN | select.EPOLLRDHUP | (select.EPOLLOUT if self._outgoing else 0)
        self._reactor.watch(self._sock.fileno(), events, self._ready)

    # -- memory and queues

    def _map(self, regions: tuple[tuple[vhost_user.MemoryRegion, int], ...]) -> bool:
        mapped = []
        try:
            for region, descriptor in regions:
                mapped.append(_map_region(region, descriptor))
            self._memory = GuestMemory(mapped)
        except (OSError, ValueError, OverflowError, GuestError) as error:
            log.warning("the guest's memory cannot be mapped: %s", str(error))
            return False
        return True

    def _start(self, start: actions.StartQueue) -> bool:
        try:
            ring = Ring.at(self._memory, start.size, *start.addresses)
        except GuestError as error:
            log.warning("queue %d cannot start: %s", start.queue, error)
            return False
        self._queues[start.queue] = Virtqueue(
            self._memory,
            ring,
            base=start.base,
            event_idx=start.event_idx,
            writable=start.queue == RX,
            fence=self._fence,
        )
        os.set_blocking(start.kick, False)
        self._kicks[start.queue] = start.kick
        self._calls[start.queue] = _unblocked(start.call)
        self._errors[start.queue] = _unblocked(start.err)
        # every kick is told of once, so none has to be read
        self._reactor.watch(start.kick, select.EPOLLIN | select.EPOLLET, self._kicked)
        if RX in self._queues and TX in self._queues and not self._running:
            self._running = True
            self._guest.started(self._queues[RX], self._queues[TX])
        return True

    def _halt(self) -> None:
        if self._running:
            self._running = False
            self._guest.stopped()

    def _kicked(self, events: int) -> None:
        if self._running:
            self._guest.kicked()

    def _fence(self) -> None:
        """A full memory barrier: taking a free lock is an atomic operation that orders what is around it."""
        self._barrier.acquire()
        self._barrier.release()


def _missing_bytes(received: bytearray) -> int:
    """How many bytes the message that begins with `received` still lacks.

    Raises:
        ProtocolError: its header is none.
    """
    if len(received) < vhost_user.HEADER_BYTES:
        return vhost_user.HEADER_BYTES - len(received)
    header = bytes(received[: vhost_user.HEADER_BYTES])
    return vhost_user.HEADER_BYTES + vhost_user.payload_bytes(header) - len(received)


def _unblocked(eventfd: int | None) -> int | None:
    """A descriptor of the front end's that nobody waits for, whatever it is."""
    if eventfd is not None:
        os.set_blocking(eventfd, False)
    return eventfd


def _signal(eventfd: int | None) -> None:
    """Tell the front end, or the guest, if they wait for it; what is no eventfd tells nobody."""
    if eventfd is not None:
        try:  # contextlib.suppress would cost more than all the rest
            os.eventfd_write(eventfd, 1)
        except OSError:
            return


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _map_region(region: vhost_user.MemoryRegion, descriptor: int) -> Region:
    """Map one region; the mapping lives as long as its view."""
    skip = region.mmap_offset % mmap.PAGESIZE
    mapping = mmap.mmap(descriptor, region.size + skip, offset=region.mmap_offset - skip)
    view = memoryview(mapping)[skip:]
    return Region(region.guest_address, region.user_address, region.size, view)
