"""The VMs that a process knows: whom it asks, how often, and what it does not believe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hvsock.addresses import ServiceId, VmId
from hvsock.config import files
from hvsock.config.settings import Guests, Settings, Vm, vm_id_of_path
from hvsock.errors import BusyError, HvsockError, NotFoundError, NotReadyError, ProtocolError, UsageError

assert sys.platform == "linux"

from hvsock.machines import known, sources
from hvsock.machines.qemu import MAX_STATUS_BYTES, parse_uids
from tests.machines.test_parsers import DEVICE, DOMAIN, PROGRAM, UUID, line

ID, OTHER = VmId(UUID), VmId("00000001-9bbd-45e0-b56a-823244e51922")
Configure = Callable[[str], None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configure:
    """Gives this process a configuration with a profile of that text."""

    def write(text: str) -> None:
        file = tmp_path / f"{os.urandom(4).hex()}.toml"
        file.write_text(f"[profiles.default]\n{text}", encoding="utf-8")
        monkeypatch.setenv("HVSOCK_CONFIG", str(file))

    return write


def processes(folder: Path, *lines: bytes, uids: str | None = None) -> str:
    """A folder as /proc, with processes of this user, or of those `uids`."""
    uids = uids or "\t".join([str(os.geteuid())] * 4)
    for number, data in enumerate(lines, 1):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "status").write_text(f"Name:\tqemu\nUid:\t{uids}\nGid:\t0\t0\t0\t0\n")
        (folder / str(number) / "cmdline").write_bytes(data)
    (folder / "self").mkdir()
    (folder / "99").mkdir()  # it ended
    return str(folder)


def qemu(cid: int, uuid: str) -> bytes:
    return line(PROGRAM, "-uuid", uuid, *DEVICE).replace(b"guest-cid=3", b"guest-cid=%d" % cid)


def test_processes_of_those_who_count(tmp_path: Path) -> None:
    folder = processes(tmp_path / "proc", qemu(3, UUID), line("sh"), qemu(4, OTHER))
    found = list(sources.of_processes(frozenset({os.geteuid()}), folder))
    assert sorted(vm.cid or 0 for vm in found) == [3, 4]
    assert list(sources.of_processes(frozenset({os.geteuid() + 1}), folder)) == []


@pytest.mark.parametrize("uids", ["1\t0\t0\t0", "0\t1\t0\t0", "0\t0\t1\t0", "0\t0\t0\t1", "0\t0\t0", ""])
def test_a_process_that_somebody_else_started(uids: str, tmp_path: Path) -> None:
    """As by ``exec -a qemu-system-x86_64 su``: root's to the kernel, whose command line is somebody else's."""
    folder = processes(tmp_path / "proc", qemu(3, UUID), uids=uids or "?")
    assert list(sources.of_processes(frozenset({0, os.geteuid()}), folder)) == []


def test_the_user_ids_of_this_process() -> None:
    with open("/proc/self/status", "rb") as file:
        assert parse_uids(file.read(MAX_STATUS_BYTES)) == {*os.getresuid()}


def test_the_processes_of_this_machine_can_be_read() -> None:
    list(sources.of_processes(frozenset({0, os.geteuid()})))


def test_where_two_claim_one_neither_is_believed() -> None:
    sure = Vm("c", VmId.new(), 5)
    assert sources.unambiguous([Vm("a", ID, 3), Vm("b", OTHER, 3), sure]) == (sure,)
    assert sources.unambiguous([Vm("a", ID, 3), Vm("b", ID, 4), sure]) == (sure,)


def virsh(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a virsh into PATH."""
    program = folder / "virsh"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


LIBVIRT = Settings(guests=Guests.LIBVIRT)
HEALTHY = f"""
[ "$1 $2 $3 $4" = "--readonly --quiet --connect qemu:///system" ] || exit 9
[ "$LC_ALL" = C ] || exit 9
case "$5" in
list) echo {UUID}; echo {OTHER}; echo ;;
dumpxml) [ "$6" = {UUID} ] || {{ echo "error: failed to get domain" >&2; exit 1; }}
cat <<'END'
{DOMAIN}
END
esac
"""
"""The second domain ends between the two questions."""


