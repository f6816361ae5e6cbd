"""Echo whatever the guests of this host send, for as many of them at once as there are.

hvsock service register Echo
python examples/echo_server.py Echo
"""

from __future__ import annotations

import contextlib
import selectors
import sys

import hvsock


def main(service: str) -> None:
    """Serve `service` (a name, a GUID or a port) to the children of this partition until interrupted."""
    selector = selectors.DefaultSelector()
    listener = hvsock.create_server(("children", service))
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ, data="listener")
    print(f"serving {service} on {listener.getsockname()}", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data == "listener":
                try:
                    connection, peer = listener.accept()
                except BlockingIOError:
                    continue
                print(f"{peer.vm_id} connected", flush=True)
                selector.register(connection, selectors.EVENT_READ)
                continue
            sender = key.fileobj
            assert isinstance(sender, hvsock.socket)
            try:
                data = sender.recv(65536)
                if data:
                    sender.sendall(data)
                    continue
            except ConnectionError:
                pass
            selector.unregister(sender)
            sender.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1])
