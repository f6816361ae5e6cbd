"""Traffic whose every byte is known to both ends; the guest's side and the host's are the same code."""

from __future__ import annotations

import contextlib
import functools
import random
import selectors
import socket as stdlib
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

assert sys.platform == "linux"

import hvsock

WAIT_SECONDS = 45.0
"""Longest time in which something has to move; an emulated guest on a busy machine is slow."""
RECEIVE_BYTES = 256 * 1024
CHURN_PATIENCE_SECONDS = 3.0
"""How long to try a connect of which it does not matter whether it succeeds."""
BEFORE_NUMBER = "before its number: "
"""Begins what went wrong over a connection that nothing had come over."""
NUMBER = struct.Struct("<I")
"""Which connection this is: who connects says so first."""
PERIOD_BYTES = (1 << 21) + 7
"""Length of the random data of which each connection sends another part."""
STEP_BYTES = 10_007
MAX_BYTES = 4 << 20
"""Most bytes of one connection."""
CHURN_BYTES = 300_000
"""Most bytes of a connection of those that come and go."""

Target = tuple[str, str]
"""What a connect of hvsock takes: VM and service."""


@functools.cache
def _random() -> memoryview:
    data = random.Random(PERIOD_BYTES).randbytes(PERIOD_BYTES)
    return memoryview(data + data[:MAX_BYTES])


def payload(number: int, size: int, *, answer: bool = False) -> memoryview:
    """What who connects sends over connection `number`, or what the other side answers; no copy is made."""
    assert size <= MAX_BYTES, f"{size} bytes are too many"
    start = (2 * number + answer) * STEP_BYTES % PERIOD_BYTES
    return _random()[start : start + size]


class Talk:
    """One connection: sends what is to be sent and the end of the stream, and takes what comes up to its end.

    Args:
        sock: the connection; it is closed when the talk is over.
        out: what to send.
        due: what has to come, and nothing else.
        write_bytes: most bytes of one send.
    """

    def __init__(self, sock: hvsock.socket, out: memoryview, due: memoryview, write_bytes: int) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.failure = ""
        self._out = out
        self._due = due
        self._write_bytes = write_bytes
        self._sent = self._received = 0
        self._sending = True

    @property
    def events(self) -> int:
        """What to wait for; 0 when the talk is over."""
        if self.sock.fileno() < 0:
            return 0
        return selectors.EVENT_READ | selectors.EVENT_WRITE if self._sending else selectors.EVENT_READ

    def move(self, events: int) -> None:
        """Send, receive, or both."""
        try:
            if events & selectors.EVENT_WRITE:
                self._send()
            if events & selectors.EVENT_READ:
                self._receive()
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(f"{error!r}")

    def end(self, failure: str = "") -> None:
        """The talk is over."""
        if failure:
            self.failure = f"{failure}, after {self._sent} bytes out and {self._received} of {len(self._due)} in"
        self.sock.close()

    def _send(self) -> None:
        if self._sent < len(self._out):
            self._sent += self.sock.send(self._out[self._sent : self._sent + self._write_bytes])
        if self._sent == len(self._out):
            self._sending = False
            self.sock.shutdown(stdlib.SHUT_WR)

    def _receive(self) -> None:
        data = self.sock.recv(RECEIVE_BYTES)
        if data:
            if data != self._due[self._received : self._received + len(data)]:
                self.end(f"other bytes came than were sent, among these {len(data)}")
                return
            self._received += len(data)
        elif self._received < len(self._due):
            self.end("the stream ended early")
        elif not self._sending:
            self.end()


def run(talks: Sequence[Talk]) -> list[str]:
    """Run talks to their ends; what went wrong, one text for each that did."""
    with selectors.DefaultSelector() as selector:
        for talk in talks:
            selector.register(talk.sock, talk.events, talk)
        while selector.get_map():
            ready = selector.select(WAIT_SECONDS)
            if not ready:
                for key in list(selector.get_map().values()):
                    selector.unregister(key.fileobj)
                    key.data.end(f"nothing moved for {WAIT_SECONDS} s")
            for key, events in ready:
                talk = key.data
                before = talk.events
                talk.move(events)
                if not talk.events:
                    selector.unregister(key.fd)
                elif talk.events != before:
                    selector.modify(key.fileobj, talk.events, talk)
    return [talk.failure for talk in talks if talk.failure]