def test_libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    virsh(tmp_path, HEALTHY, monkeypatch)
    assert sources.guests(LIBVIRT) == (Vm("web01", ID, 3),)


@pytest.mark.skipif(
    shutil.which("virsh") is None, reason="virsh is not there; as root: apt-get install libvirt-clients"
)
def test_the_real_virsh(tmp_path: Path) -> None:
    """With libvirt's driver for tests, which has domains from a file and needs no daemon."""
    devices = "<devices><vsock><cid auto='no' address='7'/></vsock></devices>"
    file = tmp_path / "node.xml"
    file.write_text(
        f"<node>{domain(UUID, 'web01', devices)}{domain(OTHER, 'no vsock', '')}</node>", encoding="utf-8"
    )
    settings = LIBVIRT._replace(libvirt=f"test://{file}")
    assert sources.guests(settings) == (Vm("web01", ID, 7),)
    with pytest.raises(NotReadyError, match="virsh list failed at test:///nonesuch"):
        sources.guests(LIBVIRT._replace(libvirt="test:///nonesuch"))


def domain(uuid: str, name: str, devices: str) -> str:
    """A domain as libvirt's driver for tests takes it."""
    return f"""<domain type="test"><name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory>
    <os><type>hvm</type></os>{devices}</domain>"""


@pytest.mark.parametrize(
    ("script", "kind", "why"),
    [
        ("echo 'error: no connection' >&2; exit 1", NotReadyError, "virsh list failed at qemu:///system: no conn"),
        ("exit 3", NotReadyError, "virsh list failed at qemu:///system: it says nothing"),
        ("echo web01", ProtocolError, "no UUID"),
        (r"printf '\377'", ProtocolError, "not UTF-8"),
        (f"[ $5 = list ] && echo {UUID}", ProtocolError, "a domain's XML is none"),
    ],
)
def test_what_libvirt_says_otherwise(
    script: str, kind: type[HvsockError], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    virsh(tmp_path, script + "\nexit 0" * ("exit" not in script), monkeypatch)
    with pytest.raises(kind, match=why):
        sources.guests(LIBVIRT)


def test_no_virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotReadyError, match="virsh, which is not installed: apt-get install libvirt-clients"):
        sources.guests(LIBVIRT)


def test_a_virsh_that_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "virsh").write_bytes(b"\x7fELF and no more")
    (tmp_path / "virsh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotReadyError, match="virsh, which cannot be run: Exec format error"):
        sources.guests(LIBVIRT)


def test_processes_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match=r"QEMUs are looked for in .*none, which cannot be read: No such file"):
        list(sources.of_processes(frozenset({0}), str(tmp_path / "none")))


