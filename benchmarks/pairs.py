"""Connected streams to compare, and the work that is timed on them."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable

import hvsock
from hvsock.testing.fabric import EmbeddedFabric

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

STREAM_BYTES = 384 << 20
"""Bytes of one throughput run: some 0.1 s at the speed of AF_UNIX."""
WRITE_BYTES = 64 << 10
ROUND_TRIPS = 5_000
MESSAGE_BYTES = 64

Pair = tuple[socket.socket, socket.socket]
MakePair = Callable[[], Pair]


def unix_pair() -> Pair:
    """A bare AF_UNIX socketpair."""
    return socket.socketpair()


def tcp_pair() -> Pair:
    """A TCP connection over the loopback interface, without Nagle's delay."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def fabric_pair(fabric: EmbeddedFabric) -> MakePair:
    """Connections from a VM to its host over `fabric`."""
    service = fabric.register("Benchmark")
    guest = fabric.create_partition("bench-vm")
    listener = hvsock.create_server(("children", service.id), partition=fabric.host.folder)

    def make() -> Pair:
        near = hvsock.create_connection(("parent", service.id), partition=guest.folder)
        far, _ = listener.accept()
        return near, far

    return make


def throughput(make_pair: MakePair, size: int = STREAM_BYTES) -> float:
    """Bytes per second of a stream of 64 KiB writes to another process, until the last of `size` bytes is read."""
    near, far = make_pair()
    child = os.fork()
    if child == 0:
        near.close()
        buffer = bytearray(256 << 10)
        while far.recv_into(buffer):
            pass
        far.send(b"!")
        os._exit(0)
    far.close()
    block = b"x" * WRITE_BYTES
    started = time.perf_counter()
    for _ in range(size // WRITE_BYTES):
        near.sendall(block)
    near.shutdown(socket.SHUT_WR)
    near.recv(1)
    elapsed = time.perf_counter() - started
    near.close()
    os.waitpid(child, 0)
    return size / elapsed


def round_trip(make_pair: MakePair) -> float:
    """Seconds of one round trip of 64 bytes with another process."""
    near, far = make_pair()
    child = os.fork()
    if child == 0:
        near.close()
        while data := far.recv(MESSAGE_BYTES):
            far.sendall(data)
        os._exit(0)
    far.close()
    message = b"x" * MESSAGE_BYTES
    for _ in range(200):  # warm-up
        near.sendall(message)
        near.recv(MESSAGE_BYTES)
    started = time.perf_counter()
    for _ in range(ROUND_TRIPS):
        near.sendall(message)
        near.recv(MESSAGE_BYTES)
    elapsed = time.perf_counter() - started
    near.close()
    os.waitpid(child, 0)
    return elapsed / ROUND_TRIPS
