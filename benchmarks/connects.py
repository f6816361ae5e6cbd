"""Connects per second, and what many connections and services cost the broker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import hvsock
from hvsock.fabric import client, paths
from hvsock.registry import Registry

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

CONNECTS = 1_500
"""Connects of each client process in one run."""
CLIENTS = 4
"""Client processes at once."""


@dataclass(frozen=True)
class BrokerProcess:
    """A broker of its own process.

    Attributes:
        folder: the fabric's folder.
        pid: its process.
    """

    folder: str
    pid: int

    @property
    def host(self) -> str:
        """The host's folder."""
        return paths.host_folder(self.folder)

    def resident_bytes(self) -> int:
        """Memory of the broker that is in use, its mapped files too (resident set size)."""
        with open(f"/proc/{self.pid}/smaps_rollup", encoding="ascii") as rollup:
            return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Rss:"))


@contextlib.contextmanager
def broker_process() -> Iterator[BrokerProcess]:
    """`hvsock up` in a temporary folder, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="hvsock-bench-") as folder:
        command = [sys.executable, "-m", "hvsock", "up"]
        environ = {**os.environ, paths.FOLDER_VARIABLE: folder}
        with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 20
            while True:
                try:
                    client.call(paths.host_folder(folder), "ping")
                    break
                except hvsock.NoFabricError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise
                    time.sleep(0.02)
            try:
                yield BrokerProcess(folder, process.pid)
            finally:
                process.terminate()


def _close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@contextlib.contextmanager
def child(run: Callable[[int], None]) -> Iterator[None]:
    """Run `run(ready)` in a forked child until the end of the block; it writes to `ready` when it serves."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            run(writing)
        finally:
            os._exit(0)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _rate(connect: Callable[[], socket.socket]) -> float:
    """Connects per second of CLIENTS processes that each connect, read the end of the stream, and close."""
    started = time.perf_counter()
    children = []
    for _ in range(CLIENTS):
        pid = os.fork()
        if pid == 0:
            failed = 1
            try:
                for _ in range(CONNECTS):
                    with connect() as sock:
                        sock.recv(1)
                failed = 0
            finally:
                os._exit(failed)
        children.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in children):
        raise RuntimeError("a client failed")
    return CLIENTS * CONNECTS / (time.perf_counter() - started)


def unix_rate() -> float:
    """Connects per second to an asyncio AF_UNIX server."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "server")

        async def serve(ready: int) -> None:
            server = await asyncio.start_unix_server(_close_at_once, path, backlog=128)
            os.write(ready, b"!")
            await server.serve_forever()

        def connect() -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            return sock

        with child(lambda ready: asyncio.run(serve(ready))):
            return _rate(connect)


def fabric_rate(broker: BrokerProcess, guest: str, service_id: str) -> float:
    """Connects per second from a VM to an asyncio server of its host over the fabric."""

    async def serve(ready: int) -> None:
        address = ("children", service_id)
        server = await hvsock.start_server(_close_at_once, address, partition=broker.host)
        os.write(ready, b"!")
        await server.serve_forever()

    target = (str(hvsock.HV_GUID_PARENT), service_id)

    def connect() -> socket.socket:
        sock = hvsock.socket(partition=guest)
        sock.connect(target)
        return sock

    with child(lambda ready: asyncio.run(serve(ready))):
        return _rate(connect)


def fill(broker: BrokerProcess, services: int, partitions: int) -> None:
    """Register services and create partitions, all of them idle."""
    with Registry(os.path.join(broker.folder, "registry")) as registry:
        for number in range(services):
            registry.register(f"Idle service {number:06}")
    for number in range(partitions):
        client.call(broker.host, "partition.create", name=f"idle-{number:06}", kind="vm")


def memory_of_connections(broker: BrokerProcess, guest: str, service_id: str, count: int) -> float:
    """Bytes of the broker for each of `count` connections that are open and idle."""
    before = broker.resident_bytes()
    accepted_reading, accepted_writing = os.pipe()

    def accept(ready: int) -> None:
        listener = hvsock.create_server(("children", service_id), partition=broker.host, backlog=4096)
        os.write(ready, b"!")
        kept = [listener.accept()[0] for _ in range(count)]
        os.write(accepted_writing, b"!")
        time.sleep(600)
        del kept

    with child(accept):
        target = (str(hvsock.HV_GUID_PARENT), service_id)
        connections = []
        for _ in range(count):
            sock = hvsock.socket(partition=guest)
            sock.connect(target)
            connections.append(sock)
        os.read(accepted_reading, 1)
        after = broker.resident_bytes()
        for sock in connections:
            sock.close()
    os.close(accepted_reading)
    os.close(accepted_writing)
    return (after - before) / count
