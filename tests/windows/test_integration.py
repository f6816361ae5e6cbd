"""What is enabled for a VM, from a PowerShell that a test plays."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import HvsockError, NotFoundError, NotReadyError, RefusedError, RemoteError
from hvsock.windows import components, integration, powershell
from hvsock.windows.components import Component
from hvsock.windows.integration import Policy, VmPolicy

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


@pytest.mark.parametrize("policy", Policy)
def test_setting_one(policy: Policy) -> None:
    shell = Shell({"code": 0, "why": ""})
    integration.set_guest_service(VM, SERVICE, policy, shell)
    assert f"$one.Name = '{SERVICE}'" in shell.script
    assert f"VirtualSystemIdentifier='{str(VM).upper()}'" in shell.script
    assert r"'root\virtualization\v2'" in shell.script
    assert shell.script.count(f"[uint16]{policy:d}") == 2


@pytest.mark.parametrize(
    ("code", "kind"), [(32769, RefusedError), (32775, NotReadyError), (5, NotReadyError), (2, RemoteError)]
)
def test_what_windows_does_not_do(code: int, kind: type[HvsockError]) -> None:
    with pytest.raises(kind, match=rf"'No\.' \(code {code}\)"):
        integration.set_guest_service(VM, SERVICE, Policy.ENABLED, Shell({"code": code, "why": "No."}))


def test_taking_one_back() -> None:
    shell = Shell({"code": 0, "why": ""})
    integration.remove_guest_service(VM, SERVICE, shell)
    assert f"Where-Object {{ $_.Name -eq '{SERVICE}' }}" in shell.script
    assert "$manager.RemoveGuestServiceSettings(@($one.Path.Path))" in shell.script
    assert "AddGuestServiceSettings" not in shell.script


def test_the_policies_of_a_service() -> None:
    shell = Shell({"id": str(VM).upper(), "name": "wéb01", "policy": 2})
    assert integration.policies_of(SERVICE, shell) == [VmPolicy(VM, "wéb01", Policy.ENABLED)]
    assert f"Where-Object {{ $_.Name -eq '{SERVICE}' }}" in shell.script
    for found in (7, {}, {"id": str(VM), "name": 7, "policy": 2}, {"id": str(VM), "name": "x", "policy": 4}):
        with pytest.raises(RemoteError, match="no VM's policy"):
            integration.policies_of(SERVICE, Shell(found))


def component(**changes: Any) -> dict[str, Any]:
    """A component as the script tells it."""
    made = {"id": f"Microsoft:{VM}\\{GUID.upper()}", "name": "Gastdienst", "enabled": False}
    return {**made, "primary": "OK", "secondary": "", **changes}


GUID = "6c09bb55-d683-4da0-8931-c9bf705f6480"


def test_components() -> None:
    shell = Shell(component())
    assert components.listed(VM, shell) == [Component(GUID, "Gastdienst", False, "OK", "")]
    assert f"-eq '{VM}'" in shell.script


@pytest.mark.parametrize(
    "changes", [{"id": "x"}, {"id": None}, {"name": 7}, {"enabled": 1}, {"primary": None}, {"secondary": []}]
)
def test_mangled_components(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteError, match="something that is none"):
        components.listed(VM, Shell(component(**changes)))


def test_a_component_by_name_in_any_language() -> None:
    one, other = Component(GUID, "Gastdienst", True, "", ""), Component(str(SERVICE), "Anderer", True, "", "")
    for wanted in ("gastdienst", "GASTDIENST", "Guest Service Interface", GUID.upper(), f"{{{GUID}}}"):
        assert components.find([one, other], wanted) == one
    with pytest.raises(NotFoundError, match="it has 'Gastdienst', 'Anderer'"):
        components.find([one, other], "Takt")
    with pytest.raises(NotFoundError, match=r"several .*GUID"):
        components.find([one, other._replace(name="GASTDIENST")], "gastdienst")


def test_switching_a_component() -> None:
    one = Component(GUID, "'; Remove-VM", True, "", "")
    for enabled, verb in ((True, "Enable"), (False, "Disable")):
        shell = Shell()
        components.set_enabled(VM, one, enabled, shell)
        assert f"{verb}-VMIntegrationService -VMIntegrationService $one[0]" in shell.script
        assert f"-like '*\\{GUID}'" in shell.script
        assert "Remove-VM" not in shell.script
    with pytest.raises(NotFoundError, match="any more"):
        components.set_enabled(VM, one, True, Shell({"missing": True}))
    with pytest.raises(RemoteError, match="said something"):
        components.set_enabled(VM, one, True, Shell(1))


def ask_all(ask: integration.Ask) -> list[type[HvsockError]]:
    """What each of the questions fails with."""
    kinds = []
    for call in (
        partial(integration.policies_of, SERVICE),
        partial(integration.set_guest_service, VM, SERVICE, Policy.ENABLED),
        partial(integration.remove_guest_service, VM, SERVICE),
        partial(components.listed, VM),
    ):
        with pytest.raises(HvsockError) as caught:
            call(ask)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
        kinds.append(caught.type)
    return kinds


def test_an_unknown_vm() -> None:
    assert ask_all(Shell({"unknown": True})) == [RemoteError, *[NotFoundError] * 3]  # the first asks of no VM


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
    assert ask_all(Shell(found)) == [RemoteError] * 4


@pytest.mark.parametrize(("how", "kind"), [("denied", RefusedError), ("module", NotReadyError)])
def test_errors_of_powershell(how: str, kind: type[HvsockError]) -> None:
    program = (sys.executable, "-S", "-E", str(Path(__file__).with_name("fake_powershell.py")), how)
    assert ask_all(partial(powershell.ask, program=program)) == [kind] * 4
