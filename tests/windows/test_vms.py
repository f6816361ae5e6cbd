"""The VMs of a Windows host by name, from programs that a test plays."""

from __future__ import annotations

import ntpath
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hvsock.addresses import HV_GUID_PARENT, Address, ServiceId, VmId
from hvsock.errors import HvsockError, NotFoundError, NotReadyError, RefusedError, RemoteError, UsageError
from hvsock.windows import names, powershell, programs, vms
from hvsock.windows.registry import WindowsRegistry
from hvsock.windows.vms import Vm
from tests.windows.fake_winreg import FakeWinreg

ID = VmId("24a3451c-4180-42bd-83a7-6880374e886c")
OTHER = VmId("de1517ec-bf1d-5a0b-b459-77a48cb1ad97")
WSL_ID = VmId("ab1517ec-bf1d-5a0b-b459-77a48cb1ad98")
HCSDIAG = f"""\
{str(ID).upper()}
    VM,                       \tRunning, {str(ID).upper()}, VMMS
cowork-vm-1699151a
    VM,                       \tRunning, {str(OTHER).upper()}, cowork-vm-1699151a
{WSL_ID}
    VM,                       \tRunning, {str(WSL_ID).upper()}, WSL
container
    Windows Server Container, \tRunning, 11111111-2222-3333-4444-555555555555, container
"""
"""As hcsdiag prints it: the name of a system, then a line of what it is."""


def shell(how: str) -> tuple[str, ...]:
    """A PowerShell that answers so."""
    return (sys.executable, "-S", "-E", str(Path(__file__).with_name("fake_powershell.py")), how)


def saying(text: str | bytes) -> Callable[[tuple[str, ...]], bytes]:
    """A program that says that."""
    return lambda _: text if isinstance(text, bytes) else text.encode()


def test_get_vm() -> None:
    found = vms.by_powershell(partial(powershell.ask, program=shell("vms")))
    assert found == [Vm(ID, "wéb01", "Running")]


def test_the_script_that_powershell_gets() -> None:
    (script,) = powershell.ask(vms.GET_VM, shell("script"))
    assert f"$found = @(& {{ {vms.GET_VM} }})" in script
    assert script.index("$ErrorActionPreference = 'Stop'") < script.index("Get-VM")


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("denied", RefusedError, "You may not. .*Hyper-V Administrators"),
        ("module", NotReadyError, "Microsoft-Hyper-V-Management-PowerShell"),
        ("failed", RemoteError, "^PowerShell says: It broke.$"),
        ("other", RemoteError, "something else: "),
        ("nonsense", RemoteError, "not answer in JSON, but .*At line:1 char:1"),
        ("strange", RemoteError, "something that is no VM"),
    ],
)
def test_answers_that_are_none(how: str, kind: type[HvsockError], text: str) -> None:
    with pytest.raises(kind, match=text):
        vms.by_powershell(partial(powershell.ask, program=shell(how)))


def test_time_is_bounded() -> None:
    with pytest.raises(NotReadyError, match=r"did not answer in 0\.2 s"):
        powershell.ask("1", shell("silent"), 0.2)


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MAX_ANSWER_BYTES", 100_000)
    with pytest.raises(RemoteError, match="more than 100000 bytes"):
        powershell.ask("1", shell("endless"))


def test_programs_are_those_of_windows() -> None:
    """Whatever lies in the current folder."""
    for program in (powershell.PROGRAM, vms.HVC, vms.HCSDIAG, vms.WSLINFO):
        assert ntpath.isabs(program[0])
        assert "system32" in program[0].lower()


def test_no_such_program() -> None:
    with pytest.raises(NotReadyError, match=r"^powershell-that-is-not-there cannot be run: "):
        powershell.ask("1", ("powershell-that-is-not-there",))


