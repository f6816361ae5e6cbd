"""SOCK_SEQPACKET between guests and their host, and what members of a group say to each other."""

from __future__ import annotations

import contextlib
import errno
import sys
import time

import pytest

import hvsock
from hvsock.addresses import ServiceId, VmId

assert sys.platform == "linux"

from hvsock.fabric import client, paths
from tests.fabric.fake_device import FakeDevice
from tests.support import sample
from tests.vm.guest_scripts.traffic import MAX_BYTES, WAIT_SECONDS
from tests.vm.support import needs_qemu
from tests.vm.traffic.world import Guest, World, beside

pytestmark = [needs_qemu, pytest.mark.timeout(sample(180, 3600))]

LONGEST_BYTES = 128 * 1024
"""The longest message that hvsock carries."""
MESSAGES = sample(60, 5_000)
MESSAGES_OF_MEMBERS = sample(60, 1_500)
"""Two emulated guests share what one has else, and neither waits for the other longer than WAIT_SECONDS."""
TOO_MANY = 1_000
"""More messages than are under way anywhere."""
TYPES = pytest.mark.parametrize("type", [hvsock.SOCK_STREAM, hvsock.SOCK_SEQPACKET], ids=["stream", "seqpacket"])


@pytest.mark.parametrize("by_guest", [True, False], ids=["guest connects", "host connects"])
def test_messages_keep_their_boundaries(world: World, guest: Guest, by_guest: bool) -> None:
    wanted = {"count": MESSAGES, "longest": LONGEST_BYTES}
    assert world.between(guest, by_guest, "for_messages", hvsock.SOCK_SEQPACKET, **wanted) == []


@pytest.mark.parametrize("by_guest", [True, False], ids=["guest connects", "host connects"])
def test_a_message_that_is_too_long_is_refused_and_the_next_is_not(
    world: World, guest: Guest, by_guest: bool
) -> None:
    near, far = world.pair(guest, by_guest, hvsock.SOCK_SEQPACKET)
    with near, far:
        for one, other in ((near, far), (far, near)):
            with pytest.raises(OSError, match=r"\[Errno 90\]"):
                one.send(bytes(LONGEST_BYTES + 1))
            one.send(b"short enough")
            assert other.recv(2 * LONGEST_BYTES) == b"short enough"
            one.send(b"cut off")
            one.send(b"whole")
            assert other.recv(3) == b"cut"  # the rest of a message is lost, as everywhere
            assert other.recv(LONGEST_BYTES) == b"whole"


@TYPES
@pytest.mark.parametrize(("source", "target"), [("web01", "web02"), ("web02", "web01")])
def test_a_member_of_the_group_is_known_by_its_cid(world: World, source: str, target: str, type: int) -> None:
    connecting, listening = world.guest(source), world.guest(target)
    service = ServiceId.from_port(world.port())
    with listening.socket(type) as listener, connecting.socket(type) as near:
        listener.bind((hvsock.HV_GUID_WILDCARD, service))
        listener.listen()
        near.connect((VmId.from_cid(listening.cid), service))
        far, peer = listener.accept()
        with far:
            assert peer == far.getpeername()
            assert peer[0] == VmId.from_cid(connecting.cid)  # its port is one of the listener's device
            assert near.getpeername() == [VmId.from_cid(listening.cid), service]
            near.send(b"hello")
            assert far.recv(99) == b"hello"
            far.send(b"and back")
            assert near.recv(99) == b"and back"
            near.close()
            assert far.recv(99) == b""
    for guest in (connecting, listening):
        guest.wait_until_quiet()


@TYPES
def test_a_listener_for_one_member(world: World, type: int) -> None:
    """Python's own socket in one guest shows the context id of the other."""
    first, second = world.guest("web01"), world.guest("web02")
    port = world.port()
    with second.socket(type, plain=True) as listener, first.socket(type, plain=True) as near:
        listener.bind((0xFFFFFFFF, port))
        listener.listen()
        near.connect((second.cid, port))
        far, peer = listener.accept()
        with far:
            assert peer[0] == first.cid


