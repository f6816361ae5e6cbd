"""Every transport passes the one suite for byte streams; the table below is what "every" means."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace

import pytest

from hvsock.testing import Features, MakePair, applicable_checks, check_stream, lockstep_pair, memory_pair
from tests.support import sample


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
