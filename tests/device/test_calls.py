"""A guest calls the broker, through the device: calls alone, and one for each connection."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock import HV_GUID_PARENT, Address, ServiceId
from hvsock.constants import VSOCK_BROKER_PORT
from hvsock.fabric import messages
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.fabric.messages import Op, Request
from hvsock.registry import ServiceEntry
from hvsock.virtio.packet import SEQPACKET, Shutdown
from tests.device.devices import DeviceThread
from tests.device.guest import Guest, GuestSocket
from tests.waiting import wait_until

PING = Request(Op.CALL, call={"method": "ping"}).pack()


def answer(sock: GuestSocket) -> Any:
    """The broker's answer, up to the end."""
    data = b""
    while piece := sock.receive():
        data += piece
    code, length = messages.parse_reply_header(data[: messages.REPLY_HEADER_BYTES])
    assert code == 0
    body = data[messages.REPLY_HEADER_BYTES :]
    assert len(body) == length
    return json.loads(body)


@pytest.mark.parametrize("pieces", [1, 2, 2048])
def test_a_call(guest: Guest, device: DeviceThread, pieces: int) -> None:
    """However it is cut."""
    sock = guest.connect(VSOCK_BROKER_PORT)
    step = len(PING) // pieces
    for at in range(0, len(PING), step):
        sock.send(PING[at : at + step])
    assert answer(sock) == {"pid": os.getpid(), "partition": None}
    wait_until(lambda: not device.report()["connections"])


def test_a_call_by_somebody_who_has_sent_all(guest: Guest, demo: ServiceEntry) -> None:
    sock = guest.connect(VSOCK_BROKER_PORT)
    sock.send(Request(Op.CALL, call={"method": "services"}).pack())
    sock.shutdown(Shutdown.SEND)
    (found,) = (one for one in answer(sock) if one["name"] == "Demo")
    assert found["id"] == demo.id


def test_a_guest_is_told_what_is_enabled_for_it(fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest) -> None:
    def told() -> set[str]:
        sock = guest.connect(VSOCK_BROKER_PORT)
        sock.send(Request(Op.CALL, call={"method": "services"}).pack())
        sock.shutdown(Shutdown.SEND)
        return {one["name"] for one in answer(sock)}

    other = fabric.create_partition("other")
    fabric.registry.set_enabled("Guest Service Interface", True, other.id)
    assert "Guest Service Interface" not in told()
    fabric.registry.set_enabled("Guest Service Interface", True, vm.id)
    fabric.registry.set_enabled("Heartbeat", False, vm.id)
    after = told()
    assert "Guest Service Interface" in after
    assert "Heartbeat" not in after


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(Request(Op.CONNECT, Address(HV_GUID_PARENT, ServiceId.new()), 1).pack(), id="connect"),
        pytest.param(Request(Op.BIND, Address(HV_GUID_PARENT, ServiceId.new()), 1).pack(), id="bind"),
        pytest.param(Request(Op.LISTEN, token=bytes(16)).pack(), id="listen"),
        pytest.param(bytes(messages.REQUEST_BYTES), id="garbage"),
        pytest.param(PING + b"!", id="more"),
    ],
)
def test_what_is_no_call_is_dropped(
    fabric: EmbeddedFabric, guest: Guest, device: DeviceThread, block: bytes
) -> None:
    """By the device; the broker does not even see it."""
    sock = guest.connect(VSOCK_BROKER_PORT)
    sock.send(block)
    sock.wait_for_reset()
    assert not sock.messages or block.startswith(PING)
    assert not device.report()["connections"]
    test_a_call(guest, device, 1)


def test_half_a_call(guest: Guest, device: DeviceThread) -> None:
    sock = guest.connect(VSOCK_BROKER_PORT)
    sock.send(PING[:-1])
    sock.shutdown(Shutdown.SEND)
    assert sock.receive() == b""
    sock.close()
    wait_until(lambda: not device.report()["connections"])


def test_calls_are_streams(guest: Guest) -> None:
    with pytest.raises(ConnectionRefusedError):
        guest.connect(VSOCK_BROKER_PORT, type_=SEQPACKET)


def test_the_port_of_another_guest_is_a_service(guest: Guest) -> None:
    with pytest.raises(ConnectionRefusedError):
        guest.connect(VSOCK_BROKER_PORT, cid=999)
