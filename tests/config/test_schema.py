"""What a configuration file may say, and what is said of one that says something else."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvsock.addresses import HV_GUID_LOOPBACK, HV_GUID_PARENT, ServiceId, VmId
from hvsock.config.files import MAX_FILE_BYTES
from hvsock.config.schema import MAX_KEY_DOTS, MAX_VMS, parse
from hvsock.config.settings import Guests, Settings, Vm, vm_id_of_cid, vm_id_of_path
from hvsock.errors import UsageError

FILE = "/etc/hvsock/config.toml"
ID = VmId("bbe094b0-9bbd-45e0-b56a-823244e51922")
WHOLE = f"""
profile = "lab"

[profiles.default]

[profiles.lab]
transport = "hybrid"
vmm = "Firecracker"
connect_timeout = 2.5
guests = "libvirt"
libvirt = "qemu:///session"
qemu_users = ["libvirt-qemu", "107"]

[profiles.lab.services]
"HV Socket Demo" = 5000
Other = "{ServiceId.from_port(6000)}"

[profiles.lab.vms.web01]
id = "{ID}"
cid = 3
path = "/run/web01.sock"
vmm = "openvmm"

[profiles.lab.vms."a name"]
cid = 4

[profiles.lab.vms.db]
path = "/run/db.sock"

[profiles.lab.vms.here]
cid = 1

