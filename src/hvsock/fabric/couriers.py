"""The listener by which one process takes all connections to a partition, or out of it: a device, or a way up.

The broker's couriers come to it, each with a connection whose request is still unread, and its notices.
"""

from __future__ import annotations

import functools
import logging
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvsock.errors import ProtocolError
from hvsock.fabric import client, messages, passing
from hvsock.fabric.door import Door
from hvsock.fabric.messages import DeviceCourier, Notice

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections that wait for the process; the kernel cuts it to net.core.somaxconn."""
MAX_COURIER_DESCRIPTORS: Final = 2
"""With a courier come the connection and the end mark of a device at the other end."""
_ENDED = select.EPOLLIN | select.EPOLLRDHUP


class Couriers:
    """The listener, bound anew.

    Args:
        reactor: watches the descriptors.
        folder: the partition's folder.
        take: gets each courier, its descriptors, one at least, which it owns, and whether there were more of them
            than could be taken.
        heed: gets each notice.

    Raises:
        OSError: the broker refuses the binding; EADDRINUSE: there is such a process already.
    """

    def __init__(
        self,
        reactor: Reactor,
        folder: str,
        take: Callable[[DeviceCourier, list[int], bool], None],
        heed: Callable[[Notice], None],
    ) -> None:
        self._reactor = reactor
        self._take = take
        self._heed = heed
        self._links: set[socket.socket] = set()
        binding = client.bind_device(folder)
        listener = socket.socket(fileno=binding.descriptor)
        try:
            listener.setblocking(False)
            listener.listen(BACKLOG)
            client.listen(folder, binding.listener_id, BACKLOG)
            self._door = Door(reactor, listener, self._admit)
        except BaseException:
            listener.close()
            raise

    def close(self) -> None:
        """Take nothing any more."""
        self._door.close()
        for link in list(self._links):
            self._drop(link)

    def _admit(self, link: socket.socket) -> None:
        self._links.add(link)
        try:
            self._reactor.watch(link.fileno(), _ENDED, functools.partial(self._read, link))
        except OSError:
            self._drop(link)

    def _read(self, link: socket.socket, events: int) -> None:
        """A message, then DONE and the end; the broker needs the message to be taken, and nothing else."""
        try:
            data, descriptors, cut = passing.receive(link, messages.DEVICE_MESSAGE_BYTES, MAX_COURIER_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors, cut = b"", [], False
        if not data or data == messages.DONE:
            _close_all(descriptors)
            self._drop(link)
            return
        try:
            message = messages.parse_device_message(data)
        except ProtocolError as error:
            log.warning("not understood: %s", str(error))
            _close_all(descriptors)
            self._drop(link)
            return
        if isinstance(message, Notice):
            _close_all(descriptors)
            self._heed(message)
        elif descriptors:
            self._take(message, descriptors, cut)
        else:
            log.warning("a connection is lost: too many open files")

    def _drop(self, link: socket.socket) -> None:
        self._links.discard(link)
        self._reactor.forget(link.fileno())
        link.close()


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
