"""GUIDs, SOCKADDR_HV, ports and URLs: the same as in the original, both ways."""

from __future__ import annotations

import copy
import pickle
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock import addresses
from hvsock.addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_VSOCK_TEMPLATE,
    HV_GUID_WILDCARD,
    HV_GUID_ZERO,
    SERVICE_WILDCARD,
    WELL_KNOWN_VMIDS,
    Address,
    AddressText,
    Guid,
    ServiceId,
    VmId,
    describe_service_id,
    describe_vm_id,
    parse_service_id,
    parse_url,
    parse_vm_id,
)

guids = st.uuids().map(str)
ports = st.integers(0, 0xFFFFFFFF)
VM_SESSION = ServiceId("999e53d4-3d5c-4c3e-8779-bed06ec056e1")

CONSTANTS = {
    "HV_GUID_ZERO": "00000000-0000-0000-0000-000000000000",
    "HV_GUID_WILDCARD": "00000000-0000-0000-0000-000000000000",
    "HV_GUID_BROADCAST": "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
    "HV_GUID_CHILDREN": "90DB8B89-0D35-4F79-8CE9-49EA0AC8B7CD",
    "HV_GUID_LOOPBACK": "E0E16197-DD56-4A10-9195-5EE7A155A838",
    "HV_GUID_PARENT": "A42E7CDA-D03F-480C-9CC2-A4DE20ABB878",
    "HV_GUID_SILOHOST": "36BD0C5C-7276-4223-88BA-7D03B654C568",
    "HV_GUID_VSOCK_TEMPLATE": "00000000-FACB-11E6-BD58-64006A7986D3",
}
"""In upper case, as CPython spells its own."""


@pytest.mark.parametrize("name", CONSTANTS)
def test_well_known_guids(name: str) -> None:
    guid = getattr(addresses, name)
    assert guid == CONSTANTS[name]
    assert str(guid) == CONSTANTS[name].lower()
    assert type(guid) is (ServiceId if name == "HV_GUID_VSOCK_TEMPLATE" else VmId)


def test_no_guid_goes_untested() -> None:
    assert {name for name in vars(addresses) if name.startswith("HV_GUID_")} == set(CONSTANTS)
    assert SERVICE_WILDCARD == HV_GUID_ZERO
    assert type(SERVICE_WILDCARD) is ServiceId


# GUIDs


@pytest.mark.parametrize("text", ["{%s}", "%s"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_guids_are_read_in_any_spelling(text: str, case: Any) -> None:
    guid = VmId(text % case("a42e7cda-d03f-480c-9cc2-a4de20abb878"))
    assert guid == HV_GUID_PARENT
    assert str(guid) == "a42e7cda-d03f-480c-9cc2-a4de20abb878"
    assert type(str(guid)) is str
    assert repr(guid) == "VmId('a42e7cda-d03f-480c-9cc2-a4de20abb878')"
    assert f"{guid}" == f"{guid:s}" == str(guid)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "parent",
        "a42e7cda-d03f-480c-9cc2-a4de20abb87",
        "a42e7cda-d03f-480c-9cc2-a4de20abb8788",
        "a42e7cdad03f480c9cc2a4de20abb878",
        "g42e7cda-d03f-480c-9cc2-a4de20abb878",
        "a42e7cda-d03f-480c-9cc2-a4de20abb878\n",
        " a42e7cda-d03f-480c-9cc2-a4de20abb878",
        "{a42e7cda-d03f-480c-9cc2-a4de20abb878",
        "a42e7cda-d03f-480c-9cc2-a4de20abb878}",
        "{{a42e7cda-d03f-480c-9cc2-a4de20abb878}}",
        "(a42e7cda-d03f-480c-9cc2-a4de20abb878)",
        "a42e7cda_d03f_480c_9cc2_a4de20abb878",
        "\u0660" * 8 + "-0000-0000-0000-000000000000",
    ],
)
def test_texts_that_are_no_guid(text: str) -> None:
    with pytest.raises(ValueError, match="not a GUID: ") as caught:
        VmId(text)
    assert repr(text) in str(caught.value)


@given(guids)
def test_guids_compare_and_hash_without_regard_to_case(text: str) -> None:
    guid = ServiceId(text.upper())
    assert guid == text
    assert guid == text.upper()
    assert text.upper() == guid
    assert (guid != text.upper()) is False
    assert guid == VmId(text)
    assert hash(guid) == hash(text) == hash(VmId(text))
    by_id: dict[str, int] = {guid: 1}
    assert by_id[ServiceId(text)] == by_id[text] == 1
    assert guid != text + "0"
    assert guid != uuid.UUID(text)
    assert guid in (text.upper(), "x")


