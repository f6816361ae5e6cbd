"""Many connections: at once, in a row, idle, and more than descriptors allow."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import select
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock.device import connecting
from hvsock.device.process import bound_socket
from hvsock.device.reporting import read_report
from hvsock.fabric import door
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.registry import ServiceEntry
from hvsock.virtio.packet import Op
from tests.device.conftest import PORT
from tests.device.devices import DeviceThread, device_process, guest_of
from tests.device.ends import accept, connect, from_guest, from_host, listen
from tests.device.guest import PATIENCE_SECONDS, Guest, GuestSocket
from tests.device.test_lifecycle import works
from tests.support import sample
from tests.waiting import wait_until

AT_ONCE = 200
"""Connections that are there at the same time."""
EACH_BYTES = sample(1 << 18, 1 << 20)
"""What goes each way on each of them."""
IN_A_ROW = sample(300, 20_000)
IDLE = sample(1_000, 8_000)
"""Idle connections; a process has 20,000 descriptors in many places, and this one has both ends of each."""
MOST_BYTES_PER_CONNECTION = 4096
MOST_GROWTH_BYTES = 256 << 10
"""What the allocator may keep after many connections, which would be 1 MiB of them if they were left."""


def test_many_at_once(fabric: EmbeddedFabric, guest: Guest, demo: ServiceEntry, device: DeviceThread) -> None:
    """Each carries its own bytes, both ways, whole."""
    with listen(fabric, demo.id) as listener, contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(AT_ONCE):
            far = guest.connect(PORT)
            pairs.append((stack.enter_context(accept(listener)), far))
        assert device.report()["connections"] == AT_ONCE
        exchange(guest, pairs)
        report = device.report()
        assert report["total"]["bytes_from_guest"] == report["total"]["bytes_to_guest"] == AT_ONCE * EACH_BYTES
        assert report["total"]["ended"] == {}


def exchange(guest: Guest, pairs: list[tuple[hvsock.socket, GuestSocket]]) -> None:
    """Random bytes both ways on all of them at once, pumped by one thread for the host and one for the guest."""
    down = [random.Random(number).randbytes(EACH_BYTES) for number in range(8)]
    up = [random.Random(-1 - number).randbytes(EACH_BYTES) for number in range(8)]
    digests: list[str] = []
    thread = threading.Thread(target=lambda: digests.extend(host_side([near for near, _ in pairs], down)))
    thread.start()
    for number, found in enumerate(guest_side(guest, [far for _, far in pairs], up)):
        assert found == hashlib.sha256(down[number % 8]).hexdigest()
    thread.join()
    assert digests == [hashlib.sha256(up[number % 8]).hexdigest() for number in range(len(pairs))]


def host_side(socks: list[hvsock.socket], data: list[bytes]) -> list[str]:
    """Send and receive on all; the checksums of what came."""
    poll = select.poll()
    numbers = {sock.fileno(): number for number, sock in enumerate(socks)}
    sent, received = [0] * len(socks), [0] * len(socks)
    sums = [hashlib.sha256() for _ in socks]
    for sock in socks:
        sock.setblocking(False)
        poll.register(sock, select.POLLIN | select.POLLOUT)
    while numbers:
        for descriptor, events in poll.poll(PATIENCE_SECONDS * 1000):
            number = numbers[descriptor]
            sock, block = socks[number], data[number % len(data)]
            if events & select.POLLIN:
                piece = sock.recv(1 << 18)
                assert piece, "the stream ended"
                sums[number].update(piece)
                received[number] += len(piece)
            if events & select.POLLOUT:
                sent[number] += sock.send(memoryview(block)[sent[number] : sent[number] + (1 << 16)])
                if sent[number] == EACH_BYTES:
                    poll.modify(sock, select.POLLIN)
            if sent[number] == received[number] == EACH_BYTES:
                poll.unregister(sock)
                del numbers[descriptor]
    return [one.hexdigest() for one in sums]


def guest_side(guest: Guest, socks: list[GuestSocket], data: list[bytes]) -> list[str]:
    """The same in the guest, without waiting for one of them."""
    sent, received = [0] * len(socks), [0] * len(socks)
    sums = [hashlib.sha256() for _ in socks]
    busy = set(range(len(socks)))
    while busy:
        moved = False
        for number in list(busy):
            sock, block = socks[number], data[number % len(data)]
            if sent[number] < EACH_BYTES:
                count = sock.send_some(memoryview(block)[sent[number] :])
                sent[number] += count
                moved |= count > 0
            while sock.messages:
                piece = sock.receive()
                sums[number].update(piece)
                received[number] += len(piece)
                moved = True
            if sent[number] == received[number] == EACH_BYTES:
                busy.discard(number)
        if not moved:
            with guest.changed:
                guest.changed.wait(PATIENCE_SECONDS)
    return [one.hexdigest() for one in sums]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("begun_by", ["guest", "host"])
@pytest.mark.soak
def test_many_in_a_row(
    fabric: EmbeddedFabric,
    vm: PartitionHandle,
    guest: Guest,
    demo: ServiceEntry,
    device: DeviceThread,
    begun_by: str,
) -> None:
    """Nothing is left of them, in the guest or in the device."""
    guest.listen(PORT)
    with listen(fabric, demo.id) as listener:
        for number in range(IN_A_ROW):
            if begun_by == "guest":
                far, near = guest.connect(PORT), accept(listener)
            else:
                near = connect(fabric, vm, demo.id)
                far = guest.accept(PORT)
            with near:
                if number % 2:
                    near.sendall(b"short")
                    assert far.receive() == b"short"
                    far.close()
                    assert near.recv(1) == b""
    wait_until(lambda: not device.report()["connections"])
    wait_until(lambda: not guest.sockets)
    assert device.report()["total"]["opened"] == IN_A_ROW
    assert set(device.report()["total"]["ended"]) == {"closed"}


@pytest.mark.timeout(600)
@pytest.mark.soak
def test_idle_connections_take_little_memory(
    fabric: EmbeddedFabric, vm: PartitionHandle, demo: ServiceEntry, tmp_path: object
) -> None:
    """Measured as the device's resident memory, after as many before that have warmed it up."""
    folder = str(tmp_path)
    report = os.path.join(folder, "report")
    warm = IDLE // 10
    with (
        device_process(fabric, folder) as process,
        guest_of(folder) as guest,
        listen(fabric, demo.id) as listener,
        contextlib.ExitStack() as stack,
    ):
        for count in (warm, IDLE):
            before = resident_bytes(process.pid)
            for _ in range(count):
                guest.connect(PORT)
                stack.enter_context(accept(listener))
        assert read_report(report)["connections"] == warm + IDLE
        each = (resident_bytes(process.pid) - before) / IDLE
        print(f"{each:.0f} B for each of {IDLE} idle connections")
        assert each < MOST_BYTES_PER_CONNECTION


