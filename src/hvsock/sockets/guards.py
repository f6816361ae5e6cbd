"""Guards: what stands before a socket's methods that move data, for a time, in the object's own dictionary.

recv and send of an established connection are the standard ones, with no Python between. While a connect
is pending they would carry the request's place in the buffer along, or take the broker's refusal for
data, so until it is settled each has a guard. Messages have sizes that the kernel does not check, so
SOCK_SEQPACKET sockets keep a guard before sending. And connections of a VM keep one behind receiving, since an
end of stream that their device did not mark as graceful is a reset (:mod:`hvsock.fabric.marks`).

A guard refers to its socket weakly: a socket that is dropped is closed at once, as any other.
"""

from __future__ import annotations

import errno
import os
import sys
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

if TYPE_CHECKING:
    from .socket import socket

MAX_SEQPACKET_BYTES: Final = 128 * 1024
"""Longest message on a SOCK_SEQPACKET socket; longer ones are EMSGSIZE."""

_NEED_CONNECTION = (
    "recv", "recv_into", "recvmsg", "recvmsg_into", "send", "sendall", "sendmsg", "sendfile",
)  # fmt: skip
_RECEIVE = ("recv", "recv_into", "recvmsg", "recvmsg_into")
_SEND_MESSAGES = ("send", "sendall", "sendmsg", "sendfile")


def guard_connecting(sock: socket) -> None:
    """Until :func:`lift`, the methods of `sock` that move data wait for its connect, or raise its error."""
    me = weakref.ref(sock)
    for name in _NEED_CONNECTION:
        sock.__dict__[name] = partial(_when_connected, me, name)


def guard_messages(sock: socket) -> None:
    """From now on `sock`, of SOCK_SEQPACKET, sends messages of 1 byte to 128 KiB only."""
    me = weakref.ref(sock)
    for name in _SEND_MESSAGES:
        sock.__dict__[name] = partial(_send_message, me, name)


def guard_end(sock: socket) -> None:
    """From now on an end of stream that `sock` reads is ECONNRESET where its end mark is not set."""
    me = weakref.ref(sock)
    for name in _RECEIVE:
        sock.__dict__[name] = partial(_receive, me, name)


def lift_end(sock: socket) -> None:
    """From now on an end of stream is one, in whatever way the connection ended."""
    for name in _RECEIVE:
        sock.__dict__.pop(name, None)


def lift(sock: socket) -> None:
    """Take the guards of :func:`guard_connecting` away."""
    for name in _NEED_CONNECTION:
        sock.__dict__.pop(name, None)


def _alive(me: weakref.ref[socket]) -> socket:
    sock = me()
    if sock is None:  # a method was kept, and its socket was not
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sock


def _when_connected(me: weakref.ref[socket], name: str, /, *args: Any, **keywords: Any) -> Any:
    sock = _alive(me)
    sock._require_connection()
    return getattr(sock, name)(*args, **keywords)


def _receive(me: weakref.ref[socket], name: str, /, *args: Any, **keywords: Any) -> Any:
    sock = _alive(me)
    found = getattr(type(sock), name)(sock, *args, **keywords)
    if not (found[0] if name in ("recvmsg", "recvmsg_into") else found) and sock._ended_ungracefully():
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return found


def _send_message(me: weakref.ref[socket], name: str, data: Any, /, *args: Any, **keywords: Any) -> Any:
    sock = _alive(me)
    if name == "sendfile":
        raise ValueError("only SOCK_STREAM type sockets are supported")
    parts = [data]
    if name == "sendmsg":
        parts = data = list(data)  # it may be an iterator
    length = sum(memoryview(part).nbytes for part in parts)
    if length == 0:
        raise OSError(errno.EINVAL, "a message has at least one byte")
    if length > MAX_SEQPACKET_BYTES:
        raise OSError(errno.EMSGSIZE, f"a message has at most {MAX_SEQPACKET_BYTES} bytes, not {length}")
    return sock._send_message(name, data, *args, **keywords)
