"""VmIds as context ids, and back: every word, ids of context ids, and other ids."""

from __future__ import annotations

import errno

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
from hvsock.sockets.vsock.addressing import Binding

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
BINDINGS: dict[VmId, Binding | None] = {
    HV_GUID_WILDCARD: Binding(ANY, None),
    HV_GUID_PARENT: Binding(ANY, 2),
    HV_GUID_LOOPBACK: Binding(1, 1),
    HV_GUID_BROADCAST: None,
    HV_GUID_CHILDREN: None,
    HV_GUID_SILOHOST: None,
    VmId.from_cid(77): Binding(ANY, 77),
    OTHER: None,
}


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


@pytest.mark.parametrize("vm_id", BINDINGS)
def test_bindings(vm_id: VmId) -> None:
    wanted = BINDINGS[vm_id]
    if wanted is not None:
        assert addressing.binding(vm_id) == wanted
        return
    with pytest.raises(OSError, match=r"is no address for a listener in a guest, since .*; bind") as caught:
        addressing.binding(vm_id)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_what_peers_are_seen_as() -> None:
    assert addressing.seen_as(2) == HV_GUID_PARENT
    assert addressing.seen_as(1) == HV_GUID_LOOPBACK
    assert addressing.seen_as(ANY) == HV_GUID_WILDCARD


@given(st.integers(3, 0xFFFFFFFE))
def test_guests_are_seen_as_what_they_are_connected_to_by(cid: int) -> None:
    vm_id = addressing.seen_as(cid)
    assert addressing.destination(vm_id) == cid
    assert addressing.binding(vm_id) == Binding(ANY, cid)
