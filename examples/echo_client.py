"""Say something to the echo service of the parent, and print the answer.

hvsock run --partition web01 -- python examples/echo_client.py Echo "hello"
"""

from __future__ import annotations

import sys

import hvsock


def main(service: str, text: str) -> None:
    """Send `text` to `service` on the parent, and print what comes back."""
    with hvsock.create_connection(("parent", service), timeout=10, retry=True) as connection:
        connection.sendall(text.encode())
        connection.shutdown(hvsock.SHUT_WR)
        with connection.makefile("r", encoding="utf-8") as answer:
            print(answer.read())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