def test_guids_compare_with_anything() -> None:
    assert HV_GUID_PARENT != HV_GUID_CHILDREN
    assert HV_GUID_PARENT != 5
    assert HV_GUID_PARENT is not None
    assert (HV_GUID_PARENT == None) is False  # noqa: E711


@given(guids)
def test_guids_are_laid_out_as_windows_does(text: str) -> None:
    raw = Guid(text).to_bytes_le()
    assert raw == uuid.UUID(text).bytes_le
    assert Guid.from_bytes_le(raw) == text
    assert type(VmId.from_bytes_le(raw)) is VmId


@pytest.mark.parametrize("length", [0, 15, 17])
def test_layouts_that_are_no_guid(length: int) -> None:
    with pytest.raises(ValueError, match=f"a GUID has 16 bytes, not {length}"):
        Guid.from_bytes_le(bytes(length))


def test_fresh_guids_are_random_ones() -> None:
    fresh = {VmId.new() for _ in range(100)}
    assert len(fresh) == 100
    for guid in fresh:
        assert type(guid) is VmId
        assert uuid.UUID(guid).version == 4
        assert uuid.UUID(guid).variant == uuid.RFC_4122


@given(guids)
def test_guids_travel_between_processes(text: str) -> None:
    guid = ServiceId(text)
    for one in (pickle.loads(pickle.dumps(guid)), copy.copy(guid), copy.deepcopy(guid), ServiceId(guid)):
        assert type(one) is ServiceId
        assert one == guid
    assert type(VmId(guid)) is VmId


# Ports


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (0, "00000000-facb-11e6-bd58-64006a7986d3"),
        (1, "00000001-facb-11e6-bd58-64006a7986d3"),
        (2761, "00000ac9-facb-11e6-bd58-64006a7986d3"),
        (50000, "0000c350-facb-11e6-bd58-64006a7986d3"),
        (0x3049197C, "3049197c-facb-11e6-bd58-64006a7986d3"),
        (0x7FFFFFFF, "7fffffff-facb-11e6-bd58-64006a7986d3"),
        (0xFFFFFFFF, "ffffffff-facb-11e6-bd58-64006a7986d3"),
    ],
)
def test_ports_of_the_template(port: int, text: str) -> None:
    assert ServiceId.from_port(port) == text
    assert ServiceId(text.upper()).port == port
    assert int(ServiceId(text)) == ServiceId(text).data1 == port


@given(ports)
def test_every_port_there_and_back(port: int) -> None:
    service_id = ServiceId.from_port(port)
    assert type(service_id) is ServiceId
    assert service_id.port == port
    assert parse_service_id(describe_service_id(service_id)) == service_id


@pytest.mark.parametrize("port", [-1, 0x100000000])
def test_ports_out_of_range(port: int) -> None:
    with pytest.raises(ValueError, match=f"port {port} is out of range: 0 to 4294967295"):
        ServiceId.from_port(port)


@pytest.mark.parametrize("text", ["999e53d4-3d5c-4c3e-8779-bed06ec056e1", "00000ac9-facb-11e6-bd58-64006a7986d4"])
def test_services_outside_of_the_template_are_no_port(text: str) -> None:
    assert ServiceId(text).port is None
    assert int(ServiceId(text)) == int(text[:8], 16)


def test_the_template_is_port_zero() -> None:
    assert HV_GUID_VSOCK_TEMPLATE.port == 0


# Context ids


@pytest.mark.parametrize(
    ("cid", "text"),
    [
        (3, "00000003-c1d0-4856-8000-000000000000"),
        (42, "0000002a-c1d0-4856-8000-000000000000"),
        (0xFFFFFFFE, "fffffffe-c1d0-4856-8000-000000000000"),
    ],
)
def test_ids_of_virtual_machines_by_cid(cid: int, text: str) -> None:
    assert VmId.from_cid(cid) == text
    assert type(VmId.from_cid(cid)) is VmId
    assert VmId(text.upper()).cid == VmId(text).data1 == cid


@given(st.integers(3, 0xFFFFFFFE))
def test_every_cid_there_and_back(cid: int) -> None:
    assert VmId.from_cid(cid).cid == cid


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 0xFFFFFFFF, 0x100000000])
def test_cids_that_no_virtual_machine_has(cid: int) -> None:
    with pytest.raises(ValueError, match=f"CID {cid} is no virtual machine's: those are 3 to 4294967294"):
        VmId.from_cid(cid)


