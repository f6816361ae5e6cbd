"""The programs in examples/ run, and talk to each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hvsock.testing.fabric import EmbeddedFabric

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_echo_between_host_and_guest(hvsock_fabric: EmbeddedFabric) -> None:
    """The echo client in a VM gets back what it sent to the echo server of the host."""
    hvsock_fabric.register("Echo")
    guest = hvsock_fabric.create_partition("web01")
    command = [sys.executable, str(EXAMPLES / "echo_server.py"), "Echo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            client = subprocess.run(
                [sys.executable, str(EXAMPLES / "echo_client.py"), "Echo", "hello, wörld"],
                env={**os.environ, "HVSOCK_PARTITION": guest.folder},
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            )
        finally:
            server.terminate()
        assert server.stdout is not None
        assert f"{guest.id} connected" in server.stdout.read()
    assert client.stdout == "hello, wörld\n"