def test_a_virsh_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    virsh(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(sources, "VIRSH_SECONDS", 0.1)
    with pytest.raises(NotReadyError, match=r"virsh list did not end within 0.1 s"):
        sources.guests(LIBVIRT)


class Virsh:
    """A virsh that takes `seconds` of a clock of its own for each call, and tells of many domains."""

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.allowed = list[float]()
        self._seconds = seconds
        monkeypatch.setattr(sources, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(self, command: list[str], *, timeout: float, **_: object) -> subprocess.CompletedProcess[bytes]:
        self.allowed.append(timeout)
        seconds = self._seconds if "dumpxml" in command else 0.0
        self.now += min(seconds, timeout)
        if seconds > timeout:
            raise subprocess.TimeoutExpired(command, timeout)
        text = DOMAIN if "dumpxml" in command else f"{UUID}\n" * 1024
        return subprocess.CompletedProcess(command, 0, text.encode(), b"")


def test_a_domain_that_is_not_told_of_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its VM would be taken for one that ended."""
    played = Virsh(11.0, monkeypatch)
    with pytest.raises(NotReadyError, match="virsh dumpxml did not end within 10 s"):
        sources.guests(LIBVIRT)
    assert played.allowed == [10.0, 10.0]


def test_all_domains_have_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Virsh(7.5, monkeypatch)
    with pytest.raises(NotReadyError, match="did not tell of all VMs of qemu:///system within 30 s"):
        sources.guests(LIBVIRT)
    assert played.allowed == [10.0, 10.0, 10.0, 10.0, 7.5]
    assert played.now == sources.LIBVIRT_SECONDS


def test_users_whose_qemus_count() -> None:
    with pytest.raises(UsageError, match=r"F: profiles.x.qemu_users: there is no user 'nobody here' on"):
        sources.guests(Settings("F: profiles.x", guests=Guests.QEMU, qemu_users=("nobody here",)))
    sources.guests(Settings(guests=Guests.QEMU, qemu_users=("root", "12345")))


def test_an_answer_is_good_for_a_while() -> None:
    now, asked = [0.0], list[Settings]()

    def ask(settings: Settings) -> tuple[Vm, ...]:
        asked.append(settings)
        if len(asked) == 3:
            raise NotReadyError("later")
        return ()

    running = known.Running(ask, lambda: now[0])
    one, other = Settings(where="one"), Settings(where="other")
    running.now(one)
    running.now(one)
    assert len(asked) == 1
    running.now(other)
    assert len(asked) == 2
    now[0] += known.FRESH_SECONDS
    with pytest.raises(NotReadyError):
        running.now(other)
    running.now(other)
    assert len(asked) == 4


class TestOfTheConfiguration:
    def test_by_name_id_and_cid(self, configure: Configure) -> None:
        configure(f"[profiles.default.vms.web01]\nid='{ID}'\ncid=3\n[profiles.default.services]\nEcho=5")
        vm = Vm("web01", ID, 3)
        assert known.named("WEB01") == known.with_id(ID) == known.with_cid(3) == vm
        assert known.id_of_cid(3) == ID
        assert known.id_of_cid(4) is None
        assert known.with_id(OTHER) is None
        assert known.service_named("ECHO") == ServiceId.from_port(5)
        assert known.service_named("other") is None
        assert not known.is_host()
        with pytest.raises(NotFoundError, match=r"no VM is called 'x'; see .*toml: profiles.default.vms"):
            known.named("x")

    def test_without_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(NotFoundError, match=r"'x'; HVSOCK_CONFIG is /dev/null: have it name a configuration"):
            known.named("x")
        monkeypatch.delenv("HVSOCK_CONFIG")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        monkeypatch.setattr(files, "_FOR_ALL", str(tmp_path / "all.toml"))
        with pytest.raises(
            NotFoundError,
            match=rf"write a configuration with profiles.default.vms: {tmp_path}/hvsock/config.toml or",
        ):
            known.named("x")

    def test_guests_of_libvirt(
        self, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        virsh(tmp_path, HEALTHY, monkeypatch)
        configure("guests='libvirt'\n[profiles.default.vms.WEB01]\ncid=9")
        assert known.is_host()
        assert known.with_cid(3) == Vm("web01", ID, 3)
        with pytest.raises(NotFoundError, match="2 VMs are called 'web01': give the VmId of one"):
            known.named("web01")

    def test_nobody_can_be_asked(
        self, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        virsh(tmp_path, "exit 3", monkeypatch)
        configure("guests='libvirt'")
        assert known.id_of_cid(3) is None
        with pytest.raises(NotReadyError):
            known.with_id(ID)

    def test_paths(self, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
        configure("vmm='openvmm'\n[profiles.default.vms.web01]\npath='/run/a'")
        assert known.at_path("/run/a", None).name == known.at_path("/run/a", "openvmm").name == "web01"
        other = known.at_path("/run/b", None)
        assert other == Vm("/run/b", vm_id_of_path("/run/b"), None, "/run/b", "openvmm")
        assert known.with_id(other.id) == other
        assert known.at_path("b", "firecracker").path == os.path.abspath("b")
        monkeypatch.setattr(known, "MAX_PATHS", 2)
        assert known.at_path("/run/b", "firecracker").vmm == "firecracker"
        with pytest.raises(BusyError, match="2 paths of VMMs, the most"):
            known.at_path("/run/c", None)
