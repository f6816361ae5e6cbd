"""Gives a connection and a listener to processes that multiprocessing starts in the way that is asked for."""

import multiprocessing
import sys

import hvsock
from hvsock import HV_GUID_LOOPBACK, HV_GUID_ZERO


def shout(sock: hvsock.socket, names: tuple[object, ...]) -> None:
    with sock:
        assert (sock.getsockname(), sock.getpeername(), sock.gettimeout()) == names
        sock.sendall(sock.recv(100).upper())


def serve_one(listener: hvsock.socket, name: object) -> None:
    with listener:
        assert listener.getsockname() == name
        listener.listen(3)
        sock, _ = listener.accept()
        with sock:
            sock.sendall(sock.recv(100).upper())


def main(method: str) -> None:
    context = multiprocessing.get_context(method)
    with hvsock.socket() as listener, hvsock.socket() as connector:
        listener.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))
        listener.listen()
        connector.settimeout(20)
        connector.connect(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.settimeout(12)
        names = (accepted.getsockname(), accepted.getpeername(), 12)
        process = context.Process(target=shout, args=(accepted, names))  # type: ignore[attr-defined]
        process.start()
        accepted.close()
        connector.sendall(b"quiet")
        assert connector.recv(100) == b"QUIET"
        assert connector.recv(100) == b""
        process.join(20)
        assert process.exitcode == 0, process.exitcode

        arguments = (listener, listener.getsockname())
        process = context.Process(target=serve_one, args=arguments)  # type: ignore[attr-defined]
        process.start()
        with hvsock.socket() as second:
            second.settimeout(20)
            second.connect(listener.getsockname())
            second.sendall(b"quiet")
            assert second.recv(100) == b"QUIET"
        process.join(20)
        assert process.exitcode == 0, process.exitcode


if __name__ == "__main__":
    main(sys.argv[1])