def connect(
    target: Target, number: int, type: int = stdlib.SOCK_STREAM, *, patience: float = WAIT_SECONDS
) -> hvsock.socket:
    """A connection that has said its number; tried again for so many seconds while nobody takes it."""
    sock: hvsock.socket = hvsock.create_connection(target, patience, retry=True, type=type)
    try:
        sock.settimeout(WAIT_SECONDS)
        sock.sendall(NUMBER.pack(number))
    except OSError:
        sock.close()
        raise
    return sock


def accept(listener: hvsock.socket) -> tuple[int, hvsock.socket]:
    """The next connection, and its number."""
    sock, _ = listener.accept()
    sock.settimeout(WAIT_SECONDS)
    return read_number(sock), sock


def read_number(sock: hvsock.socket) -> int:
    """The number that a connection begins with.

    Raises:
        EOFError: it ended before.
    """
    data = b""
    while len(data) < NUMBER.size:
        more = sock.recv(NUMBER.size - len(data))
        if not more:
            raise EOFError("a connection ended before it said its number")
        data += more
    number: int = NUMBER.unpack(data)[0]
    return number


def connect_many(target: Target, count: int, size: int, write_bytes: int) -> list[str]:
    """`count` connections at once, each of which exchanges `size` bytes either way; what went wrong."""
    socks = [connect(target, number) for number in range(count)]
    return run(
        [Talk(sock, payload(n, size), payload(n, size, answer=True), write_bytes) for n, sock in enumerate(socks)]
    )


def accept_many(listener: hvsock.socket, count: int, size: int, write_bytes: int) -> list[str]:
    """The other side of :func:`connect_many`."""
    accepted = [accept(listener) for _ in range(count)]
    return run([Talk(sock, payload(n, size, answer=True), payload(n, size), write_bytes) for n, sock in accepted])


SIZES = [
    *((2_000, 1), (30_000, 64), (1 << 20, 4096), (2 << 20, 64 * 1024), (MAX_BYTES, 1 << 20)),
    *((size, size) for size in (1, 43, 44, 45, 4051, 4052, 4053, 4095, 4096, 4097, 65_535, 65_536, 65_537)),
    *((size, size) for size in (262_143, 262_144, 262_145, 524_289)),
]
"""Bytes of a connection and of one write: writes small and large, and sizes about those of headers, buffers of a
guest, packets, and the room of a connection."""


def connect_sizes(target: Target) -> list[str]:
    """A connection for each of SIZES, all at once; what went wrong."""
    return run([_sized(connect(target, number), number, answer=False) for number in range(len(SIZES))])


def accept_sizes(listener: hvsock.socket) -> list[str]:
    """The other side of :func:`connect_sizes`."""
    accepted = [accept(listener) for _ in SIZES]
    return run([_sized(sock, number, answer=True) for number, sock in accepted])


def _sized(sock: hvsock.socket, number: int, *, answer: bool) -> Talk:
    size, write_bytes = SIZES[number]
    out, due = payload(number, size, answer=answer), payload(number, size, answer=not answer)
    return Talk(sock, out, due, write_bytes)


def connect_in_a_row(target: Target, count: int) -> list[str]:
    """`count` connections one after another, each with its number both ways; what went wrong."""
    failures = []
    for number in range(count):
        with connect(target, number) as sock:
            answer = sock.recv(2 * NUMBER.size)
            if answer != NUMBER.pack(number):
                failures.append(f"{answer!r} came over connection {number}")
    return failures


def accept_in_a_row(listener: hvsock.socket, count: int) -> list[str]:
    """The other side of :func:`connect_in_a_row`: each ends when its connector closes."""
    failures = []
    for due in range(count):
        number, sock = accept(listener)
        with sock:
            sock.sendall(NUMBER.pack(number))
            rest = sock.recv(1)
            if number != due or rest:
                failures.append(f"connection {number} came as number {due}, and {rest!r} over it")
    return failures


def churning(number: int, sock: hvsock.socket, *, accepted: bool) -> Talk:
    """What goes over connection `number` of many that come and go."""
    chance = random.Random(number)
    size, write_bytes = chance.randint(1, CHURN_BYTES), chance.choice((1000, 4096, 65_536, CHURN_BYTES))
    out, due = payload(number, size, answer=accepted), payload(number, size, answer=not accepted)
    return Talk(sock, out, due, write_bytes)


