"""What libvirt and QEMU's command lines say of VMs, and what is made of other things that come from there."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.addresses import VmId
from hvsock.config.settings import Vm
from hvsock.errors import ProtocolError
from hvsock.machines import libvirt, qemu

UUID = "bbe094b0-9bbd-45e0-b56a-823244e51922"
DOMAIN = f"""<?xml version="1.0" encoding="latin-1"?>
<domain type='kvm' id='3'>
  <name>web01</name><!-- a word -->
  <uuid>{UUID}</uuid>
  <os><type arch='x86_64' machine='pc-q35-8.2'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <vsock model='virtio'>
      <cid auto='yes' address='3'/>
      <alias name='vsock0'/>
    </vsock>
  </devices>
</domain>
"""
"""As virsh dumpxml prints that of a domain that runs (libvirt.org, formatdomain)."""
BOMB = '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {after} "{f"&{before};" * 10}">' for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


class TestLibvirt:
    def test_a_list(self) -> None:
        assert libvirt.parse_list(f"{UUID}\n\n") == (UUID,)
        assert libvirt.parse_list("\n") == ()

    @pytest.mark.parametrize("text", ["web01", f"{UUID} running", "\x1b[2J", UUID[:-1], f"--{UUID}"])
    def test_what_is_no_list(self, text: str) -> None:
        with pytest.raises(ProtocolError, match="which is no UUID") as caught:
            libvirt.parse_list(text)
        assert str(caught.value).isprintable()

    def test_more_than_are_looked_at(self) -> None:
        with pytest.raises(ProtocolError, match="libvirt has 1025 domains"):
            libvirt.parse_list(f"{UUID}\n" * 1025)

    def test_a_domain(self) -> None:
        assert libvirt.parse_domain(DOMAIN) == Vm("web01", VmId(UUID), 3)
        assert libvirt.parse_domain(DOMAIN.replace(UUID, UUID.upper())) == Vm("web01", VmId(UUID), 3)

    @pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a&#10;b", "&#x202e;x"])
    def test_a_name_that_cannot_be_shown(self, name: str) -> None:
        assert libvirt.parse_domain(DOMAIN.replace("web01", name)) == Vm(UUID, VmId(UUID), 3)

    @pytest.mark.parametrize("address", ["", "x", "-3", "3 ", "\u0663", "99999999999"])
    def test_no_context_id(self, address: str) -> None:
        assert libvirt.parse_domain(DOMAIN.replace("address='3'", f"address='{address}'")) is None

    def test_no_device(self) -> None:
        assert libvirt.parse_domain(f"<domain><uuid>{UUID}</uuid></domain>") is None
        assert libvirt.parse_domain(DOMAIN.replace("address='3'", "")) is None

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "is none: no element found"),
            ("<domain>", "is none: no element found"),
            ("error: failed to get domain", "is none"),
            ("<domain/>", "no <domain> with a <uuid>"),
            (f"<network><uuid>{UUID}</uuid></network>", "no <domain> with a <uuid>"),
            ("<domain><uuid>web01</uuid></domain>", "no <domain> with a <uuid>"),
            (DOMAIN.replace("<domain", f"{BOMB}]><domain", 1), "it has declarations|has declarations"),
            (DOMAIN.replace("address='3'", "address='0'"), "CID 0 is no virtual machine's"),
            (DOMAIN.replace("address='3'", "address='4294967295'"), "is no virtual machine's"),
            ("<domain>\0</domain>", "is none"),
            ("<a>" * 100_000, "is none"),
            (" " * (libvirt.MAX_DOMAIN_CHARACTERS + 1), "at most 1048576 characters, not 1048577"),
        ],
        ids=range(12),
    )
    def test_what_is_no_domain(self, text: str, why: str) -> None:
        with pytest.raises(ProtocolError, match=why):
            libvirt.parse_domain(text)

    @given(st.text(st.sampled_from("<>/!-='\"& domainuuidvsockcidaddress3\n"), max_size=80))
    def test_any_text(self, text: str) -> None:
        for whole in (text, DOMAIN.replace("<name>web01</name>", text)):
            try:
                found = libvirt.parse_domain(whole)
            except ProtocolError:
                continue
            assert found is None or found.id == UUID


def line(*words: str) -> bytes:
    """A command line as /proc shows it."""
    return b"".join(word.encode() + b"\0" for word in words)


PROGRAM = "/usr/bin/qemu-system-x86_64"
DEVICE = ("-device", "vhost-vsock-pci,guest-cid=3,id=vsock0")
JSON_DEVICE = ("-device", json.dumps({"driver": "vhost-vsock-pci", "id": "v", "guest-cid": 3, "vhostfd": "27"}))
NAME = ("-name", "guest=web01,debug-threads=on")
FOUND = Vm("web01", VmId(UUID), 3)


class TestQemu:
    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ((PROGRAM, *NAME, "-uuid", UUID, *DEVICE), FOUND),
            ((PROGRAM, *NAME, "-uuid", UUID.upper(), *JSON_DEVICE), FOUND),
            (("kvm", "--name", "web01", "--uuid", UUID, "--device", DEVICE[1]), FOUND),
            (("/usr/libexec/qemu-kvm", *NAME, "-uuid", UUID, "-device", "vhost-vsock-ccw,guest-cid=0x3"), FOUND),
            (
                (PROGRAM, *NAME, "-uuid", UUID, "-device", "vhost-vsock-pci-non-transitional,guest-cid=3"),
                FOUND,
            ),
            ((PROGRAM, *NAME, "-uuid", UUID, "-device", "driver=vhost-vsock-pci,guest-cid=3"), FOUND),
            ((PROGRAM, "-uuid", UUID, *DEVICE), Vm(UUID, VmId(UUID), 3)),
            ((PROGRAM, "-name", "a\nb", "-uuid", UUID, *DEVICE), Vm(UUID, VmId(UUID), 3)),
            ((PROGRAM, *NAME, *DEVICE), Vm("web01", VmId.from_cid(3), 3)),
            ((PROGRAM, *NAME, "-uuid", UUID, *DEVICE, *JSON_DEVICE), FOUND),
        ],
    )
    def test_a_vm(self, words: tuple[str, ...], found: Vm) -> None:
        assert qemu.parse_command_line(line(*words)) == found

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\0",
            line(PROGRAM),
            line(PROGRAM, *NAME, "-uuid", UUID),
            line("/usr/bin/python3", *NAME, "-uuid", UUID, *DEVICE),
            line("sh", "-c", PROGRAM, *NAME, "-uuid", UUID, *DEVICE),
            line("xqemu-system-x86_64", *DEVICE),
            line(PROGRAM, "-uuid", "web01", *DEVICE),
            line(PROGRAM, *DEVICE)[:-1],
            line(PROGRAM, *DEVICE, "-device", "vhost-vsock-pci,guest-cid=4"),
            line(PROGRAM, "-device", "vhost-user-vsock-pci,chardev=a"),
            line(PROGRAM, "-device", "vhost-vsock-pci"),
            line(PROGRAM, "-device", "vhost-vsock-pci,guest-cid=x"),
            line(PROGRAM, "-device", "vhost-vsock-pci,guest-cid=2"),
            line(PROGRAM, "-device", "vhost-vsock-pci,guest-cid=4294967295"),
            line(PROGRAM, "-device", "vhost-vsock-pci,guest-cid=99999999999"),
            line(PROGRAM, "-uuid", UUID, "-device", "vhost-vsock-pci,guest-cid=2"),
            line(PROGRAM, "-uuid", UUID, "-device", "vhost-vsock-pci,guest-cid=4294967295"),
            line(PROGRAM, "-uuid", UUID, "-device", "vhost-vsock-pci,guest-cid=9999999999"),
            line(
                PROGRAM, "-uuid", UUID, "-device", '{"driver":"vhost-vsock-pci","guest-cid":18446744073709551616}'
            ),
            line(PROGRAM, "-device", '{"driver":"vhost-vsock-pci","guest-cid":true}'),
            line(PROGRAM, "-device", '{"driver":"vhost-vsock-pci","guest-cid":-1}'),
            line(PROGRAM, "-device", '{"driver":["vhost-vsock-pci"],"guest-cid":3}'),
            line(PROGRAM, "-device", "{"),
            line(PROGRAM, "-device", "{" * 10_000),
            line(PROGRAM, "-device", '{"a":' + "[" * 10_000),
            line(PROGRAM, "-device", '"x"'),
            line(PROGRAM, "-device"),
            line(PROGRAM, *DEVICE, "x" * qemu.MAX_COMMAND_LINE_BYTES),
        ],
        ids=range(29),
    )
    def test_none(self, data: bytes) -> None:
        assert qemu.parse_command_line(data) is None

    WORDS = st.one_of(
        st.sampled_from([PROGRAM, "-uuid", UUID, *DEVICE, *JSON_DEVICE, *NAME, "-device", "{}", "[1]", "null"]),
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12),
    )

    @given(st.lists(WORDS, max_size=9))
    def test_any_words(self, words: list[str]) -> None:
        found = qemu.parse_command_line(line(PROGRAM, *words))
        assert found is None or (found.cid == 3 and found.name.isprintable())

    @given(st.binary(max_size=80))
    def test_any_bytes(self, data: bytes) -> None:
        qemu.parse_command_line(line(PROGRAM, *DEVICE) + data + b"\0")


def test_user_ids_of_a_process() -> None:
    assert qemu.parse_uids(b"Name:\tqemu\nUid:\t64055\t0\t1\t2\nGid:\t1\t1\t1\t1\n") == {64_055, 0, 1, 2}
    for status in (b"", b"Uid:\t0\t0\t0\n", b"Name:\tUid:\t0\t0\t0\t0\n"):
        assert qemu.parse_uids(status) == frozenset()
