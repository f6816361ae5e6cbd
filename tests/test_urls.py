"""URLs of every kind: read, and refused with a word why."""

from __future__ import annotations

import contextlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_WILDCARD,
    Address,
    AddressText,
    ServiceId,
    VmId,
    parse_service_id,
    parse_vm_id,
)
from hvsock.hybrid.profiles import PROFILES
from hvsock.urls import HybridText, is_hybrid, parse

GUID = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
PORT = ServiceId.from_port(5005)


def address(text: str) -> Address:
    """The address in a URL without names."""
    found = parse(text)
    assert isinstance(found, AddressText)
    vm_id, service_id = parse_vm_id(found.vm), parse_service_id(found.service)
    assert vm_id is not None
    assert service_id is not None
    return Address(vm_id, service_id)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vsock://3:5005", Address(VmId.from_cid(3), PORT)),
        ("VSOCK://0x3:0x138d", Address(VmId.from_cid(3), PORT)),
        ("vsock://1:5005", Address(HV_GUID_LOOPBACK, PORT)),
        ("vsock://local:5005", Address(HV_GUID_LOOPBACK, PORT)),
        ("vsock://2:5005", Address(HV_GUID_PARENT, PORT)),
        ("vsock://host:5005", Address(HV_GUID_PARENT, PORT)),
        ("vsock://4294967295:5005", Address(HV_GUID_WILDCARD, PORT)),
        ("vsock://any:5005", Address(HV_GUID_WILDCARD, PORT)),
        ("hvsocket://children/5005", Address(HV_GUID_CHILDREN, PORT)),
    ],
)
def test_addresses(text: str, found: Address) -> None:
    assert address(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("unix:/run/v.sock?hybrid=5005", HybridText("/run/v.sock", PORT)),
        ("UNIX:/run/v.sock?hybrid=0x138d", HybridText("/run/v.sock", PORT)),
        ("unix:///run/v.sock?hybrid=5005", HybridText("/run/v.sock", PORT)),
        ("unix:v.sock?hybrid=5005", HybridText("v.sock", PORT)),
        (f"unix:/v?hybrid={GUID}", HybridText("/v", GUID)),
        ("unix:/a%20b%3f%25?hybrid=5005", HybridText("/a b?%", PORT)),
        ("unix:/v?hybrid=5005&profile=Firecracker", HybridText("/v", PORT, "firecracker")),
        ("unix:/v?profile=libkrun&hybrid=5005", HybridText("/v", PORT, "libkrun")),
    ],
)
def test_hybrid(text: str, found: HybridText) -> None:
    assert parse(text) == found
    assert is_hybrid(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an address: ''"),
        ("web01", r"expected like hvsocket://.*, vsock://2:2761 or unix:/run"),
        ("http://a/b", "not an address: 'http://a/b'"),
        ("hvsocket://a", "not an address"),
        ("x" * 20000, "at most 16384 characters, not 20000"),
        ("vsock:2:5005", "is no vsock://CID:PORT"),
        ("vsock://2", "is no vsock://CID:PORT"),
        ("vsock://:5005", "the CID in 'vsock://:5005' is a number up to 4294967295, or any, host, local"),
        ("vsock://web01:5005", "the CID in"),
        ("vsock://-1:5005", "the CID in"),
        ("vsock://4294967296:5005", "the CID in"),
        ("vsock://0:5005", "CID 0 is no virtual machine's"),
        ("vsock://3:", "the port in"),
        ("vsock://3:4294967296", "the port in"),
        ("vsock://3:echo", "the port in"),
        ("vsock://3:\u0661", "the port in"),
        (f"vsock://3:{GUID}", "the port in"),
        ("vsock://3:5005/", "the port in"),
        ("unix:/v", r"says no service: add \?hybrid=PORT"),
        ("unix:/v?profile=libkrun", r"says no service: add \?hybrid=PORT"),
        ("unix:/v?hybrid=", "hybrid= in .* is a port or a GUID"),
        ("unix:/v?hybrid=echo", "hybrid= in .* is a port or a GUID"),
        ("unix:/v?hybrid=4294967296", "hybrid= in .* is a port or a GUID"),
        ("unix:/v?hybrid=5&hybrid=6", "once each, and nothing else"),
        ("unix:/v?hybrid=5&port=6", "once each, and nothing else"),
        ("unix:/v?hybrid=5&", "once each, and nothing else"),
        ("unix:/v?hybrid=5&profile=qemu", "there is no profile 'qemu'; there are: hvsock"),
        ("unix:?hybrid=5", "no path of a socket"),
        ("unix:/?hybrid=5", "no path of a socket"),
        ("unix:/v%00?hybrid=5", "no path of a socket"),
        ("unix:/v#x?hybrid=5", "no path of a socket"),
        ("unix:////v?hybrid=5", "no path of a socket"),
        ("unix://v/w?hybrid=5", "names a host"),
        ("unix:/v%2?hybrid=5", "no two hexadecimal digits"),
        ("unix:/v?hybrid=%zz", "no two hexadecimal digits"),
    ],
)
def test_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse(text)
    assert len(str(caught.value)) < 400


@given(st.integers(1, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
def test_numbers_come_back(cid: int, port: int) -> None:
    found = address(f"vsock://{cid}:{port}")
    assert found.vm_id.cid == (None if cid in (1, 2, 0xFFFFFFFF) else cid)
    assert found.service_id.port == port


PATHS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=()).filter(
        lambda one: not "\ud800" <= one < "\udc80"
    ),
    min_size=1,
    max_size=30,
).filter(lambda path: not (path.startswith("//") or path.endswith("/") or "\udcff" < max(path) < "\ue000"))


@given(
    PATHS.filter(lambda path: path.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == path),
    st.one_of(
        st.integers(0, 0xFFFFFFFF).map(ServiceId.from_port), st.uuids().map(lambda one: ServiceId(str(one)))
    ),
    st.one_of(st.none(), st.sampled_from(sorted(PROFILES))),
)
def test_paths_come_back(path: str, service: ServiceId, profile: str | None) -> None:
    url = f"unix:{quote(path, errors='surrogateescape')}?hybrid={service}"
    assert parse(url if profile is None else f"{url}&profile={profile}") == HybridText(path, service, profile)


@given(
    st.text(max_size=60).flatmap(
        lambda rest: st.sampled_from(["unix:", "vsock://", "unix:/v?hybrid=", ""]).map(lambda start: start + rest)
    )
)
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse(text), AddressText | HybridText)
