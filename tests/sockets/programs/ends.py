"""Gives a connection of a VM, once marked as graceful and once not, to a process that multiprocessing starts."""

import errno
import multiprocessing
import socket
import sys

import hvsock
from tests.fabric.fake_device import FakeDevice


def read(sock: hvsock.socket, graceful: bool) -> None:
    with sock:
        sock.settimeout(20)
        assert sock.recv(100) == b"data"
        try:
            assert sock.recv(100) == b""
            assert graceful
        except ConnectionResetError:
            assert not graceful


def main(method: str, folder: str, vm_id: str, service_id: str) -> None:
    context = multiprocessing.get_context(method)
    for graceful in (True, False):
        with FakeDevice(folder) as device, hvsock.socket() as sock:
            sock.setblocking(False)
            assert sock.connect_ex((vm_id, service_id)) == errno.EINPROGRESS
            with device.take_end() as far:
                far.establish()
                sock.settimeout(20)
                sock.send(b"!")
                process = context.Process(target=read, args=(sock, graceful))  # type: ignore[attr-defined]
                process.start()
                sock.close()
                far.sock.sendall(b"data")
                assert far.sock.recv(1) == b"!"
                if graceful:
                    far.mark.set()
                far.sock.shutdown(socket.SHUT_RDWR)  # the other process may have a copy of this end
                process.join(20)
                assert process.exitcode == 0, process.exitcode


if __name__ == "__main__":
    main(*sys.argv[1:])
