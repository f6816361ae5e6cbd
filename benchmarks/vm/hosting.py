"""The host's side as processes of their own: ``python -m benchmarks.vm.hosting``.

``serve`` accepts connections and hands each to the host's program, which is the same for all. ``close`` accepts
and closes; ``connect`` connects again and again and reads the end of the stream. What differs between the ways
to a guest is how to listen and how to connect: a :class:`Way`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import hvsock
from hvsock.addresses import ServiceId

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

BACKLOG: Final = 128
CONNECT_SECONDS: Final = 0.5
"""How long a connect may take; one that takes longer has failed."""


class Way(Protocol):
    """One way between the host and a guest; connections are sockets that can be detached."""

    def listen(self) -> tuple[Callable[[], Any], int]:
        """What accepts connections of the guest, and the port where it is found, if that is the way's choice."""

    def connect(self) -> Any:
        """Connect to the guest."""


class Fabric:
    """The fabric, whose folder is in the environment.

    Args:
        port: the service's AF_VSOCK port.
        guest: the VM's name.
    """

    def __init__(self, port: int, guest: str) -> None:
        self._service = ServiceId.from_port(port)
        self._guest = guest
        self._port = port
        self._address: hvsock.Address | None = None

    def listen(self) -> tuple[Callable[[], Any], int]:
        """See :class:`Way`."""
        listener = hvsock.create_server(("children", self._service), backlog=BACKLOG)
        return lambda: listener.accept()[0], self._port

    def connect(self) -> Any:
        """See :class:`Way`."""
        if self._address is None:  # looked up once, as others have a path or a port
            self._address = hvsock.resolve((self._guest, self._service))
        sock = hvsock.socket()
        try:
            sock.settimeout(CONNECT_SECONDS)
            sock.connect(self._address)
        except BaseException:
            sock.close()
            raise
        return sock


class Hybrid:
    """AF_UNIX in the manner of Firecracker, as vhost-device-vsock does it.

    Args:
        port: the AF_VSOCK port.
        path: the device's path for connects to the guest; others are made of it.
    """

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._path = path

    def listen(self) -> tuple[Callable[[], Any], int]:
        """See :class:`Way`."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self._path}_{self._port}")
        listener.listen(BACKLOG)
        return lambda: listener.accept()[0], self._port

    def connect(self) -> Any:
        """See :class:`Way`."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(CONNECT_SECONDS)
            sock.connect(self._path)
            sock.sendall(f"CONNECT {self._port}\n".encode())
            line = b""
            while not line.endswith(b"\n"):
                byte = sock.recv(1)
                if not byte:
                    raise ConnectionRefusedError("the device refused the connection")
                line += byte
        except BaseException:
            sock.close()
            raise
        return sock


class Tcp:
    """TCP over the host's loopback interface, where QEMU's user-mode network ends.

    Args:
        port: where QEMU forwards connects to the guest.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def listen(self) -> tuple[Callable[[], Any], int]:
        """See :class:`Way`."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)

        def accept() -> socket.socket:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock

        return accept, listener.getsockname()[1]

    def connect(self) -> Any:
        """See :class:`Way`."""
        return socket.create_connection(("127.0.0.1", self._port))


class Serial:
    """A virtio-serial port, which is one connection for good.

    Args:
        path: the socket of QEMU's chardev.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def listen(self) -> tuple[Callable[[], Any], int]:
        """See :class:`Way`."""
        one = [self.connect()]

        def accept() -> socket.socket:
            while not one:
                time.sleep(3600)
            return one.pop()

        return accept, 0

    def connect(self) -> socket.socket:
        """See :class:`Way`."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._path)
        return sock


WAYS: Final[dict[str, Callable[[int, str], Way]]] = {
    "fabric": Fabric,
    "hybrid": Hybrid,
    "tcp": lambda port, where: Tcp(port),
    "serial": lambda port, where: Serial(where),
}
"""By name: how each is made of a port and a word of where."""


def _say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def serve(way: Way, program: str) -> None:
    """Accept connections and hand them to the host's program, for ever."""
    ours, theirs = socket.socketpair()
    with theirs:
        child = subprocess.Popen([program], stdin=theirs.fileno())
    accept, port = way.listen()
    _say(port=port, program=child.pid)
    while True:
        with contextlib.closing(accept()) as sock:
            socket.send_fds(ours, [b"!"], [sock.fileno()])


def close(way: Way) -> None:
    """Accept connections and close them, for ever."""
    accept, port = way.listen()
    _say(port=port)
    while True:
        accept().close()


def connect(way: Way) -> None:
    """Connect as often as each order says, and read the end of each stream; tell how long those took that did."""
    with contextlib.suppress(OSError):  # the first one loads modules
        way.connect().close()
    _say(ready=True)
    for order in sys.stdin:
        taken, failed = 0.0, 0
        for _ in range(int(order)):
            started = time.perf_counter()
            try:
                with way.connect() as sock:
                    sock.settimeout(CONNECT_SECONDS)
                    sock.recv(1)
            except OSError:
                failed += 1
            else:
                taken += time.perf_counter() - started
        _say(seconds=taken, failed=failed)


def main() -> None:
    """Be one of the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["serve", "close", "connect"])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--where", default="")
    parser.add_argument("--program", default="")
    arguments = parser.parse_args()
    way = WAYS[arguments.way](arguments.port, arguments.where)
    if arguments.work == "serve":
        serve(way, arguments.program)
    elif arguments.work == "close":
        close(way)
    else:
        connect(way)


def command(work: str, way: str, *, port: int = 0, where: str = "", program: str = "") -> list[str]:
    """The command of one of these processes."""
    words = ["--port", str(port), "--where", where, "--program", program]
    return [sys.executable, "-m", "benchmarks.vm.hosting", work, way, *words]


if __name__ == "__main__":
    main()
