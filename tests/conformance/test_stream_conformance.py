"""Every transport passes the one suite for byte streams; the tables below are what "every" means."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

import hvsock
from hvsock.testing import Features, MakePair, applicable_checks, check_stream, lockstep_pair, memory_pair
from hvsock.testing.fabric import EmbeddedFabric, fabric
from tests.support import SOAK, sample

assert sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Transport:
    """A row of the table; see :func:`hvsock.testing.check_stream` for what the fields mean."""

    make_pair: MakePair
    features: Features
    make_clogged_pair: MakePair | None = None


def tcp_loopback() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection; small messages go out at once, as everywhere else in the table."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


IN_MEMORY = Features(descriptor=False, peek=False, makefile=False, sendfile=False, vectored=False)

TRANSPORTS = {
    # what everybody's idea of a stream is; the suite has to agree with it
    "socketpair": Transport(socket.socketpair, Features()),
    "tcp": Transport(tcp_loopback, Features(delivers_before_reset=False)),
    # what this library brings
    "memory": Transport(memory_pair, IN_MEMORY, lambda: memory_pair(4_096)),
    "lockstep": Transport(lockstep_pair, replace(IN_MEMORY, buffered=False, resets=False)),
}


class Places:
    """A fabric with a partition of each kind, and connections between them.

    ::

        host +-- web01 (group g) -- inner (a container in the VM)
             +-- web02 (group g)
             +-- box (a container)
    """

    def __init__(self, fabric: EmbeddedFabric) -> None:
        self.service = fabric.register("Conformance")
        self.at = {
            "host": fabric.host,
            "web01": fabric.create_partition("web01", group="g"),
            "web02": fabric.create_partition("web02", group="g"),
            "box": fabric.create_partition("box", "container"),
            "inner": fabric.create_partition("inner", "container", parent="web01"),
        }

    def pair(
        self, source: str, target: str, vm_id: str, *, passthru: bool = False
    ) -> tuple[hvsock.socket, hvsock.socket]:
        """A connection from `source`, which connects to `vm_id`, to a listener in `target`."""
        with hvsock.create_server(("any", self.service.id), partition=self.at[target].folder) as listener:
            near = hvsock.socket(partition=self.at[source].folder)
            try:
                near.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONTAINER_PASSTHRU, int(passthru))
                near.connect((vm_id, self.service.id))
                far, _ = listener.accept()
            except BaseException:
                near.close()
                raise
        return near, far


FABRIC: dict[str, Callable[[Places], tuple[hvsock.socket, hvsock.socket]]] = {
    "vm to host": lambda at: at.pair("web01", "host", hvsock.HV_GUID_PARENT),
    "host to vm": lambda at: at.pair("host", "web01", at.at["web01"].id),
    "host loopback": lambda at: at.pair("host", "host", hvsock.HV_GUID_LOOPBACK),
    "vm loopback": lambda at: at.pair("web01", "web01", hvsock.HV_GUID_LOOPBACK),
    "container to host": lambda at: at.pair("box", "host", hvsock.HV_GUID_SILOHOST),
    "host to container": lambda at: at.pair("host", "box", at.at["box"].id),
    "container to its vm": lambda at: at.pair("inner", "web01", hvsock.HV_GUID_PARENT),
    "container past its vm": lambda at: at.pair("inner", "host", hvsock.HV_GUID_PARENT, passthru=True),
    "host past the vm": lambda at: at.pair("host", "inner", at.at["inner"].id, passthru=True),
    "vm to vm of its group": lambda at: at.pair("web01", "web02", at.at["web02"].id),
    "hvsock.socketpair": lambda at: hvsock.socketpair(),
}
"""Connections between each kind of partitions; to the suite they are all what a socketpair is."""


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    """One fabric for all checks of this module."""
    with fabric() as made:
        yield Places(made)


def _over_the_fabric() -> list[tuple[str, str]]:
    """Connections with checks: all of both in the soak, else every check with two of the connections in turn."""
    connections, pairs = list(FABRIC), []
    for number, check in enumerate(applicable_checks(Features())):
        turn = [connections[(number + step) % len(connections)] for step in (0, len(connections) // 2)]
        pairs += [(connection, check) for connection in (connections if SOAK else turn)]
    return pairs


@pytest.mark.parametrize(("connection", "check"), _over_the_fabric())
def test_fabric_passes(places: Places, connection: str, check: str) -> None:
    """Each kind of connection over the fabric passes each check."""
    for seed in range(sample(1, 5)):
        check_stream(lambda: FABRIC[connection](places), features=Features(), checks=[check], seed=seed)


@pytest.mark.parametrize(
    ("transport", "check"),
    [
        pytest.param(transport, check, id=f"{name}-{check}")
        for name, transport in TRANSPORTS.items()
        for check in applicable_checks(transport.features)
    ],
)
def test_transport_passes(transport: Transport, check: str) -> None:
    for seed in range(sample(1, 25)):
        check_stream(
            transport.make_pair,
            make_clogged_pair=transport.make_clogged_pair,
            features=transport.features,
            checks=[check],
            seed=seed,
        )
