"""Telling systemd what this process does (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

if sys.platform != "linux":
    raise ImportError("systemd is on Linux")


def notify(state: str) -> None:
    """Send `state` to systemd; nothing where it did not start this process."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(errors="replace"), address)
