"""What is open: by the kernel's word, over restarts, and from other network namespaces."""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

assert sys.platform == "linux"

import socket

from hypothesis import given
from hypothesis import strategies as st

from hvsock.addresses import ServiceId, VmId
from hvsock.fabric.broker import connections as module
from hvsock.fabric.broker import liveness
from hvsock.fabric.broker.connections import Connections
from hvsock.fabric.broker.counters import Counters
from tests.registry.processes import in_child
from tests.support import sample

HOST, GUEST = VmId.new(), VmId.new()
HERE = liveness.own_namespace()


class Kernel:
    """Stands in for the kernel's list of sockets."""

    def __init__(self) -> None:
        self.live: set[int] = set()
        self.elsewhere: dict[int, list[int]] = {}

    def __call__(self, elsewhere: Mapping[int, Collection[int]]) -> frozenset[int]:
        self.elsewhere = {namespace: list(pids) for namespace, pids in elsewhere.items()}
        return frozenset(self.live)

    def opened(self, connections: Connections, inode: int, row: int = 0) -> None:
        """A connection that was handed over and counted."""
        self.live.add(inode)
        connections.counted(connections.begin(inode, row, (GUEST, HOST), 1, HERE))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "connections")


def test_what_is_open_is_counted_by_row_and_by_partition(path: str, kernel: Kernel) -> None:
    connections = Connections(path, kernel)
    for inode in (1, 2, 3):
        kernel.opened(connections, inode, row=7)
    kernel.live.add(4)
    connections.counted(connections.begin(4, 8, (HOST, HOST), 1, HERE))
    by_row, by_partition = connections.sweep()
    assert by_row == {7: 3, 8: 1}
    assert by_partition == {GUEST: 3, HOST: 4}
    kernel.live -= {1, 4}
    by_row, by_partition = connections.sweep()
    assert by_row == {7: 2}
    assert by_partition == {GUEST: 2, HOST: 2}
    connections.close()
    connections.close()


def test_the_next_broker_goes_on(path: str, kernel: Kernel) -> None:
    connections = Connections(path, kernel)
    for inode in range(1, 11):
        kernel.opened(connections, inode)
    connections.close()
    kernel.live -= {1, 2, 3}
    again = Connections(path, kernel)
    assert again.recovered == []
    assert again.sweep()[0] == {0: 7}
    for inode in range(11, 20):
        kernel.opened(again, inode)
    assert again.sweep()[0] == {0: 16}
    assert again._used == 16
    again.close()


def test_what_a_killed_broker_did_not_count_is_recovered_if_it_was_handed_over(path: str, kernel: Kernel) -> None:
    connections = Connections(path, kernel)
    kernel.opened(connections, 1, row=5)
    kernel.live |= {2}
    connections.begin(2, 6, (GUEST, HOST), 1, HERE)  # killed after the hand-over
    connections.begin(3, 6, (GUEST, HOST), 1, HERE)  # killed before it
    connections.close()
    again = Connections(path, kernel)
    assert again.recovered == [6]
    assert again.sweep()[0] == {5: 1, 6: 1}
    again.close()
    third = Connections(path, kernel)
    assert third.recovered == []
    third.close()


def test_a_record_that_was_cancelled_is_used_again(path: str, kernel: Kernel) -> None:
    connections = Connections(path, kernel)
    kernel.live |= {1, 2}
    record = connections.begin(1, 0, (GUEST, HOST), 1, HERE)
    connections.cancel(record)
    connections.cancel(None)
    assert connections.sweep()[0] == {}
    assert connections.begin(2, 0, (GUEST, HOST), 1, HERE) == record
    connections.close()


