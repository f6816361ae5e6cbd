"""The listening sockets of one service, one beside the path of each VMM, as one descriptor: that of an epoll.

It is readable when one of them has a connection, to select, poll, epoll and asyncio alike.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

from hvsock.addresses import ServiceId
from hvsock.config.settings import Vm
from hvsock.hybrid.listening import HostListener, listen
from hvsock.hybrid.profiles import HVSOCK, Profile, profile_named

if sys.platform != "linux":
    raise ImportError("hybrid sockets need Linux, as the VMMs do")

MAX_AT_ONCE: Final = 64
"""Listeners that one look at them finds: others are found by the next."""


def profile_of(vm: Vm) -> Profile:
    """The profile of a VM's VMM."""
    return HVSOCK if vm.vmm is None else profile_named(vm.vmm)


class Doors:
    """Listeners for what VMs connect to on their host.

    Args:
        vms: the VMs, each with a path.
        service: the service.
        backlog: connections that may wait to be accepted, for each VM.

    Raises:
        OSError, StateError, BusyError, UsageError: as :func:`hvsock.hybrid.listening.listen`; there is none then.
    """

    def __init__(self, vms: Iterable[Vm], service: ServiceId, backlog: int) -> None:
        self.is_shut_down = False
        self._by_descriptor: dict[int, tuple[HostListener, Vm]] = {}
        with contextlib.ExitStack() as stack:
            self._epoll = stack.enter_context(contextlib.closing(select.epoll()))
            for vm in vms:
                path = vm.path or ""
                listener = stack.enter_context(listen(path, service, profile=profile_of(vm), backlog=backlog))
                listener.sock.setblocking(False)
                self._epoll.register(listener.fileno(), select.EPOLLIN)
                self._by_descriptor[listener.fileno()] = listener, vm
            self._stack = stack.pop_all()

    def fileno(self) -> int:
        """The descriptor that is readable when there is a connection."""
        return self._epoll.fileno()

    def sockets(self) -> Iterator[socket.socket]:
        """All listening sockets."""
        return (listener.sock for listener, _ in self._by_descriptor.values())

    def accept(self) -> tuple[socket.socket, Vm] | None:
        """A connection, which is the caller's, and the VM that it is of; None where there is none.

        Raises:
            OSError: EMFILE and its like; nothing is lost.
        """
        for descriptor, _ in self._epoll.poll(0, MAX_AT_ONCE):
            listener, vm = self._by_descriptor[descriptor]
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                return listener.accept(), vm
        return None

    def listen(self, backlog: int) -> None:
        """Change how many connections may wait."""
        for sock in self.sockets():
            sock.listen(backlog)

    def shut_down(self) -> None:
        """Accept no more; whoever waits for the descriptor is woken."""
        self.is_shut_down = True
        for sock in self.sockets():
            sock.shutdown(socket.SHUT_RDWR)

    def get_option(self, *arguments: Any) -> Any:
        """getsockopt of one of them."""
        return next(self.sockets()).getsockopt(*arguments)

    def set_option(self, *arguments: Any) -> None:
        """setsockopt of all of them."""
        for sock in self.sockets():
            sock.setsockopt(*arguments)

    def put_under(self, descriptor: int, *, inheritable: bool) -> None:
        """Make `descriptor`, which stays its owner's, the one that is readable."""
        os.dup2(self._epoll.fileno(), descriptor, inheritable=inheritable)

    def close(self) -> None:
        """Listen no more, and remove the files. Calling this twice is fine."""
        self._stack.close()