@pytest.mark.timeout(600)
@pytest.mark.soak
def test_connections_that_came_and_went_leave_no_memory(
    fabric: EmbeddedFabric, vm: PartitionHandle, demo: ServiceEntry, tmp_path: object
) -> None:
    """Whatever way they ended; so many before that have warmed the device up."""
    folder = str(tmp_path)
    with (
        device_process(fabric, folder) as process,
        guest_of(folder) as guest,
        listen(fabric, demo.id) as listener,
    ):
        for count in (IN_A_ROW // 2, IN_A_ROW):
            before = resident_bytes(process.pid)
            for number in range(count):
                far = guest.connect(PORT)
                with accept(listener) as near:
                    near.sendall(bytes(1000))
                    if number % 3 == 0:
                        far.reset()
                    elif number % 3 == 1:
                        far.close()
                with contextlib.suppress(ConnectionRefusedError):
                    guest.connect(PORT + 1)
        wait_until(lambda: not read_report(os.path.join(folder, "report"))["connections"])
        assert resident_bytes(process.pid) - before < MOST_GROWTH_BYTES


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """This process, with broker and device, may open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, hard))
    hoard = []
    try:
        with contextlib.suppress(OSError):
            while True:
                hoard.append(os.dup(0))
        for _ in range(free):
            os.close(hoard.pop())
        yield
    finally:
        for descriptor in hoard:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("free", range(0, 12, 2))
def test_too_few_descriptors(
    fabric: EmbeddedFabric,
    vm: PartitionHandle,
    guest: Guest,
    demo: ServiceEntry,
    device: DeviceThread,
    free: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Connects are refused, nothing breaks, and all works again afterwards."""
    monkeypatch.setattr(connecting, "HVSOCKET_CONNECT_TIMEOUT_DEFAULT", 200)
    monkeypatch.setattr(connecting, "ANSWER_GRACE_SECONDS", 0.1)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(fabric, demo.id))
        guest.listen(PORT)
        socks = [stack.enter_context(hvsock.socket(partition=fabric.host.folder)) for _ in range(4)]
        with few_descriptors(free):
            pending = [guest.begin_connect(PORT) for _ in range(6)]
            for sock in socks:
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    sock.connect((vm.id, demo.id))
            wait_until(lambda: all(one.connected or one.was_reset for one in pending))
        for one in pending:
            if not one.was_reset:
                accept(listener).close()
                one.close()
        for sock in socks:
            select.select([], [sock], [], PATIENCE_SECONDS)
    wait_until(lambda: not device.report()["connections"])
    for ends in (from_guest(fabric, guest, demo), from_host(fabric, vm, guest, demo)):
        with ends as found:
            works(*found)


def test_a_door_rests_while_descriptors_are_short(
    device: DeviceThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: object
) -> None:
    """It does not turn, and takes who waits when there are some again."""
    path = os.path.join(str(tmp_path), "door")
    taken: list[socket.socket] = []
    made = device.ask(lambda: door.Door(device.reactor, bound_socket(path), taken.append))
    with socket.socket(socket.AF_UNIX) as peer:
        with few_descriptors(0):
            peer.connect(path)
            wait_until(lambda: "peers have to wait" in caplog.text)
            assert not taken
        wait_until(lambda: taken)
        assert caplog.text.count("peers have to wait") == 1, "it says so once"
    device.ask(made.close)
    for one in taken:
        one.close()


def test_a_storm_of_resets(guest: Guest, device: DeviceThread) -> None:
    """Packets that belong to nothing are answered, and nothing is kept of them."""
    with guest.changed:
        for port in range(5_000):
            stray = GuestSocket(guest, (port, 2, PORT), 1)
            stray.post(Op.RW, b"stray")
    wait_until(lambda: not device.report()["queue_depth"])
    assert device.report()["connections"] == 0
