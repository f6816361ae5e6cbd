"""A client of service.py, in whatever way its VM is reached: HVSOCK_TRANSPORT or a configuration says that.

    HVSOCK_TRANSPORT=hybrid python3 client.py web01

Every check_ function is run with the VM's name; one line of JSON says how they went.
"""

import asyncio
import json
import os
import select
import struct
import sys
import traceback

import hvsock

SERVICE, NOBODY, CALLS = "5005", "5007", "6006"
SECONDS = 60.0
HEAD = struct.Struct("<I")
BLOCK = os.urandom(16 * 1024)


def exchange(connection: hvsock.socket, block: bytes) -> None:
    """Send a block, and require that it comes back."""
    connection.sendall(HEAD.pack(len(block)) + block)
    stream = connection.makefile("rb")
    assert stream.read(HEAD.size + len(block)) == HEAD.pack(len(block)) + block


def check_a_connection(vm: str) -> None:
    with hvsock.create_connection((vm, SERVICE), SECONDS, retry=True) as connection:
        assert connection.getpeername() == hvsock.resolve((vm, SERVICE))
        for _ in range(8):
            exchange(connection, BLOCK)


def check_an_end(vm: str) -> None:
    with hvsock.create_connection((vm, SERVICE), SECONDS) as connection:
        exchange(connection, b"the last one")
        connection.shutdown(hvsock.SHUT_WR)
        assert connection.recv(1) == b""


def check_waiting_with_select(vm: str) -> None:
    with hvsock.socket() as connection:
        connection.setblocking(False)
        try:
            connection.connect(hvsock.resolve((vm, SERVICE)))
        except BlockingIOError:
            assert select.select([], [connection], [], SECONDS)[1] == [connection]
        assert connection.getsockopt(hvsock.SOL_SOCKET, hvsock.SO_ERROR) == 0
        assert select.select([connection], [], [], 0)[0] == []
        connection.sendall(HEAD.pack(5) + b"hello")
        assert select.select([connection], [], [], SECONDS)[0] == [connection]
        connection.settimeout(SECONDS)
        assert connection.makefile("rb").read(HEAD.size + 5) == HEAD.pack(5) + b"hello"


def check_many_at_once(vm: str) -> None:
    async def ask(number: int) -> None:
        reader, writer = await hvsock.open_connection((vm, SERVICE))
        block = HEAD.pack(4) + HEAD.pack(number)
        writer.write(block)
        assert await reader.readexactly(len(block)) == block
        writer.close()
        await writer.wait_closed()

    async def ask_all() -> None:
        await asyncio.wait_for(asyncio.gather(*(ask(number) for number in range(8))), SECONDS)

    asyncio.run(ask_all())


def check_that_nobody_listens(vm: str) -> None:
    try:
        hvsock.create_connection((vm, NOBODY), SECONDS).close()
    except ConnectionRefusedError:
        return
    raise AssertionError("somebody is there")


def check_a_call_from_the_vm(vm: str) -> None:
    with hvsock.create_server(("any", CALLS)) as server:
        server.settimeout(SECONDS)
        with hvsock.create_connection((vm, SERVICE), SECONDS) as connection:
            block = b"call " + CALLS.encode()
            connection.sendall(HEAD.pack(len(block)) + block)
            called, peer = server.accept()
            with called:
                assert called.getpeername() == peer
                assert peer.vm_id == connection.getpeername().vm_id
                assert called.makefile("rb").read() == block
            assert connection.makefile("rb").read(HEAD.size + len(block)) == HEAD.pack(len(block)) + block


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}


def main() -> None:
    results = {}
    for name, check in CHECKS.items():
        try:
            check(sys.argv[1])
            results[name] = "passed"
        except Exception as error:
            traceback.print_exc()
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps({"checks": results}), flush=True)


if __name__ == "__main__":
    main()