def connect_churn(target: Target, seconds: float, seed: int) -> list[str]:
    """Connections that come and go, some at once; what went wrong, which may be much where there are resets."""
    chance = random.Random(seed)
    deadline = time.monotonic() + seconds
    failures = []
    while time.monotonic() < deadline:
        talks = []
        for _ in range(chance.randint(1, 6)):
            number = chance.randrange(1 << 20)
            try:
                sock = connect(target, number, patience=CHURN_PATIENCE_SECONDS)
                talks.append(churning(number, sock, accepted=False))
            except OSError as error:
                failures.append(f"{error!r}")
        failures += run(talks)
    return failures


def accept_churn(listener: hvsock.socket, seconds: float) -> list[str]:
    """The other side of :func:`connect_churn`."""
    failures: list[str] = []
    deadline = time.monotonic() + seconds
    serve_churn(listener, lambda: time.monotonic() < deadline, lambda _, failure: failures.append(failure))
    return failures


def serve_churn(
    listener: hvsock.socket, goes_on: Callable[[], object], failed: Callable[[float, str], object]
) -> None:
    """Serve connections that come and go, each in a thread.

    Args:
        listener: where they come in.
        goes_on: whether more are to be taken.
        failed: is told when a connection was accepted that went wrong, and how.
    """
    threads = []

    def serve(accepted: hvsock.socket) -> None:
        begun = time.monotonic()
        try:
            number = read_number(accepted)
        except (OSError, EOFError) as error:
            accepted.close()
            failed(begun, f"{BEFORE_NUMBER}{error!r}")
            return
        for text in run([churning(number, accepted, accepted=True)]):
            failed(begun, text)

    listener.settimeout(0.2)
    while goes_on():
        with contextlib.suppress(TimeoutError):
            sock, _ = listener.accept()
            sock.settimeout(WAIT_SECONDS)
            threads.append(threading.Thread(target=serve, args=(sock,), daemon=True))
            threads[-1].start()
    for thread in threads:
        thread.join()


def messages(seed: int, count: int, longest: int) -> Iterator[memoryview]:
    """Messages of sizes about which packets and buffers may stumble, then of random ones."""
    chance = random.Random(seed)
    edges = (1, 2, 63, 64, 4051, 4052, 4053, 4096, 65_535, 65_536, 65_537, 131_071, 131_072)
    sizes = [size for size in edges if size <= longest]
    for number in range(count):
        size = sizes[number] if number < len(sizes) else chance.randint(1, longest)
        yield payload(seed + number, size)


def send_messages(sock: hvsock.socket, seed: int, count: int, longest: int) -> None:
    """Send messages, and the end."""
    for message in messages(seed, count, longest):
        sock.send(message)
    sock.shutdown(stdlib.SHUT_WR)


def receive_messages(sock: hvsock.socket, seed: int, count: int, longest: int) -> list[str]:
    """Take messages up to the end; what went wrong."""
    for number, due in enumerate(messages(seed, count, longest)):
        message = sock.recv(2 * longest)
        if message != due:
            return [f"message {number} has {len(message)} bytes, not the {len(due)} that were sent, or others"]
    rest = sock.recv(2 * longest)
    return [f"{len(rest)} bytes came where the end was due"] if rest else []


def connect_for_messages(target: Target, count: int, longest: int) -> list[str]:
    """Send messages, the end, and take as many; what went wrong."""
    with connect(target, 0, stdlib.SOCK_SEQPACKET) as sock:
        send_messages(sock, 1, count, longest)
        return receive_messages(sock, 2, count, longest)


def accept_for_messages(listener: hvsock.socket, count: int, longest: int) -> list[str]:
    """The other side of :func:`connect_for_messages`, which takes them first."""
    with listener.accept()[0] as sock:
        sock.settimeout(WAIT_SECONDS)
        if sock.recv(NUMBER.size + 1) != NUMBER.pack(0):
            return ["the first message is another one"]
        failures = receive_messages(sock, 1, count, longest)
        send_messages(sock, 2, count, longest)
        return failures


def listen(vm: str, port: int, type: int = stdlib.SOCK_STREAM) -> hvsock.socket:
    """A listener with a time-out."""
    made: hvsock.socket = hvsock.create_server((vm, str(port)), backlog=256, type=type)
    made.settimeout(WAIT_SECONDS)
    return made
