"""Sockets as arguments of multiprocessing.Process where processes are spawned, as for uvicorn's workers.

The standard library shares its own sockets so, class by class; it does not know this one.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hvsock.fabric.marks import EndMark

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

if TYPE_CHECKING:
    from .socket import socket


def reduce(sock: socket) -> tuple[Any, ...]:
    """How pickle makes `sock` anew in a process that is being spawned.

    Raises:
        TypeError: this is another pickling; a socket is no data.
        OSError: EBADF: closed; EINPROGRESS: a connect is pending.
    """
    context = sys.modules.get("multiprocessing.context")
    if context is None or context.get_spawning_popen() is None:
        raise TypeError(f"cannot pickle {type(sock).__name__!r} object")
    from multiprocessing import reduction

    sock._require_settled()
    mark = vars(sock).get("_mark")  # the sockets of the vsock transport have none
    duplicate = None if mark is None else reduction.DupFd(mark.fileno())
    return _rebuild, (reduction.DupFd(sock.fileno()), duplicate, sock._shared(), sock.gettimeout())


def _rebuild(duplicate: Any, mark: Any, shared: dict[str, Any], timeout: float | None) -> socket:
    from .chosen import socket

    sock = socket(fileno=duplicate.detach())
    sock.settimeout(timeout)
    sock._share(shared)
    if mark is not None:
        sock._keep_mark(EndMark(mark.detach()))
    return sock
