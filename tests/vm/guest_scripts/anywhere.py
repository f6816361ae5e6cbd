"""The service and the client of examples/anywhere in one kernel, over its loopback; prints the client's JSON.

Runs in a guest as root, without a device, beside service.py and client.py.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

CONFIG = """
[profiles.here]
transport = "vsock"
[profiles.here.vms.web01]
cid = 1
"""
"""So that the name that the client is given is this machine."""


def main() -> None:
    """Run both."""
    here = pathlib.Path(__file__).parent
    config = here / "anywhere.toml"
    config.write_text(CONFIG, encoding="utf-8")
    environ = {**os.environ, "HVSOCK_TRANSPORT": "", "HVSOCK_CONFIG": str(config), "HVSOCK_PROFILE": "here"}
    command = [sys.executable, str(here / "service.py"), "loopback"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        service.stdout.readline()
        subprocess.run([sys.executable, str(here / "client.py"), "web01"], env=environ, check=False)
        service.kill()


if __name__ == "__main__":
    main()
