"""A virtual machine's client of the echo service, as written for CPython's AF_HYPERV on Windows."""

import errno
import select
import sys

import hvsock as socket


def main() -> int:
    service_id, text = sys.argv[1:]
    client = socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW)
    client.setsockopt(socket.HV_PROTOCOL_RAW, socket.HVSOCKET_CONNECT_TIMEOUT, 5000)
    client.setblocking(False)
    error = client.connect_ex((socket.HV_GUID_PARENT, service_id))
    if error in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        select.select([], [client], [client], 10)
        error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error == errno.ECONNREFUSED:
        print("nobody listens")
        client.close()
        return 1
    assert client.getpeername()[0] == socket.HV_GUID_PARENT
    data, answer = text.encode(), b""
    while len(answer) < len(text):
        readable, writable, _ = select.select([client], [client] if data else [], [], 10)
        if writable:
            try:
                sent = client.send(data)
            except socket.timeout:
                sent = 0
            data = data[sent:]
            if not data:
                client.shutdown(socket.SHUT_WR)
        if readable:
            answer += client.recv(65536)
    print(answer.decode())
    client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