def test_hvc() -> None:
    """As OpenVMM reads it: the id, alone; it says what goes wrong elsewhere, and nothing here."""
    asked: list[tuple[str, ...]] = []

    def hvc(arguments: tuple[str, ...]) -> bytes:
        asked.append(arguments)
        return f"{ID.upper()}\r\n".encode() if arguments[-1] == "wéb 01" else b""

    assert vms.by_hvc("wéb 01", hvc) == [Vm(ID, "wéb 01", vms.UNKNOWN)]
    assert vms.by_hvc("none", hvc) == []
    assert asked == [(*vms.HVC, "wéb 01"), (*vms.HVC, "none")]
    for text in (f"{ID}\r\n{OTHER}\r\n", "Usage: hvc <command>"):
        with pytest.raises(RemoteError, match=r"^hvc says: '"):
            vms.by_hvc("twin", saying(text))


@pytest.mark.parametrize("name", ["-?", "/help", "a\0b"])
def test_what_hvc_is_not_asked_for(name: str) -> None:
    with pytest.raises(NotReadyError, match="cannot be asked for"):
        vms.by_hvc(name, saying(str(ID)))


def test_hcsdiag() -> None:
    assert vms.by_hcsdiag(saying(HCSDIAG.replace("\n", "\r\n"))) == [
        Vm(OTHER, "cowork-vm-1699151a", "Running"),
        Vm(WSL_ID, "WSL", "Running"),
    ]
    assert vms.by_hcsdiag(saying("")) == []
    with pytest.raises(RemoteError, match="hcsdiag says: 'Only administrators"):
        vms.by_hcsdiag(saying("Only administrators or users that are members of the group are permitted\r\n"))


def test_wslinfo() -> None:
    assert vms.by_wslinfo(saying(str(WSL_ID).upper())) == [Vm(WSL_ID, "WSL", "Running")]
    with pytest.raises(RemoteError, match=r"wsl --update.*invalid option"):
        vms.by_wslinfo(saying("invalid option".encode("utf-16-le")))


def failing(error: HvsockError) -> Callable[[str], list[Vm]]:
    """A source that cannot be asked."""

    def source(name: str) -> list[Vm]:
        raise error

    return source


def test_find(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(name: str) -> list[Vm]:
        return [Vm(ID, "Web01", "Off"), Vm(OTHER, "twin", "Off"), Vm(WSL_ID, "TWIN", "Off")]

    def second(name: str) -> list[Vm]:
        return [Vm(OTHER, "cowork", "Running")]

    assert vms.find("web01", (first, second)).id == ID
    assert vms.find("COWORK", (first, second)).id == OTHER
    assert vms.find("cowork", (failing(RefusedError("no")), second)).id == OTHER
    with pytest.raises(NotFoundError, match=rf"2 VMs are called 'twin'; .*{OTHER}, {WSL_ID}"):
        vms.find("twin", (first, second))
    with pytest.raises(NotFoundError, match=r"^this host has no VM 'none'$"):
        vms.find("none", (first, second))
    with pytest.raises(NotFoundError, match=r"no VM 'none'; not all could be asked: no; nor this$"):
        vms.find("none", (failing(RefusedError("no")), failing(NotReadyError("nor this"))))
    monkeypatch.setattr(vms, "by_wslinfo", lambda: [Vm(WSL_ID, "WSL", "Running")])
    assert vms.find("wsl", (failing(RefusedError("never asked")),)).id == WSL_ID


def test_resolve() -> None:
    winreg = FakeWinreg()
    registry = WindowsRegistry(winreg)
    entry = registry.register("HV Socket Demo")
    asked: list[str] = []

    def find(name: str) -> Vm:
        asked.append(name)
        return Vm(ID, name, "Running")

    resolve = partial(names.resolve, registry=registry, find_vm=find)
    assert resolve("hvsocket://web01/HV%20Socket%20Demo") == Address(ID, entry.id)
    assert resolve(("parent", "hv socket demo")) == Address(HV_GUID_PARENT, entry.id)
    assert resolve((str(OTHER), "2761")) == Address(OTHER, ServiceId.from_port(2761))
    assert asked == ["web01"]
    with pytest.raises(UsageError, match="not an address"):
        resolve("web01")
    with pytest.raises(NotFoundError, match="no service 'other' is registered"):
        resolve(("parent", "other"))
    with pytest.raises(NotFoundError, match="in a guest, give the service's GUID or port"):
        names.resolve(("parent", "demo"), WindowsRegistry(FakeWinreg(hyper_v=False)))
