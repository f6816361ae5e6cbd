"""2,000 connections at once between 100 partitions, 10,000 in the soak: each echoes, and none is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hvsock
from hvsock.fabric import client
from hvsock.registry import Registry

assert sys.platform == "linux"

from tests.support import sample

from .processes import BrokerProcess, child

CONNECTIONS = sample(1_000, 10_000)
PARTITIONS = 100
SPARE_DESCRIPTORS = 200


def _broker_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))


def _serve(listener: hvsock.socket) -> None:
    """Echo on every connection, forever."""
    selector = selectors.DefaultSelector()
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                with contextlib.suppress(BlockingIOError):
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                continue
            assert isinstance(key.fileobj, hvsock.socket)
            data = key.fileobj.recv(4096)
            if data:
                key.fileobj.sendall(data)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()


@pytest.mark.timeout(180)
def test_thousands_of_connections_at_once(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """All are open at the same time, every one echoes, also after the broker was killed and started again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + SPARE_DESCRIPTORS:
        pytest.skip(f"needs {CONNECTIONS + SPARE_DESCRIPTORS} descriptors for a process: raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    broker = BrokerProcess(str(tmp_path / "fabric"))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        stack.callback(broker.close)
        with Registry(os.path.join(broker.folder, "registry")) as registry:
            service = registry.register("Echo")
        guests = [
            client.call(broker.host, "partition.create", name=f"vm{n:03}", kind="vm")["folder"]
            for n in range(PARTITIONS)
        ]
        with hvsock.create_server(("children", service.id), backlog=1024, partition=broker.host) as listener:
            stack.enter_context(child(lambda: _serve(listener)))
        before = _broker_bytes(broker.pid)
        connections = []
        for number in range(CONNECTIONS):
            sock = stack.enter_context(hvsock.socket(partition=guests[number % PARTITIONS]))
            sock.connect((hvsock.HV_GUID_PARENT, service.id))
            connections.append(sock)
        per_connection = (_broker_bytes(broker.pid) - before) / CONNECTIONS
        _echo(connections)
        status = client.call(broker.host, "status")
        counts = next(one for one in status["services"] if one["id"] == service.id)
        assert (counts["open"], counts["accepted"]) == (CONNECTIONS, CONNECTIONS)
        broker.kill()
        broker.start()
        _echo(connections)
        status = client.call(broker.host, "status")
        counts = next(one for one in status["services"] if one["id"] == service.id)
        assert (counts["open"], counts["accepted"]) == (CONNECTIONS, CONNECTIONS)
    record_property("broker_bytes_per_connection", round(per_connection))
    print(f"{per_connection:.0f} bytes of the broker for each idle connection")


def _echo(connections: list[hvsock.socket]) -> None:
    """Send on all, then receive on all."""
    for number, sock in enumerate(connections):
        sock.settimeout(30)
        sock.sendall(f"connection {number:05}".encode())
    for number, sock in enumerate(connections):
        assert sock.recv(100) == f"connection {number:05}".encode()