def test_ended_ones_make_room_without_a_report(path: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_SWEEP", 8)
    connections = Connections(path, kernel)
    for inode in range(1, 1000):
        kernel.opened(connections, inode)
        kernel.live.discard(inode - 3)
    assert connections._used <= 16
    assert connections.sweep()[0] == {0: 3}
    connections.close()


def test_more_than_can_be_followed_are_left_out(
    path: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 4)
    monkeypatch.setattr(module, "FIRST_SWEEP", 8)
    connections = Connections(path, kernel)
    for inode in range(1, 8):
        kernel.opened(connections, inode)
    assert connections.sweep()[0] == {0: 4}
    assert connections.begin(50, 0, (GUEST, HOST), 1, HERE) is None
    connections.counted(None)
    kernel.live -= {1, 2}
    for inode in range(60, 70):  # the sweep that notices comes after a while
        kernel.opened(connections, inode)
    assert connections.sweep()[0] == {0: 4}
    connections.close()


def _in_a_small_file_system(act: Callable[[str], str]) -> str:
    """What `act` returns in a process with a file system of 300 KiB for it; empty where that is not allowed."""

    def there() -> str:
        libc = ctypes.CDLL(None)
        if libc.unshare(0x20000) != 0:  # CLONE_NEWNS
            return ""
        assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
        assert libc.mount(b"none", b"/mnt", b"tmpfs", 0, b"size=300k") == 0
        return act("/mnt")

    return in_child(there)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: run the tests as root")
def test_a_full_disk_costs_records_and_not_the_broker() -> None:
    def fill(folder: str) -> str:
        counters, kernel = Counters(f"{folder}/counters"), Kernel()
        connections = Connections(f"{folder}/connections", kernel)
        rows = {counters.row_of(ServiceId.from_port(port)) for port in range(50)}
        with open(f"{folder}/fill", "wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        for inode in range(1, 10_000):
            kernel.opened(connections, inode, counters.row_of(ServiceId.from_port(inode)))
        return f"{len(rows)} rows, {connections.sweep()[0].total()} followed"

    found = _in_a_small_file_system(fill)
    if not found:
        pytest.skip("mounts are not allowed here: run the tests with CAP_SYS_ADMIN")
    assert found == "50 rows, 0 followed"


@pytest.mark.parametrize("spoil", ["another boot", "another version", "another size"])
def test_a_file_that_does_not_fit_starts_anew(
    spoil: str, path: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connections = Connections(path, kernel)
    kernel.opened(connections, 1)
    connections.close()
    if spoil == "another boot":
        monkeypatch.setattr(liveness, "boot_id", lambda: bytes(16))
    elif spoil == "another version":
        with open(path, "r+b") as file:
            file.write(b"HVSCON1\0")
    else:
        os.truncate(path, 5000)
    with caplog.at_level(logging.WARNING, logger=module.__name__):
        again = Connections(path, kernel)
    assert "starts anew" in caplog.text
    assert again.sweep()[0] == {}
    kernel.opened(again, 2)
    assert again.sweep()[0] == {0: 1}
    again.close()


def test_the_file_is_sparse(path: str, kernel: Kernel) -> None:
    connections = Connections(path, kernel)
    for inode in range(1, 100):
        kernel.opened(connections, inode)
    assert connections.sweep()[0] == {0: 99}
    connections.close()
    Connections(path, kernel).close()
    assert os.stat(path).st_blocks * 512 < 100_000


acts_on_inodes = st.tuples(st.sampled_from(["open", "end", "restart", "cancel", "look"]), st.integers(0, 30))


@given(st.lists(acts_on_inodes, max_size=60))
def test_it_agrees_with_a_model(acts: list[tuple[str, int]]) -> None:
    kernel = Kernel()
    fresh = itertools.count(1)  # a kernel gives the number of an inode out again after billions of others
    path = f"/proc/self/fd/{os.memfd_create('connections')}"
    connections = Connections(path, kernel)
    try:
        for act, number in acts:
            if act == "open":
                inode = next(fresh)
                kernel.opened(connections, inode, row=inode % 3)
            elif act == "end":
                kernel.live -= {inode for inode in kernel.live if inode % 5 == number % 5}
            elif act == "cancel":
                connections.cancel(connections.begin(next(fresh), 2, (HOST, HOST), 1, HERE))
            elif act == "restart":
                connections.close()
                connections = Connections(path, kernel)
            else:
                by_row, _ = connections.sweep()
                assert by_row == Counter(inode % 3 for inode in kernel.live)
        assert connections.sweep()[1].get(GUEST, 0) == len(kernel.live)
    finally:
        connections.close()
        os.close(int(path.rsplit("/", 1)[1]))


def test_processes_of_other_namespaces_are_asked_latest_first(path: str, kernel: Kernel) -> None:
    connections = Connections(path, kernel)
    for inode, pid, namespace in [(1, 10, HERE), (2, 20, 99), (3, 30, 99), (4, 20, 99), (5, 40, 98)]:
        kernel.live.add(inode)
        connections.begin(inode, 0, (GUEST, HOST), pid, namespace)
    connections.sweep()
    assert kernel.elsewhere == {99: [20, 30], 98: [40]}
    connections.close()


def test_what_a_look_misses_is_looked_for_again(path: str) -> None:
    """The kernel's list leaves sockets out while others come and go."""
    looks: list[set[int]] = [set(), {2, 3}, {1, 4, 3}, {1, 2, 3, 4}, {4}, {1}, {1, 2, 3}, {2, 3, 4}, set()]
    connections = Connections(path, lambda elsewhere: frozenset(looks.pop(0)))
    for inode in (1, 2, 3, 4):
        connections.counted(connections.begin(inode, 0, (GUEST, HOST), 1, HERE))
    assert [connections.sweep()[0][0] for _ in range(4)] == [4, 4, 4, 3]
    assert not looks
    connections.close()


def test_connections_stay_open_while_other_sockets_come_and_go(path: str) -> None:
    """Against the kernel itself."""
    pairs = [socket.socketpair() for _ in range(500)]
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            crowd = [socket.socketpair() for _ in range(10)]
            for one, other in crowd:
                one.close()
                other.close()

    connections = Connections(path)
    for one, _ in pairs:
        connections.counted(connections.begin(os.fstat(one.fileno()).st_ino, 0, (GUEST, HOST), 1, HERE))
    connections.counted(connections.begin(1, 0, (GUEST, HOST), 1, HERE))  # one that has ended
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert {connections.sweep()[0][0] for _ in range(sample(20, 1000))} == {500}
    finally:
        stop.set()
        thread.join()
        connections.close()
        for pair in pairs:
            for sock in pair:
                sock.close()


def test_the_kernels_own_list_has_living_sockets_alone() -> None:
    one, other = socket.socketpair()
    inode = os.fstat(one.fileno()).st_ino
    with other:
        with one:
            assert inode in liveness.live_socket_inodes()
            assert liveness.namespace_of(one) == HERE
        assert inode not in liveness.live_socket_inodes()
    assert HERE != 0


def test_lists_of_other_namespaces_are_read_until_enough_were(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def table(path: str) -> list[int]:
        read.append(path)
        if path == "/proc/7/net/unix":
            raise FileNotFoundError(path)
        return [len(read)]

    monkeypatch.setattr(liveness, "_table", table)
    live = liveness.live_socket_inodes({5: [7, *range(100, 200)], 6: [8]})
    assert len(read) == 1 + 1 + liveness.TABLES_PER_NAMESPACE + 1
    assert live == frozenset(range(1, len(read) + 1)) - {2}


def test_what_waits_to_be_accepted_is_no_end_of_a_record(path: str, tmp_path: Path) -> None:
    """The kernel lists a connection in a backlog with inode zero, which is also what a free record has."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(tmp_path / "listener"))
        listener.listen()
        waiting.connect(str(tmp_path / "listener"))
        assert 0 not in liveness.live_socket_inodes()
        connections = Connections(path)
        with socket.socket(socket.AF_UNIX) as ended:
            inode = os.fstat(ended.fileno()).st_ino
        connections.counted(connections.begin(inode, 0, (GUEST, HOST), 1, HERE))
        connections.sweep()
        assert not connections.sweep()[0]
        connections.close()
