"""A service that runs in a VM, whatever carries its connections there: see client.py.

    python3 service.py parent

It sends each block back that comes in. A block that says "call PORT" makes it connect to that port of its host,
the argument, and send the block there, too.
"""

import struct
import sys
import threading

import hvsock

PORT = "5005"
HEAD = struct.Struct("<I")


def exactly(connection: hvsock.socket, length: int) -> bytes:
    """The next bytes; fewer where the stream ends."""
    data = b""
    while len(data) < length and (more := connection.recv(length - len(data))):
        data += more
    return data


def serve(connection: hvsock.socket) -> None:
    with connection:
        while len(head := exactly(connection, HEAD.size)) == HEAD.size:
            block = exactly(connection, *HEAD.unpack(head))
            if block.startswith(b"call "):
                port = block[5:].decode()
                with hvsock.create_connection((sys.argv[1], port), 30, retry=True) as host:
                    host.sendall(block)
            connection.sendall(head + block)


def main() -> None:
    with hvsock.create_server(("any", PORT)) as server:
        print("listening on", server.getsockname(), flush=True)
        while True:
            connection, peer = server.accept()
            print(peer, "is connected", flush=True)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