@pytest.mark.parametrize(
    "text",
    [
        *CONSTANTS.values(),
        "00000002-c1d0-4856-8000-000000000000",
        "ffffffff-c1d0-4856-8000-000000000000",
        "00000003-c1d0-4856-8000-000000000001",
    ],
)
def test_ids_that_were_made_of_no_cid(text: str) -> None:
    assert VmId(text).cid is None


# SOCKADDR_HV

SOCKADDRS = [
    (Address(HV_GUID_WILDCARD, SERVICE_WILDCARD), "2200 0000" + "00" * 32),
    (
        Address(HV_GUID_PARENT, VM_SESSION),
        "2200 0000 da7c2ea4 3fd0 0c48 9cc2 a4de20abb878 d4539e99 5c3d 3e4c 8779 bed06ec056e1",
    ),
    (
        Address(HV_GUID_CHILDREN, ServiceId.from_port(2761)),
        "2200 0000 898bdb90 350d 794f 8ce9 49ea0ac8b7cd c90a0000 cbfa e611 bd58 64006a7986d3",
    ),
    (
        Address(HV_GUID_LOOPBACK, HV_GUID_VSOCK_TEMPLATE),
        "2200 0000 9761e1e0 56dd 104a 9195 5ee7a155a838 00000000 cbfa e611 bd58 64006a7986d3",
    ),
    (
        Address(HV_GUID_SILOHOST, ServiceId("a5201c21-2770-4c11-a68e-f182edb29220")),
        "2200 0000 5c0cbd36 7672 2342 88ba 7d03b654c568 211c20a5 7027 114c a68e f182edb29220",
    ),
    (
        Address(HV_GUID_BROADCAST, ServiceId("00112233-4455-6677-8899-aabbccddeeff")),
        "2200 0000" + "ff" * 16 + "33221100 5544 7766 8899 aabbccddeeff",
    ),
]


@pytest.mark.parametrize(("address", "hexadecimal"), SOCKADDRS)
def test_sockaddr_hv(address: Address, hexadecimal: str) -> None:
    data = bytes.fromhex(hexadecimal)
    assert len(data) == 36
    assert address.pack() == data
    unpacked = Address.unpack(data)
    assert unpacked == address
    assert (type(unpacked.vm_id), type(unpacked.service_id)) == (VmId, ServiceId)


@given(guids, guids)
def test_sockaddr_hv_there_and_back(vm_id: str, service_id: str) -> None:
    address = Address(VmId(vm_id), ServiceId(service_id))
    assert Address.unpack(address.pack()) == address


