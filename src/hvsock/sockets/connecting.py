"""A connect that is under way: what is known of it, when it is settled, and why it was refused."""

from __future__ import annotations

import errno
import os
import select
import socket as _stdlib
import sys
import threading

from hvsock.addresses import Address
from hvsock.errors import ProtocolError
from hvsock.fabric import messages, passing
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import Established, Reply

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

_PEEK = _stdlib.MSG_PEEK | _stdlib.MSG_DONTWAIT
_LONGEST_REFUSAL_BYTES = messages.REPLY_HEADER_BYTES + messages.MAX_REFUSAL_BYTES


class Pending:
    """A connect that is not settled.

    Attributes:
        lock: held by the thread that settles it.

    Args:
        own, peer: the addresses that the socket has once it is connected.
        send_buffer: what SO_SNDBUF is then.
        deadline: when whoever waits for the broker stops to, in seconds of time.monotonic.
    """

    __slots__ = ("deadline", "lock", "own", "peer", "send_buffer")

    def __init__(self, own: Address, peer: Address, send_buffer: int, deadline: float) -> None:
        self.own = own
        self.peer = peer
        self.send_buffer = send_buffer
        self.deadline = deadline
        self.lock = threading.Lock()


def settled(descriptor: int, seconds: float) -> int | None:
    """The events of a descriptor whose connect is settled, after `seconds` at most; None while it is not."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    for _, events in poll.poll(seconds * 1000):
        return events
    return None


def readable(descriptor: int) -> bool:
    """Whether there is something to receive, or the end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def refusal(sock: _stdlib.socket) -> OSError:
    """Why the broker or a VM's device closed the connection with the request unread; takes it from the socket."""
    # the kernel's own word for it, which a SOCK_SEQPACKET socket would give instead of the message
    _stdlib.socket.getsockopt(sock, _stdlib.SOL_SOCKET, _stdlib.SO_ERROR)
    try:
        data = _stdlib.socket.recv(sock, _LONGEST_REFUSAL_BYTES, _stdlib.MSG_DONTWAIT)
        code, _ = messages.parse_reply_header(data[: messages.REPLY_HEADER_BYTES])
    except (OSError, ProtocolError):
        return OSError(errno.ECONNREFUSED, "the broker or the VM's device ended while the connect was pending")
    return OSError(code, Reply(code, data[messages.REPLY_HEADER_BYTES :]).text)


def end_mark(sock: _stdlib.socket) -> EndMark | None:
    """The end mark that a VM's device put ahead of the payload; takes it off the stream, and nothing else.

    Raises:
        OSError: EMFILE: there is one, and no descriptor for it; ECONNRESET: the connection is over already.
    """
    if not readable(sock.fileno()):  # a socket with a time-out would wait
        return None
    data, descriptors, cut = passing.receive(sock, messages.ESTABLISHED_BYTES, 1, _PEEK)
    try:
        Established.unpack(data)
    except ProtocolError:
        for descriptor in descriptors:  # they are part of the payload, and stay with it
            os.close(descriptor)
        return None
    if cut and not descriptors:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    mark = EndMark.received(descriptors[0]) if descriptors else None
    if mark is not None:
        _stdlib.socket.recv(sock, messages.ESTABLISHED_BYTES, _stdlib.MSG_DONTWAIT)
    return mark
