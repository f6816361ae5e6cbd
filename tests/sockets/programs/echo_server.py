"""An echo service of the host for its virtual machines, as written for CPython's AF_HYPERV on Windows."""

import sys
import threading

import hvsock as socket


def serve(connection: socket.socket, vm_id: str) -> None:
    count = 0
    with connection:
        while True:
            data = connection.recv(65536)
            if not data:
                break
            connection.sendall(data)
            count += len(data)
        connection.shutdown(socket.SHUT_WR)
    print(vm_id, "sent", count, "bytes", flush=True)


def main() -> None:
    server = socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW)
    server.setsockopt(socket.HV_PROTOCOL_RAW, socket.HVSOCKET_CONNECTED_SUSPEND, 1)
    server.bind((socket.HV_GUID_CHILDREN, sys.argv[1]))
    server.listen(5)
    vm_id, service_id = server.getsockname()
    print(f"listening on ('{vm_id}', '{service_id}')", flush=True)
    while True:
        connection, (vm_id, _) = server.accept()
        print(vm_id, "connected", flush=True)
        threading.Thread(target=serve, args=(connection, vm_id), daemon=True).start()


if __name__ == "__main__":
    main()
