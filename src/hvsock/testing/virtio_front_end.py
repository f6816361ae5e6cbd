"""QEMU's side of vhost-user, to drive a device process without QEMU.

:class:`FrontEnd` sends over a connected socket what QEMU 7.2 sends to a vsock back end, in the same order,
for the queues of a :class:`~hvsock.testing.virtio_driver.Driver`.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from hvsock.errors import ProtocolError
from hvsock.virtio import vhost_user
from hvsock.virtio.session import RX, TX
from hvsock.virtio.vhost_user import Feature, Flag, Message, ProtocolFeature, Request

from .virtio_driver import Driver

if sys.platform != "linux":
    raise ImportError("vhost-user hands descriptors over by SCM_RIGHTS, and kicks by eventfd: that takes Linux")

CONFIG_BYTES: Final = 8
"""Size of a vsock device's config space: the guest's CID."""
STATUS_STARTED: Final = 8
"""What QEMU 7.2 sets as status at a start (FEATURES_OK)."""
QUEUES: Final = (RX, TX)


class FrontEnd:
    """A front end with one guest, which is a driver in this process.

    Attributes:
        features: what the back end offers, then what was negotiated.
        protocol_features: what was negotiated with the back end.
        config: the device's config space, as read at :meth:`realize`.
        bases: index of the first available chain that the device is to take, of each queue.
    """

    def __init__(
        self,
        connection: socket.socket,
        driver: Driver,
        *,
        features: int = ~0,
        protocol_features: int = ~0,
        seconds: float = 10.0,
    ) -> None:
        """A front end that has sent nothing yet.

        Args:
            connection: a connected AF_UNIX stream socket, which the caller closes.
            driver: the guest; its memory is shared.
            features: what the guest would like to have; without EVENT_IDX where its driver does not use it.
            protocol_features: what the front end would like to have.
            seconds: how long to wait for a reply.
        """
        connection.settimeout(seconds)
        self._connection = connection
        self._driver = driver
        self._wanted = features if driver.event_idx else features & ~int(Feature.EVENT_IDX)
        self._protocol_wanted = protocol_features
        self.features = 0
        self.protocol_features = 0
        self.config = b""
        self.bases = [0, 0]
        self._stack = ExitStack()
        self._kicks, self._calls, self._errs = ([self._eventfd() for _ in QUEUES] for _ in range(3))

    def close(self) -> None:
        """Closes the eventfds."""
        self._stack.close()

    def realize(self) -> None:
        """What QEMU sends when the device is made.

        Raises:
            ProtocolError: the back end lacks what QEMU requires, or replied with something else; its doing.
        """
        self.features = self._get(Request.GET_FEATURES)
        required = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
        if self._driver.event_idx:
            required |= Feature.EVENT_IDX
        if required & ~self.features:
            raise ProtocolError(f"the back end offers features {self.features:#x} and not all of {required:#x}")
        self.protocol_features = self._get(Request.GET_PROTOCOL_FEATURES) & self._protocol_wanted
        self._set(Request.SET_PROTOCOL_FEATURES, self.protocol_features)
        if not self.protocol_features & ProtocolFeature.CONFIG:
            raise ProtocolError("the back end does not offer CONFIG")
        if self.protocol_features & ProtocolFeature.MQ:
            queues = self._get(Request.GET_QUEUE_NUM)
            if queues < len(QUEUES):
                raise ProtocolError(f"the back end has {queues} queues")
        self.send(Request.SET_OWNER)
        self.features = self._get(Request.GET_FEATURES) & self._wanted
        for queue in QUEUES:
            self._set_descriptor(Request.SET_VRING_CALL, queue, self._calls[queue])
            self._set_descriptor(Request.SET_VRING_ERR, queue, self._errs[queue])
        reply = self.ask(Request.GET_CONFIG, vhost_user.pack_config(0, bytes(CONFIG_BYTES)))
        _, self.config = vhost_user.parse_config(reply)

    def start(self) -> None:
        """What QEMU sends when the guest's driver is ready, and when a paused guest goes on.

        Raises:
            ProtocolError: the back end refused the memory; its doing.
        """
        self._set_calls()
        self._set(Request.SET_FEATURES, self.features)
        if self.protocol_features & ProtocolFeature.STATUS:
            self._get(Request.GET_STATUS)
            self._set(Request.SET_STATUS, STATUS_STARTED)
        self.set_memory()
        for index, queue in zip(QUEUES, (self._driver.rx, self._driver.tx), strict=True):
            self._set_state(Request.SET_VRING_NUM, index, queue.size)
            self._set_state(Request.SET_VRING_BASE, index, self.bases[index])
            self.send(Request.SET_VRING_ADDR, vhost_user.pack_vring_addresses(index, queue.addresses))
            self._set_descriptor(Request.SET_VRING_KICK, index, self._kicks[index])
        for index in QUEUES:
            self._set_state(Request.SET_VRING_ENABLE, index, 1)
        self._set_calls()

    def set_memory(self) -> None:
        """Sends the memory table; waits for the word that it is mapped, where there is one.

        Raises:
            ProtocolError: the back end refused it; its doing.
        """
        regions = self._driver.regions
        payload = vhost_user.pack_memory_table(regions)
        descriptors = [self._driver.memfd] * len(regions)
        if not self.protocol_features & ProtocolFeature.REPLY_ACK:
            self.send(Request.SET_MEM_TABLE, payload, descriptors)
            return
        reply = self.ask(Request.SET_MEM_TABLE, payload, descriptors, flags=Flag.NEED_REPLY)
        if vhost_user.parse_u64(reply):
            raise ProtocolError("the back end refused the memory")

    def stop(self) -> None:
        """What QEMU sends when the guest is paused, reset or shut down; :attr:`bases` are where it stopped."""
        for queue in QUEUES:
            self._set_state(Request.SET_VRING_ENABLE, queue, 0)
        for queue in QUEUES:
            reply = self.ask(Request.GET_VRING_BASE, vhost_user.pack_vring_state(queue, 0))
            _, self.bases[queue] = vhost_user.parse_vring_state(reply)
        self._set_calls()

    def reboot(self) -> None:
        """A guest that resets its device and starts it anew, from empty queues."""
        self.stop()
        self._driver.reset()
        self.bases = [0, 0]
        self.start()

    def kick(self, queue: int) -> None:
        """Tells the device that there are chains."""
        os.eventfd_write(self._kicks[queue], 1)

    def wait_call(self, queue: int, seconds: float) -> bool:
        """Waits for an interrupt of this queue, and takes it; returns False where none came in time."""
        return _take(self._calls[queue], seconds)

    def wait_err(self, queue: int, seconds: float) -> bool:
        """Waits for the device's word that the queue is broken, and takes it."""
        return _take(self._errs[queue], seconds)

    def send(
        self, request: int, payload: bytes = b"", descriptors: Sequence[int] = (), *, flags: Flag = Flag.NONE
    ) -> None:
        """Sends one message, whether it makes sense or not."""
        message = Message(request, flags, payload).pack()
        sent = socket.send_fds(self._connection, [message], descriptors)
        if sent < len(message):  # even nothing cannot be sent to who has hung up
            self._connection.sendall(message[sent:])

    def ask(
        self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = (), *, flags: Flag = Flag.NONE
    ) -> bytes:
        """Sends one message; returns the payload of the reply to it.

        Raises:
            ProtocolError: what came is no such reply; the back end's doing.
            ConnectionError: the back end ended the session.
            TimeoutError: nothing came in time.
        """
        self.send(request, payload, descriptors, flags=flags)
        header = self._receive(vhost_user.HEADER_BYTES)
        return vhost_user.parse_reply(header + self._receive(int.from_bytes(header[8:], "little")), request)

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._connection.recv(count - len(data))
            if not piece:
                raise ConnectionError("the back end ended the session")
            data += piece
        return data

    def _get(self, request: Request) -> int:
        return vhost_user.parse_u64(self.ask(request))

    def _set(self, request: Request, value: int) -> None:
        self.send(request, vhost_user.pack_u64(value))

    def _set_state(self, request: Request, queue: int, number: int) -> None:
        self.send(request, vhost_user.pack_vring_state(queue, number))

    def _set_descriptor(self, request: Request, queue: int, descriptor: int) -> None:
        self.send(request, vhost_user.pack_vring_descriptor(queue, attached=True), [descriptor])

    def _set_calls(self) -> None:
        for queue in QUEUES:
            self._set_descriptor(Request.SET_VRING_CALL, queue, self._calls[queue])

    def _eventfd(self) -> int:
        descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stack.callback(os.close, descriptor)
        return descriptor


def _take(eventfd: int, seconds: float) -> bool:
    """Waits until the eventfd was signalled, and takes the signal; returns False where it was not in time."""
    poll = select.poll()
    poll.register(eventfd, select.POLLIN)
    if not poll.poll(seconds * 1000):
        return False
    os.eventfd_read(eventfd)
    return True
