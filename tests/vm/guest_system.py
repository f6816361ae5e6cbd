"""What a default guest has, whichever kernel it runs."""

from __future__ import annotations

import re
from typing import Final

LOOK: Final = """
echo "kernel $(uname -r), $(nproc) processors, host name $(hostname), transport $HVSOCK_TRANSPORT"
echo "modules:" $(lsmod | cut -d' ' -f1)
python3 -c 'import ctypes, hvsock, lzma, rich, sqlite3, ssl; print("python", hvsock.__cached__)'
modprobe virtio_net && modprobe virtio_console && echo "other modules"
"""
"""A script for the guest's shell."""


def is_as_expected(said: str, name: str, series: str, cpus: int) -> None:
    """Require that what :data:`LOOK` printed is what a guest is to have."""
    found = re.search(r"kernel (\S+), (\d) processors, host name (\S+), transport vsock", said)
    assert found is not None
    assert found[1].startswith(f"{series}.")
    assert (found[2], found[3]) == (str(cpus), name)
    assert {"vsock", "vsock_loopback", "vmw_vsock_virtio_transport"} <= set(said.split())
    assert "python /usr/lib/python3/dist-packages/hvsock/__pycache__/" in said
    assert "other modules" in said