@pytest.mark.parametrize("work", ["many", "for_messages"])
def test_much_between_members(world: World, work: str) -> None:
    first, second = world.guest("web01"), world.guest("web02")
    port = world.port()
    many = {"count": sample(20, 200), "size": MAX_BYTES // 16, "write_bytes": 64 * 1024}
    arguments = many if work == "many" else {"count": MESSAGES_OF_MEMBERS, "longest": LONGEST_BYTES}
    kind = hvsock.SOCK_STREAM if work == "many" else hvsock.SOCK_SEQPACKET
    accepting = first.begin("accept", work=f"accept_{work}", port=port, type=kind, arguments=arguments)
    target = (VmId.from_cid(first.cid), str(port))
    assert second.begin("connect", work=f"connect_{work}", target=target, arguments=arguments)() == []
    assert accepting() == []
    for guest in (first, second):
        guest.wait_until_quiet()


@pytest.mark.soak  # it takes one more guest; test_guests_of_another_group is in `make test`
@TYPES
def test_guests_of_no_group_reach_nobody_and_are_not_reached(world: World, type: int) -> None:
    """Nor do those of another group; the guest is not told why."""
    member, loner = world.guest("web01"), world.guest("web03")
    service = ServiceId.from_port(world.port())
    for source, target in ((member, loner), (loner, member)):
        with target.socket(type) as listener, source.socket(type) as near:
            listener.bind((hvsock.HV_GUID_WILDCARD, service))
            listener.listen()
            with pytest.raises(ConnectionRefusedError) as caught:
                near.connect((VmId.from_cid(target.cid), service))
            assert caught.value.errno == errno.ECONNREFUSED
            with source.socket(type, plain=True) as plain, pytest.raises(ConnectionResetError):
                plain.connect((target.cid, service.port))
            listener.settimeout(0.2)
            with pytest.raises(TimeoutError):
                listener.accept()


def test_guests_of_another_group(world: World) -> None:
    member = world.guest("web01")
    host = paths.host_folder(world.folder)
    made = client.call(host, "partition.create", name="other", kind="vm", group="h")
    try:
        with FakeDevice(made["folder"]) as device, member.socket() as near:
            with pytest.raises(ConnectionRefusedError):
                near.connect((VmId.from_cid(made["cid"]), ServiceId.from_port(world.port())))
            assert device.quiet(0.2)
    finally:
        client.call(host, "partition.remove", name="other")


@pytest.mark.parametrize("by_guest", [True, False], ids=["guest connects", "host connects"])
def test_a_message_goes_whole_although_its_sender_may_not_wait(world: World, guest: Guest, by_guest: bool) -> None:
    """Linux would send what there is room for, and the rest never."""
    near, far = world.pair(guest, by_guest, hvsock.SOCK_SEQPACKET)
    sizes = (1_000, LONGEST_BYTES, LONGEST_BYTES - 1, LONGEST_BYTES, 1)

    def receive() -> list[int]:
        received = []
        for _ in sizes:
            time.sleep(0.1)  # so the guest has no room
            received.append(len(near.recv(2 * LONGEST_BYTES)))
        return received

    def send(timeout: float) -> None:
        far.settimeout(timeout)
        for size in sizes:
            while True:
                try:
                    assert far.send(bytes(size)) == size
                    break
                except BlockingIOError:
                    assert timeout == 0
                    time.sleep(0.01)

    with near, far:
        for timeout in (WAIT_SECONDS, 0.0):
            with beside(receive) as received:
                send(timeout)
            assert received.result() == list(sizes)
        far.settimeout(0.0)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while count < TOO_MANY:
                far.send(b"x" * 64 * 1024)
                count += 1
        assert count < TOO_MANY
        for _ in range(count):
            assert near.recv(LONGEST_BYTES) == b"x" * 64 * 1024
