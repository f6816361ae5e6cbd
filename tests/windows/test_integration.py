"""What is enabled for a VM, from a PowerShell that a test plays."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import HvsockError, NotFoundError, NotReadyError, RefusedError, RemoteError
from hvsock.windows import integration, powershell
from hvsock.windows.integration import Component, GuestService, Policy

VM = VmId("24a3451c-4180-42bd-83a7-6880374e886c")
SERVICE = ServiceId("00000ac9-facb-11e6-bd58-64006a7986d3")


class Shell:
    """Answers as it is told, and keeps what it was asked."""

    def __init__(self, *found: Any) -> None:
        self.found = found
        self.script = ""

    def __call__(self, script: str) -> list[Any]:
        self.script = script
        assert script.isascii()
        assert script.count("{") == script.count("}")
        assert "{{" not in script
        return list(self.found)


def test_guest_services() -> None:
    shell = Shell({"id": f"{{{str(SERVICE).upper()}}}", "policy": 3}, {"id": str(SERVICE), "policy": 8})
    assert integration.guest_services(VM, shell) == [
        GuestService(SERVICE, Policy.DISABLED),
        GuestService(SERVICE, Policy.DEFERRED),
    ]
    assert f"VirtualSystemIdentifier='{str(VM).upper()}'" in shell.script
    assert r"'root\virtualization\v2'" in shell.script
    assert integration.guest_services(VM, Shell()) == []


@pytest.mark.parametrize("policy", Policy)
def test_setting_one(policy: Policy) -> None:
    shell = Shell({"code": 0, "why": ""})
    integration.set_guest_service(VM, SERVICE, policy, shell)
    assert f"$one.Name = '{SERVICE}'" in shell.script
    assert shell.script.count(f"[uint16]{policy:d}") == 2


@pytest.mark.parametrize(
    ("code", "kind"), [(32769, RefusedError), (32775, NotReadyError), (5, NotReadyError), (2, RemoteError)]
)
def test_what_windows_does_not_do(code: int, kind: type[HvsockError]) -> None:
    with pytest.raises(kind, match=rf"'No\.' \(code {code}\)"):
        integration.set_guest_service(VM, SERVICE, Policy.ENABLED, Shell({"code": code, "why": "No."}))


def test_components() -> None:
    one = {"id": "Microsoft:X\\Y", "name": "Gastdienst", "enabled": False, "status": ""}
    shell = Shell(one)
    assert integration.components(VM, shell) == [Component("Microsoft:X\\Y", "Gastdienst", False, "")]
    assert f"-eq '{VM}'" in shell.script


def ask_all(ask: integration.Ask) -> list[type[HvsockError]]:
    """What each of the questions fails with."""
    kinds = []
    for call in (
        partial(integration.guest_services, VM),
        partial(integration.set_guest_service, VM, SERVICE, Policy.ENABLED),
        partial(integration.components, VM),
    ):
        with pytest.raises(HvsockError) as caught:
            call(ask)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
        kinds.append(caught.type)
    return kinds


def test_an_unknown_vm() -> None:
    assert ask_all(Shell({"unknown": True})) == [NotFoundError] * 3


@pytest.mark.parametrize(
    "found",
    [
        None,
        7,
        "x" * 10_000,
        [],
        {},
        {"id": 7, "policy": 2},
        {"id": "none", "policy": 2, "name": "x", "enabled": 1, "status": "x", "code": "0", "why": ""},
        {"id": str(SERVICE), "policy": True, "name": None, "enabled": True, "status": "", "code": True, "why": ""},
        {"id": str(SERVICE), "policy": 4, "code": None, "why": "line\nline"},
    ],
)
def test_mangled_answers(found: Any) -> None:
    assert ask_all(Shell(found)) == [RemoteError] * 3


@pytest.mark.parametrize(("how", "kind"), [("denied", RefusedError), ("module", NotReadyError)])
def test_errors_of_powershell(how: str, kind: type[HvsockError]) -> None:
    program = (sys.executable, "-S", "-E", str(Path(__file__).with_name("fake_powershell.py")), how)
    assert ask_all(partial(powershell.ask, program=program)) == [kind] * 3
