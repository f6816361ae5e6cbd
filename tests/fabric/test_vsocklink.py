"""Calls out of a guest. The guest's device is a connection to the folder of its partition, as on the host."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import hvsock
from hvsock.errors import NoFabricError, NotFoundError
from hvsock.testing.fabric import EmbeddedFabric
from hvsock.transport import TRANSPORT_VARIABLE

assert sys.platform == "linux"
from hvsock.fabric import client, messages, paths, vsocklink
from hvsock.fabric.messages import Reply

NOWHERE = "/nowhere"
"""A guest has no folders, so none is looked at."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | OSError], None]:
    """Makes this process a guest, whose device leads to a folder or fails."""

    def lead(where: str | OSError) -> None:
        def connect(link: socket.socket) -> None:
            if isinstance(where, OSError):
                raise where
            paths.at(where, paths.STREAM_SOCKET, link.connect)

        monkeypatch.setattr(vsocklink, "connect", connect)

    monkeypatch.setenv(TRANSPORT_VARIABLE, "vsock")
    monkeypatch.setattr(socket, "AF_VSOCK", socket.AF_UNIX)  # kernels without AF_VSOCK run this, too
    return lead


def test_a_guest_asks_its_host(device: Callable[[str | OSError], None], hvsock_fabric: EmbeddedFabric) -> None:
    hvsock_fabric.registry.register("aliased", port_alias=5000)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TRANSPORT_VARIABLE)
        web01 = hvsock_fabric.create_partition("web01")
    device(web01.folder)
    found = {one["name"]: one["port_alias"] for one in client.call(NOWHERE, "services")}
    assert found["aliased"] == 5000
    target = hvsock.resolve(("parent", "aliased"), NOWHERE)
    assert target.vm_id == hvsock.HV_GUID_PARENT
    with pytest.raises(NotFoundError):
        hvsock.resolve(("parent", "nobody's"), NOWHERE)
    with pytest.raises(hvsock.RefusedError):
        client.call(NOWHERE, "status")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ECONNRESET, "the host answers no calls of this machine"),
        (errno.ENODEV, "this machine has no AF_VSOCK device"),
        (errno.ETIMEDOUT, "the host did not answer in 30 s"),
    ],
)
def test_a_guest_without_a_host(device: Callable[[str | OSError], None], code: int, text: str) -> None:
    device(OSError(code, os.strerror(code)))
    with pytest.raises(NoFabricError, match=text):
        client.call(NOWHERE, "ping")


def test_a_kernel_without_such_sockets(
    device: Callable[[str | OSError], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "AF_VSOCK", 10_000)
    with pytest.raises(NoFabricError, match="this kernel has no AF_VSOCK: load the module vsock"):
        client.call(NOWHERE, "ping")


def test_a_reply_comes_in_pieces(device: Callable[[str | OSError], None], tmp_path: Path) -> None:
    """As a device may hand it on."""
    device(str(tmp_path))
    reply = Reply(0, b'{"pid": 1}').pack()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / paths.STREAM_SOCKET))
        listener.listen()

        def answer() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(messages.REQUEST_BYTES, socket.MSG_WAITALL)
                for at in range(len(reply)):
                    link.sendall(reply[at : at + 1])
                    os.sched_yield()

        thread = threading.Thread(target=answer)
        thread.start()
        assert client.call(NOWHERE, "ping") == {"pid": 1}
        thread.join()
