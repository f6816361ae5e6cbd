"""File copy against a bare stream: a file from a host to a guest, by the service and by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator

from hvsock.addresses import ServiceId
from hvsock.constants import GUEST_SERVICE_INTERFACE
from hvsock.services.agenthood import Surroundings
from hvsock.services.predefined.filecopy.copying import copy_to
from hvsock.services.predefined.filecopy.frames import Overwrite
from hvsock.services.predefined.filecopy.guest import GuestServiceInterface
from hvsock.services.serving import serve
from hvsock.testing.fabric import EmbeddedFabric

from .pairs import MakePair

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

FILE_BYTES = 256 << 20
"""Bytes of the file that is copied."""
BLOCK_BYTES = 256 << 10


class Copies:
    """A guest in a process of its own that serves file copy, and a file to copy to it.

    Args:
        fabric: where.
        folder: where the files are; in memory, so that no disk is measured.
    """

    def __init__(self, fabric: EmbeddedFabric, folder: str) -> None:
        self._host = fabric.host.folder
        self._guest = fabric.create_partition("bench-copy")
        self._source, self._target = (os.path.join(folder, name) for name in ("source", "target"))
        with open(self._source, "wb") as file:
            for _ in range(FILE_BYTES // BLOCK_BYTES):
                file.write(os.urandom(BLOCK_BYTES))
        fabric.registry.set_enabled(ServiceId.from_port(GUEST_SERVICE_INTERFACE.port), True, self._guest.id)
        self._ready, ready = socket.socketpair()
        self._child = os.fork()
        if self._child == 0:
            self._ready.close()
            asyncio.run(self._serve(ready))
            os._exit(0)
        ready.close()
        self._ready.recv(1)

    async def _serve(self, ready: socket.socket) -> None:
        service = GuestServiceInterface(Surroundings(False, "/"))
        async with serve(service, bind="parent", partition=self._guest.folder):
            ready.send(b"!")
            await asyncio.to_thread(ready.recv, 1)

    def close(self) -> None:
        """End the guest."""
        self._ready.close()
        os.waitpid(self._child, 0)

    def by_service(self) -> float:
        """Bytes per second of a copy by the service: read, checked, written, synced and renamed."""
        self._remove()
        started = time.perf_counter()
        asyncio.run(
            copy_to("bench-copy", self._source, self._target, overwrite=Overwrite.REPLACE, partition=self._host)
        )
        return FILE_BYTES / (time.perf_counter() - started)

    def by_hand(self, make_pair: MakePair) -> float:
        """Bytes per second of the same file over a bare stream, by sendfile and write; nothing is checked."""
        self._remove()
        near, far = make_pair()
        child = os.fork()
        if child == 0:
            near.close()
            buffer = memoryview(bytearray(BLOCK_BYTES))
            with open(self._target, "wb", buffering=0) as file:
                while count := far.recv_into(buffer):
                    file.write(buffer[:count])
            far.send(b"!")
            os._exit(0)
        far.close()
        started = time.perf_counter()
        with open(self._source, "rb") as file:
            near.sendfile(file)
        near.shutdown(socket.SHUT_WR)
        near.recv(1)
        elapsed = time.perf_counter() - started
        near.close()
        os.waitpid(child, 0)
        return FILE_BYTES / elapsed

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._target)


@contextlib.contextmanager
def copies(fabric: EmbeddedFabric) -> Iterator[Copies]:
    """A guest to copy to, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, contextlib.closing(Copies(fabric, folder)) as made:
        yield made
