"""What the default guest runs once it is up: ``python -m hvsock.vm.guest``.

It echoes what comes to port :data:`hvsock.constants.GUEST_ECHO_PORT`, for hosts to try. With
``hvsock.demo=1`` on the kernel's command line it also sends data to "HV Socket Demo" on its parent, and
writes to the console in one line of JSON whether they came back as they were.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket as _stdlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from hvsock.addresses import HV_GUID_WILDCARD, ServiceId
from hvsock.constants import GUEST_ECHO_PORT
from hvsock.errors import HvsockError
from hvsock.transport import TRANSPORT_VARIABLE, Transport

if sys.platform != "linux":
    raise ImportError("this is a program for Linux guests")

if TYPE_CHECKING:
    from hvsock.sockets.socket import socket

READY_LINE: Final = "hvsock guest ready"
"""What the console says once the echo listens."""
DEMO_OPTION: Final = "hvsock.demo=1"
DEMO_SERVICE: Final = "HV Socket Demo"
DEMO_BYTES: Final = 64 << 20
"""What the demo sends, and has echoed."""
DEMO_SEED: Final = 2 << 20
"""Bytes of random data that the demo sends again and again: random ones cost a guest more than their way."""
DEMO_CONNECT_SECONDS: Final = 60.0
"""How long the demo waits for its service."""
DEMO_QUIET_SECONDS: Final = 60.0
"""How long the demo waits for its next bytes."""
MAX_AT_ONCE: Final = 512
"""Connections echoed at once, each with a thread; others wait in the backlog."""
BACKLOG: Final = 512
"""Connections that wait to be accepted."""
CHUNK_BYTES: Final = 128 * 1024
"""Taken at once: more than a packet, and half of what the kernel holds for a connection."""
ECHO_THREAD: Final = "hvsock-echo"
"""Name of the threads that echo, as debuggers and tests see it."""
EXHAUSTED_SECONDS: Final = 0.1
"""Pause when the guest has no descriptor or memory left for another connection."""

_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def main() -> None:
    """Echo until killed; see the module."""
    os.environ.setdefault(TRANSPORT_VARIABLE, Transport.VSOCK)
    import hvsock

    with hvsock.socket() as listener:
        listener.bind((HV_GUID_WILDCARD, ServiceId.from_port(GUEST_ECHO_PORT)))
        listener.listen(BACKLOG)
        print(READY_LINE, flush=True)
        with open("/proc/cmdline", encoding="utf-8") as file:
            wanted = DEMO_OPTION in file.read().split()
        if wanted:
            threading.Thread(target=_report_demo, name="hvsock-demo", daemon=True).start()
        serve(listener)


def serve(listener: socket) -> None:
    """Echo every connection to `listener`, :data:`MAX_AT_ONCE` at a time.

    Raises:
        OSError: EBADF, EINVAL: the listener was closed, shut down, or never one.
    """
    places = threading.BoundedSemaphore(MAX_AT_ONCE)

    def work(sock: socket) -> None:
        try:
            with sock, contextlib.suppress(OSError):  # the peer is gone
                echo(sock)
        finally:
            places.release()

    while True:
        places.acquire()
        try:
            sock, _ = listener.accept()
        except OSError as error:
            places.release()
            if error.errno not in _EXHAUSTED:
                raise
            print(f"hvsock guest: {error}", file=sys.stderr, flush=True)
            time.sleep(EXHAUSTED_SECONDS)
            continue
        threading.Thread(target=work, args=(sock,), name=ECHO_THREAD, daemon=True).start()


def echo(sock: socket) -> None:
    """Send back what comes, up to the end of the stream, and then end the own.

    Raises:
        OSError: the connection was reset, or the peer left before it took everything.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := sock.recv_into(buffer):
        sock.sendall(buffer[:count])
    sock.shutdown(_stdlib.SHUT_WR)


def demo(sock: socket, length: int = DEMO_BYTES) -> dict[str, Any]:
    """Send `length` bytes by `sock`, a connection to an echo, and compare what comes back.

    Returns:
        ``bytes`` received, ``checksums_match``, and ``seconds`` for both ways.

    Raises:
        OSError: the connection was reset, or nothing came for :data:`DEMO_QUIET_SECONDS`.
    """
    sock.settimeout(DEMO_QUIET_SECONDS)
    data = memoryview(os.urandom(min(length, DEMO_SEED)))
    # against mistakes, not against malice; for SHA-256 an emulated guest takes 14 times as long
    sent, received = (hashlib.md5(usedforsecurity=False) for _ in range(2))
    failures: list[OSError] = []

    def send() -> None:
        try:
            left = length
            while left:
                piece = data[: min(left, len(data))]
                sent.update(piece)
                sock.sendall(piece)
                left -= len(piece)
            sock.shutdown(_stdlib.SHUT_WR)
        except OSError as error:
            failures.append(error)

    started = time.monotonic()
    sender = threading.Thread(target=send, name="hvsock-demo-send", daemon=True)
    sender.start()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    count = 0
    while taken := sock.recv_into(buffer):
        received.update(buffer[:taken])
        count += taken
    sender.join()
    seconds = time.monotonic() - started
    if failures:
        raise failures[0]
    match = count == length and sent.digest() == received.digest()
    return {"bytes": count, "checksums_match": match, "seconds": round(seconds, 3)}


def _report_demo() -> None:
    import hvsock

    try:
        target = ("parent", DEMO_SERVICE)
        with hvsock.create_connection(target, DEMO_CONNECT_SECONDS, retry=True) as sock:
            result = demo(sock)
    except (OSError, HvsockError) as error:
        result = {"bytes": 0, "checksums_match": False, "error": str(error)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
