"""Runs in a container, with nothing of its fabric but the partition's folder: who is the parent?

Prints a line of JSON: what each destination answers, and what else the container sees. Arguments: a service and
a path that only the fabric's host has.
"""

from __future__ import annotations

import json
import os
import socket
import sys

import hvsock
from hvsock.addresses import HV_GUID_PARENT, HV_GUID_SILOHOST, ServiceId, VmId

SECONDS = 60.0
DESTINATIONS = {"parent": (HV_GUID_PARENT, 0), "silohost": (HV_GUID_SILOHOST, 0), "passthru": (HV_GUID_PARENT, 1)}


def ask(vm_id: VmId, service: ServiceId, passthru: int) -> str:
    """What a service says, or why it says nothing."""
    try:
        with hvsock.socket() as sock:
            sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONTAINER_PASSTHRU, passthru)
            sock.settimeout(SECONDS)
            sock.connect((vm_id, service))
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(99), b"")).decode()
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def main(service: str, secret: str) -> None:
    found = {name: ask(vm_id, ServiceId(service), passthru) for name, (vm_id, passthru) in DESTINATIONS.items()}
    with open("/proc/net/dev", encoding="ascii") as file:
        interfaces = [line.split(":")[0].strip() for line in file if ":" in line]
    print(
        json.dumps(
            {
                **found,
                "interfaces": interfaces,
                "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
                "sees the fabric": os.path.exists(secret),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
