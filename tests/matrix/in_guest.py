"""What the matrix runs inside a guest: the suite and the probes over the kernel's loopback, and rates.

Usage: in_guest.py suite | rate fabric | rate loopback | rate up PORT
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import socket as stdlib
import struct
import sys
import time
from typing import Final

import hvsock
from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    SERVICE_WILDCARD,
    ServiceId,
    VmId,
)
from hvsock.testing import Features
from hvsock.testing.fabric import fabric

assert sys.platform == "linux"

from benchmarks.pairs import WRITE_BYTES, fabric_pair, throughput

from .probes import WAIT_SECONDS, Lack, Setting, Way, run_probes
from .streams import run_suite

RATE_BYTES: Final = 32 << 20
"""Bytes of a measurement; an emulated guest takes some seconds for them."""
FEATURES: Final = Features(resets=False, delivers_before_reset=False)
"""Of the kernel's AF_VSOCK: a reset shows as an end of stream."""

OF_THE_HOST: Final = ("connect_parent", "listen_parent")
"""Probes that take a host, and are run from there."""


def make(type: int) -> hvsock.socket:
    """A socket of this guest."""
    return hvsock.socket(type=type)


def own_cid() -> int:
    """The context id of this guest."""
    with open("/dev/vsock", "rb") as device:
        answer = fcntl.ioctl(device, stdlib.IOCTL_VM_SOCKETS_GET_LOCAL_CID, bytes(4))
    return int(struct.unpack("@I", answer)[0])


def loopback_pair() -> tuple[hvsock.socket, hvsock.socket]:
    """A loopback connection."""
    with hvsock.socket() as listener:
        listener.bind((HV_GUID_LOOPBACK, SERVICE_WILDCARD))
        listener.listen()
        near = hvsock.socket()
        near.connect((HV_GUID_LOOPBACK, listener.getsockname()[1]))
        return near, listener.accept()[0]


def setting() -> Setting:
    """The kernel's loopback."""
    own = (HV_GUID_CHILDREN, HV_GUID_LOOPBACK)
    alone = Way(make, make, HV_GUID_LOOPBACK, HV_GUID_LOOPBACK, own, own)
    numbered = VmId.from_cid(own_cid())
    ports = itertools.count(61_500)
    return Setting(
        {
            "connect_loopback": alone,
            "connect_vm_id": Lack(make, "connect", VmId.new(), errno.EHOSTUNREACH),
            "connect_cid": Way(make, make, HV_GUID_WILDCARD, numbered, (numbered,) * 2, own),
            "connect_silohost": Lack(make, "connect", HV_GUID_SILOHOST, errno.EADDRNOTAVAIL),
            "listen_any": Way(make, make, HV_GUID_WILDCARD, HV_GUID_LOOPBACK, own, own),
            "listen_children": Lack(make, "bind", HV_GUID_CHILDREN, errno.EADDRNOTAVAIL),
            "listen_loopback": alone,
            "listen_vm_id": Lack(make, "bind", VmId.new(), errno.EADDRNOTAVAIL),
            "listen_silohost": Lack(make, "bind", HV_GUID_SILOHOST, errno.EADDRNOTAVAIL),
        },
        alone,
        alone,
        lambda: ServiceId.from_port(next(ports)),
        ServiceId.new,
        absent={"service_guid": errno.EADDRNOTAVAIL},
        skipped=dict.fromkeys(OF_THE_HOST, "its host looks at that, and was not asked"),
    )


def rate_up(port: int) -> float:
    """Bytes per second to the host, which says one byte when it has them all."""
    with hvsock.socket() as sock:
        sock.settimeout(WAIT_SECONDS)
        sock.connect((HV_GUID_PARENT, ServiceId.from_port(port)))
        block = b"x" * WRITE_BYTES
        started = time.perf_counter()
        for _ in range(RATE_BYTES // WRITE_BYTES):
            sock.sendall(block)
        assert sock.recv(1) == b"!"
        return RATE_BYTES / (time.perf_counter() - started)


def take(sock: stdlib.socket) -> None:
    """The host's half of :func:`rate_up`."""
    left = RATE_BYTES
    while left:
        data = sock.recv(256 << 10)
        assert data, "the stream ended"
        left -= len(data)
    sock.sendall(b"!")


def main(words: list[str]) -> None:
    """Do what is asked for, and print one line of JSON."""
    if words == ["suite"]:
        found: object = {**run_suite(loopback_pair, FEATURES, wait_seconds=WAIT_SECONDS), **run_probes(setting())}
    elif words == ["rate", "fabric"]:
        with fabric() as made:
            found = throughput(fabric_pair(made), RATE_BYTES)
    elif words == ["rate", "loopback"]:
        found = throughput(loopback_pair, RATE_BYTES)
    else:
        found = rate_up(int(words[2]))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