def test_the_reserved_field_of_sockaddr_hv_is_not_looked_at() -> None:
    data = bytearray(Address(HV_GUID_PARENT, VM_SESSION).pack())
    data[2:4] = b"\xff\xff"
    assert Address.unpack(bytes(data)) == (HV_GUID_PARENT, VM_SESSION)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "has 36 bytes, not 0"),
        (bytes(35), "has 36 bytes, not 35"),
        (bytes(37), "has 36 bytes, not 37"),
        (bytes(36), r"family AF_HYPERV \(34\), not 0"),
        (b"\0\x22" + bytes(34), r"family AF_HYPERV \(34\), not 8704"),
    ],
)
def test_what_is_no_sockaddr_hv(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Address.unpack(data)


def test_an_address_is_a_pair_of_strings_to_everybody() -> None:
    address = Address(HV_GUID_PARENT, VM_SESSION)
    vm_id, service_id = address
    assert address == (str(vm_id).upper(), str(service_id).upper())
    assert hash(address) == hash((str(vm_id), str(service_id)))
    assert all(isinstance(half, str) for half in address)


# Written forms


@pytest.mark.parametrize(
    ("text", "vm_id"),
    [
        ("any", HV_GUID_WILDCARD),
        ("wildcard", HV_GUID_WILDCARD),
        ("broadcast", HV_GUID_BROADCAST),
        ("children", HV_GUID_CHILDREN),
        ("loopback", HV_GUID_LOOPBACK),
        ("parent", HV_GUID_PARENT),
        ("silohost", HV_GUID_SILOHOST),
        ("PARENT", HV_GUID_PARENT),
        ("{A42E7CDA-D03F-480C-9CC2-A4DE20ABB878}", HV_GUID_PARENT),
        ("host", None),
        ("debian", None),
        ("2", None),
        ("", None),
        (" parent", None),
    ],
)
def test_vm_ids_in_words(text: str, vm_id: VmId | None) -> None:
    found = parse_vm_id(text)
    assert found == vm_id
    assert found is None or type(found) is VmId


@given(guids | st.sampled_from(sorted(WELL_KNOWN_VMIDS.values())))
def test_vm_ids_there_and_back(text: str) -> None:
    assert parse_vm_id(describe_vm_id(VmId(text))) == text


def test_well_known_vm_ids_are_described_in_one_word() -> None:
    words = {describe_vm_id(vm_id) for vm_id in WELL_KNOWN_VMIDS.values()}
    assert words == {"any", "broadcast", "children", "loopback", "parent", "silohost"}
    assert describe_vm_id(VmId(VM_SESSION)) == VM_SESSION


@pytest.mark.parametrize(
    ("text", "service_id"),
    [
        ("2761", ServiceId.from_port(2761)),
        ("0xac9", ServiceId.from_port(2761)),
        ("0XAC9", ServiceId.from_port(2761)),
        ("0002761", ServiceId.from_port(2761)),
        ("0", HV_GUID_VSOCK_TEMPLATE),
        ("4294967295", ServiceId.from_port(0xFFFFFFFF)),
        ("999E53D4-3D5C-4C3E-8779-BED06EC056E1", VM_SESSION),
        ("{999e53d4-3d5c-4c3e-8779-bed06ec056e1}", VM_SESSION),
        ("4294967296", None),
        ("99999999999", None),
        ("0x100000000", None),
        ("0x", None),
        ("-1", None),
        ("+1", None),
        ("1_000", None),
        (" 1", None),
        ("1\n", None),
        ("1.0", None),
        ("0o17", None),
        ("٣", None),
        ("²", None),
        ("HV Socket Demo", None),
        ("", None),
    ],
)
def test_service_ids_in_words(text: str, service_id: ServiceId | None) -> None:
    found = parse_service_id(text)
    assert found == service_id
    assert found is None or type(found) is ServiceId


@given(guids)
def test_service_ids_there_and_back(text: str) -> None:
    assert parse_service_id(describe_service_id(ServiceId(text))) == text


@pytest.mark.parametrize(
    ("url", "vm", "service"),
    [
        ("hvsocket://parent/2761", "parent", "2761"),
        ("HvSocket://parent/2761", "parent", "2761"),
        ("hvsocket://my%20vm/HV%20Socket%20Demo", "my vm", "HV Socket Demo"),
        ("hvsocket://a%2Fb/c%2fd", "a/b", "c/d"),
        ("hvsocket://vm/%E6%9C%8D%E5%8A%A1", "vm", "服务"),
        ("hvsocket://vm/服务", "vm", "服务"),
        ("hvsocket://100%25/x+y", "100%", "x+y"),
        ("hvsocket://user@vm:1/a?b#c", "user@vm:1", "a?b#c"),
    ],
)
def test_urls(url: str, vm: str, service: str) -> None:
    assert parse_url(url) == (vm, service)
    assert parse_url(AddressText(vm, service).url()) == (vm, service)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "parent/2761",
        "http://parent/2761",
        "hvsocket:parent/2761",
        "hvsocket:/parent/2761",
        "hvsocket://",
        "hvsocket://parent",
        "hvsocket://parent/",
        "hvsocket:///2761",
        "hvsocket://parent/2761/",
        "hvsocket://a/b/c",
        "hvsocket://a//b",
        "xhvsocket://a/b",
        " hvsocket://a/b",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="not an address: "):
        parse_url(url)


def test_urls_whose_names_are_no_text() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parse_url("hvsocket://vm/%FF")


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_in_urls_there_and_back(vm: str, service: str) -> None:
    url = AddressText(vm, service).url()
    assert url.isascii()
    assert url.isprintable()
    assert parse_url(url) == (vm, service)


@given(guids | st.sampled_from(sorted(WELL_KNOWN_VMIDS.values())), guids | ports.map(ServiceId.from_port))
def test_addresses_as_urls_there_and_back(vm_id: str, service_id: str) -> None:
    address = Address(VmId(vm_id), ServiceId(service_id))
    vm, service = parse_url(str(address))
    assert (parse_vm_id(vm), parse_service_id(service)) == address


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (Address(HV_GUID_PARENT, ServiceId.from_port(2761)), "hvsocket://parent/2761"),
        (Address(HV_GUID_WILDCARD, VM_SESSION), "hvsocket://any/999e53d4-3d5c-4c3e-8779-bed06ec056e1"),
    ],
)
def test_addresses_are_shown_as_urls(address: Address, url: str) -> None:
    assert str(address) == url