[profiles.lab.vms.host-of-this]
cid = 2
"""


def test_all_that_there_is() -> None:
    found = parse(WHOLE, FILE)
    assert found.profiles["default"] == Settings(where=f"{FILE}: profiles.default")
    assert found.chosen("default") == found.profiles["default"]
    assert found.chosen(None) == Settings(
        where=f"{FILE}: profiles.lab",
        transport="hybrid",
        vmm="firecracker",
        connect_timeout=2500,
        guests=Guests.LIBVIRT,
        libvirt="qemu:///session",
        qemu_users=("libvirt-qemu", "107"),
        services={"hv socket demo": ServiceId.from_port(5000), "other": ServiceId.from_port(6000)},
        vms=(
            Vm("web01", ID, 3, "/run/web01.sock", "openvmm"),
            Vm("a name", VmId.from_cid(4), 4, None, "firecracker"),
            Vm("db", vm_id_of_path("/run/db.sock"), None, "/run/db.sock", "firecracker"),
            Vm("here", HV_GUID_LOOPBACK, 1, None, "firecracker"),
            Vm("host-of-this", HV_GUID_PARENT, 2, None, "firecracker"),
        ),
    )


def test_which_profile() -> None:
    assert parse("", FILE).chosen(None) == Settings()
    assert parse("[profiles.a]", FILE).chosen(None) == Settings()
    assert parse("[profiles.default]\ntransport='a'", FILE).chosen(None).transport == "a"
    with pytest.raises(UsageError, match=r"config.toml: there is no profile 'b'; there are: a"):
        parse("[profiles.a]", FILE).chosen("b")
    with pytest.raises(UsageError, match=r"config.toml: there is no profile 'b'; there are: none"):
        parse("profile = 'b'", FILE)


LAB = "profiles.lab"
VM = "profiles.lab.vms.x"
MISTAKES = {
    "x = ": r"it is no TOML: ",
    "a" * 5000 + " = 1": r": there is no such key; there are: profile, profiles",
    "x = " + "[" * 5000: r"it is no TOML: it is nested too deeply",
    f"x = {'9' * 5000}": r"it is no TOML: ",
    "profil = 'x'": r": profil: there is no such key; there are: profile, profiles",
    "profile = 1": r": profile: it is text, not 1",
    "profile = ''": r": profile: it is printable text of at most 100 characters, not ''",
    "profiles = 1": r": profiles: it is a table, not 1",
    "[profiles]\nlab = []": rf": {LAB}: it is a table, not a list",
    '[profiles."\\u001b[2J"]': r": profiles\.'\\x1b\[2J': of its name: ",
    f"[{LAB}]\nvm = 1": rf": {LAB}\.vm: there is no such key; there are: transport, vmm",
    f"[{LAB}]\nvmm = 'qemu'": rf": {LAB}\.vmm: it is one of hvsock, .*, not 'qemu'",
    f"[{LAB}]\nguests = 'xen'": rf": {LAB}\.guests: it is one of table, libvirt, qemu, not 'xen'",
    f"[{LAB}]\nconnect_timeout = 0": rf": {LAB}\.connect_timeout: it is seconds from 0.001 to 300, not 0",
    f"[{LAB}]\nconnect_timeout = nan": rf": {LAB}\.connect_timeout: it is seconds",
    f"[{LAB}]\nconnect_timeout = true": rf": {LAB}\.connect_timeout: it is seconds",
    f"[{LAB}]\nqemu_users = 'x'": rf": {LAB}\.qemu_users: it is a list of at most 16 users, not 'x'",
    f"[{LAB}]\nqemu_users = [1]": rf": {LAB}\.qemu_users: it is text, not 1",
    f"[{LAB}]\nvms = 1": rf": {LAB}\.vms: it is a table, not 1",
    f"[{LAB}.vms]\nx = 1": rf": {VM}: it is a table, not 1",
    f"[{VM}]": rf": {VM}: a VM has at least one of id, cid and path",
    f"[{VM}]\nport = 1": rf": {VM}\.port: there is no such key; there are: id, cid, path, vmm",
    f"[{VM}]\ncid = 0": rf": {VM}\.cid: it is a number from 1 to 4294967294, not 0",
    f"[{VM}]\ncid = 4294967295": rf": {VM}\.cid: it is a number",
    f"[{VM}]\ncid = 1\nid = '{ID}'": rf": {VM}\.id: context id 1 is no VM's, and has no id of its own",
    f"[{VM}]\ncid = true": rf": {VM}\.cid: it is a number",
    f"[{VM}]\ncid = 3.0": rf": {VM}\.cid: it is a number",
    f"[{VM}]\nid = 'x'": rf": {VM}\.id: it is a GUID, not 'x'",
    f"[{VM}]\nid = '{HV_GUID_PARENT}'": rf": {VM}\.id: it is the GUID of one VM, and {HV_GUID_PARENT}",
    f"[{VM}]\nid = '{VmId.from_cid(3)}'": rf": {VM}\.id: it is the GUID of one VM",
    f"[{VM}]\npath = 'x.sock'": rf": {VM}\.path: it is the absolute path of a socket, not 'x.sock'",
    f"[{VM}]\npath = '/'": rf": {VM}\.path: it is the absolute path of a socket",
    f"[{VM}]\npath = '/{'x' * 5000}'": rf": {VM}\.path: it is printable text of at most 4096 characters, not '/xx",
    f'[{VM}]\npath = "/\\u0000"': rf": {VM}\.path: it is printable text",
    f"[{LAB}.vms.parent]\ncid = 3": rf": {LAB}\.vms\.parent: 'parent' means something else",
    f"[{LAB}.vms.a]\ncid = 3\n[{LAB}.vms.b]\ncid = 3": rf": {LAB}\.vms: the VMs a and b have the same cid",
    f"[{LAB}.vms.a]\ncid = 3\n[{LAB}.vms.A]\ncid = 4": rf": {LAB}\.vms: the VMs a and A have the same name",
    f"[{LAB}.vms.a]\npath = '/x'\n[{LAB}.vms.b]\npath = '/x'": rf": {LAB}\.vms: .* have the same path",
    f"[{LAB}.vms.a]\nid = '{ID}'\n[{LAB}.vms.b]\nid = '{ID}'": rf": {LAB}\.vms: .* have the same id",
    f"profiles = 0x{'f' * 5000}": r": profiles: it is a table, not a number of more than 64 bits",
    f"[{VM}]\ncid = 0x{'f' * 5000}": rf": {VM}\.cid: it is .*, not a number of more than 64 bits",
    f"[{LAB}.services]\nx = 'y'": rf": {LAB}\.services\.x: it is a port or a GUID, not 'y'",
    f"[{LAB}.services]\nx = -1": rf": {LAB}\.services\.x: it is a number from 0 to 4294967295, not -1",
    f"[{LAB}.services]\nx = true": rf": {LAB}\.services\.x: it is a number from 0 to",
    f"[{LAB}.services]\nx = []": rf": {LAB}\.services\.x: it is a number from 0 to 4294967295, not a list",
    f"[{LAB}.services]\n5000 = 1": rf": {LAB}\.services\.'5000': a service's name is no port",
    f"[{LAB}.services]\nx = 1\nX = 2": rf": {LAB}\.services\.X: a service's name is no port, no GUID, and there",
    "\n".join(f"[profiles.p{number}]" for number in range(65)): r": profiles: there are at most 64, not 65",
    f"[{LAB}.vms]\n" + "\n".join(f"x{number} = {{}}" for number in range(MAX_VMS + 1)): "there are at most 1024",
    f"[{LAB}.services]\n" + "\n".join(f"x{number} = 1" for number in range(1025)): "there are at most 1024",
}


@pytest.mark.parametrize("text", MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes(text: str) -> None:
    with pytest.raises(UsageError, match=MISTAKES[text]) as caught:
        parse(text, FILE)
    message = str(caught.value)
    assert message.startswith(f"{FILE}: ")
    assert message.isprintable()
    assert len(message) < 400


KEYS = st.sampled_from(
    ["profile", "profiles", "lab", "transport", "vmm", "vms", "services", "id", "cid", "path", "guests", "x", ""]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=8), st.just("hybrid"), st.just("/x")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@example({"profiles": {"lab": {"vms": {"x": {"cid": 10**5000}}}}})
@example({"profiles": {"lab": {"services": {"x": 10**5000}}}})
def test_whatever_is_in_it_there_is_one_kind_of_error(values: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tomllib, "loads", lambda _: values)
        try:
            parse("", FILE)
        except UsageError as error:
            assert str(error).startswith(FILE)  # noqa: PT017
            assert str(error).isprintable()  # noqa: PT017


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    try:
        parse(text, FILE)
    except UsageError as error:
        assert str(error).startswith(FILE)  # noqa: PT017


def test_ids_of_what_has_none() -> None:
    assert vm_id_of_cid(1) == HV_GUID_LOOPBACK
    assert vm_id_of_cid(2) == HV_GUID_PARENT
    assert vm_id_of_cid(77) == VmId.from_cid(77)
    assert vm_id_of_path("/a") == vm_id_of_path("/a") != vm_id_of_path("/b")
    assert vm_id_of_path("/a").cid is None
    assert vm_id_of_path("/\udcff")[14] == "8"


MANY_DOTS = "a." * (MAX_KEY_DOTS + 1) + "b"


@pytest.mark.parametrize(
    "text",
    [
        f"# one\n\n{MANY_DOTS} = 1",
        f"# one\n\n[{MANY_DOTS}]",
        "# one\n\n" + "a." * 130_000 + "b = 1",
        "# one\n\n" + "'a' . \"a\" . " * MAX_KEY_DOTS + "b = 1",
        f'# one\nx = {{y = """\n""", {MANY_DOTS} = 1}} # "',
        f'# one\nx = {{y = """\n""""", {MANY_DOTS} = 1}} # "',
        f"# one\nx = {{y = '''\n#\\'''', {MANY_DOTS} = 1}} # '",
        f'# """\n\nx = {{y = "\\"#", {MANY_DOTS} = 1}}',
    ],
    ids=range(8),
)
def test_keys_with_more_dots_than_tomllib_can_take(text: str) -> None:
    with pytest.raises(UsageError, match=rf"^{re.escape(FILE)}: line 3: a key has at most 64 dots$"):
        parse(text, FILE)


def test_dots_that_are_not_a_keys() -> None:
    dots = "." * (MAX_KEY_DOTS + 1)
    many = ", ".join(f"x{number}.cid = {number}" for number in range(3, MAX_KEY_DOTS + 9))
    found = parse(
        f'# {dots}\nprofiles.default.vms = {{{many}, a.path = \'/{dots}a\', b.path = "/\\"{dots}a"}} # {dots}',
        FILE,
    )
    assert len(found.chosen(None).vms) == MAX_KEY_DOTS + 8


@pytest.mark.parametrize("piece", ['"', "'", '"""', "'''", '\\"""\n', '\\"', "#", "a", "[", '"\\', "'''\\\n"])
@pytest.mark.parametrize("end", ["", "\\", '"'])
def test_texts_without_an_end_take_no_time(piece: str, end: str) -> None:
    """The time-out of tests is what would tell."""
    with pytest.raises(UsageError):
        parse('x = 1\n"""\n' + piece * (MAX_FILE_BYTES // len(piece) - 10) + end, FILE)
