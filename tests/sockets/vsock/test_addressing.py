"""VmIds as context ids, and back: every word, ids of context ids, and other ids."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    WELL_KNOWN_VMIDS,
    VmId,
)
from hvsock.sockets.vsock import addressing

ANY = 0xFFFFFFFF
OTHER = VmId("bbe094b0-9bbd-45e0-b56a-823244e51922")

DESTINATIONS: dict[VmId, int | str] = {
    HV_GUID_PARENT: 2,
    HV_GUID_LOOPBACK: 1,
    HV_GUID_WILDCARD: "EADDRNOTAVAIL",
    HV_GUID_BROADCAST: "EADDRNOTAVAIL",
    HV_GUID_CHILDREN: "EADDRNOTAVAIL",
    HV_GUID_SILOHOST: "EADDRNOTAVAIL",
    VmId.from_cid(77): 77,
    OTHER: "EHOSTUNREACH",
}
HOST, LOCAL, VM, VM_2 = 2, 1, 77, 78
BINDINGS: dict[VmId, tuple[int, set[int]] | None] = {
    HV_GUID_WILDCARD: (ANY, {HOST, LOCAL, VM, VM_2}),
    HV_GUID_PARENT: (ANY, {HOST}),
    HV_GUID_LOOPBACK: (LOCAL, {LOCAL}),
    HV_GUID_BROADCAST: None,
    HV_GUID_CHILDREN: None,
    HV_GUID_SILOHOST: None,
    VmId.from_cid(VM): (ANY, {VM}),
    OTHER: None,
}
"""What the kernel binds to, and the context ids of those that are let in."""


def test_no_word_is_left_out() -> None:
    words = set(WELL_KNOWN_VMIDS.values())
    assert set(DESTINATIONS) == set(BINDINGS) == words | {VmId.from_cid(77), OTHER}


@pytest.mark.parametrize("vm_id", DESTINATIONS)
def test_destinations(vm_id: VmId) -> None:
    wanted = DESTINATIONS[vm_id]
    if isinstance(wanted, int):
        assert addressing.destination(vm_id) == wanted
        return
    with pytest.raises(OSError, match=r"connect to parent, loopback|a guest calls others") as caught:
        addressing.destination(vm_id)
    assert caught.value.errno == getattr(errno, wanted)


def let_in(vm_id: VmId) -> set[int]:
    """The context ids that a listener takes."""
    return {cid for cid in (HOST, LOCAL, VM, VM_2) if addressing.takes(vm_id, cid)}


@pytest.mark.parametrize("vm_id", BINDINGS)
def test_bindings(vm_id: VmId) -> None:
    wanted = BINDINGS[vm_id]
    if wanted is not None:
        assert (addressing.to_bind(vm_id), let_in(vm_id)) == wanted
        return
    with pytest.raises(OSError, match=r"is no address for a listener in a guest, since .*; bind") as caught:
        addressing.to_bind(vm_id)
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.fixture
def on_a_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host whose table has one VM."""
    file = tmp_path / "config.toml"
    file.write_text(
        f'[profiles.default]\nguests = "table"\n[profiles.default.vms.web01]\nid = "{OTHER}"\ncid = {VM}\n'
    )
    monkeypatch.setenv("HVSOCK_CONFIG", str(file))


@pytest.mark.usefixtures("on_a_host")
class TestOnAHost:
    def test_its_vms_have_their_ids(self) -> None:
        assert addressing.destination(OTHER) == VM
        assert addressing.seen_as(VM) == OTHER
        assert addressing.seen_as(VM_2) == VmId.from_cid(VM_2)

    def test_children_are_all_vms(self) -> None:
        assert (addressing.to_bind(HV_GUID_CHILDREN), let_in(HV_GUID_CHILDREN)) == (ANY, {VM, VM_2})

    def test_one_vm(self) -> None:
        assert (addressing.to_bind(OTHER), let_in(OTHER)) == (ANY, {VM})
        assert let_in(VmId.from_cid(VM)) == {VM}

    def test_a_vm_that_starts_later(self) -> None:
        stranger = VmId.new()
        assert (addressing.to_bind(stranger), let_in(stranger)) == (ANY, set())
        with pytest.raises(OSError, match=r"no context id; see .*config.toml: profiles.default.vms") as caught:
            addressing.destination(stranger)
        assert caught.value.errno == errno.EHOSTUNREACH


def test_what_peers_are_seen_as() -> None:
    assert addressing.seen_as(2) == HV_GUID_PARENT
    assert addressing.seen_as(1) == HV_GUID_LOOPBACK
    assert addressing.seen_as(ANY) == HV_GUID_WILDCARD


@given(st.integers(3, 0xFFFFFFFE))
def test_guests_are_seen_as_what_they_are_connected_to_by(cid: int) -> None:
    vm_id = addressing.seen_as(cid)
    assert addressing.destination(vm_id) == cid
    assert addressing.to_bind(vm_id) == ANY
    assert addressing.takes(vm_id, cid)
