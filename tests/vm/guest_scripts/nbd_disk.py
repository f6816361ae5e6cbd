"""Runs in a guest: the kernel's NBD client uses a disk that the host serves, until its server is killed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

assert sys.platform == "linux"

import hvsock
from hvsock.errors import HvsockError
from hvsock.nbd import process

DISK = "disk"
"""The service of the NBD server."""
KILLER = "end of the disk"
"""The service that ends that server when it is connected to, and says so."""
STOPPER = "silence of the disk"
"""The service that stops that server for as long as it is connected to, and says so."""
CHECKS = (
    "a socket of the guest is none for the kernel",
    "a file system",
    "the command",
    "a server that is silent",
    "the disk after its end",
    "no server",
)
DEVICE = "/dev/nbd0"
NBD_SET_SOCK = 0xAB00
PATIENCE = 100.0
FILE_BYTES = 3 << 20
PIECE = hashlib.sha256(b"a file system").digest() * 2048


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def attached(seconds: int = 20) -> int:
    """A process that is the disk, whose server may take `seconds`; returns when the disk is there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            assert file.read() == b"there", "the disk did not come"
        return child
    code = 99
    try:
        os.close(reading)

        def ready(_: object) -> None:
            os.write(writing, b"there")
            os.close(writing)

        process.serve(
            hvsock.create_connection(("parent", DISK), PATIENCE, retry=True), DEVICE, ready, seconds=seconds
        )
        code = 0
    except HvsockError as error:
        print(error, file=sys.stderr, flush=True)
        code = 1
    finally:
        os._exit(code)


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def failure(act: Callable[[], object]) -> int | None:
    """The errno with which `act` fails."""
    try:
        act()
    except OSError as error:
        return error.errno
    return None


def contents() -> bytes:
    data = PIECE * (FILE_BYTES // len(PIECE))
    assert len(data) == FILE_BYTES
    return data


def check_a_socket_of_the_guest_is_none_for_the_kernel() -> None:
    with socket.socket(socket.AF_VSOCK) as sock, open(DEVICE, "rb") as device:
        assert failure(lambda: fcntl.ioctl(device, NBD_SET_SOCK, sock.fileno())) == errno.EINVAL


def check_a_file_system() -> None:
    child = attached()
    run("mke2fs", "-F", DEVICE)
    run("mount", "-t", "ext4", DEVICE, "/mnt")
    with open("/mnt/file", "wb") as file:
        file.write(contents())
    run("umount", "/mnt")
    os.kill(child, signal.SIGTERM)
    assert code_of(child) == 0


def check_the_command() -> None:
    """It is read-only if asked, and cannot be attached twice."""
    command = ["hvsock", "nbd", "attach", "--read-only", "parent", DISK, DEVICE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr is not None
            line = child.stderr.readline()
            assert "bytes, read-only (process" in line, line
            with open("/sys/block/nbd0/ro", encoding="ascii") as file:
                assert file.read() == "1\n"
            again = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            assert f"{DEVICE} is in use" in again.stderr, again.stderr
        finally:
            child.terminate()
    assert child.returncode == 0


def check_a_server_that_is_silent() -> None:
    child = attached(1)
    # the kernel may have a question of its own, after which there is no such place any more
    with open(DEVICE, "rb") as device, hvsock.create_connection(("parent", STOPPER), PATIENCE) as sock:
        device.seek(8 << 20)
        assert sock.recv(9) == b"ended"
        assert failure(lambda: device.read(4096)) == errno.EIO
    assert code_of(child) == 1


def check_the_disk_after_its_end() -> None:
    child = attached()
    run("mount", "-t", "ext4", DEVICE, "/mnt")
    with open("/mnt/file", "rb") as file:
        assert file.read() == contents()
    with hvsock.create_connection(("parent", KILLER), PATIENCE) as sock:
        assert sock.recv(9) == b"ended"
    assert code_of(child) == 1

    def write() -> None:
        with open("/mnt/another", "wb") as file:
            file.write(contents())
            os.fsync(file.fileno())

    assert failure(write) in (errno.EIO, errno.EROFS)
    subprocess.run(["umount", "/mnt"], check=False, stderr=subprocess.DEVNULL)
    with open("/proc/mounts", encoding="utf-8") as mounts:
        assert "/mnt" not in mounts.read()


def check_no_server() -> None:
    try:
        with hvsock.create_connection(("parent", DISK), PATIENCE) as connection:
            process.serve(connection, DEVICE, lambda _: None)
    except (HvsockError, OSError):
        return
    raise AssertionError("a disk without a server")


def main() -> None:
    run("modprobe", "nbd")
    deadline = time.monotonic() + PATIENCE
    while not os.path.exists(DEVICE) and time.monotonic() < deadline:
        time.sleep(0.02)
    results = {}
    for name in CHECKS:
        print("check", name, flush=True)
        try:
            globals()["check_" + name.replace(" ", "_")]()
            results[name] = "passed"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps({"checks": results}), flush=True)


if __name__ == "__main__":
    main()
