"""The registry of services in the key of Windows, over a fake of winreg."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest

from hvsock.addresses import ServiceId
from hvsock.errors import DuplicateError, NoFabricError, NotFoundError, RefusedError, UsageError
from hvsock.registry.formats import GUEST_COMMUNICATION_SERVICES
from hvsock.windows.registry import WindowsRegistry
from tests.windows.fake_winreg import GUEST_SERVICES, NOW, FakeWinreg

GUID = "b5f9a3d6-0f5c-4a51-a86a-5a5a60e2e8cd"
OTHER = "00000ac9-facb-11e6-bd58-64006a7986d3"
SESSION = "999E53D4-3D5C-4C3E-8779-BED06EC056E1"


@pytest.fixture
def winreg() -> FakeWinreg:
    """That of a host that has the service of PowerShell Direct."""
    fake = FakeWinreg()
    fake.service(SESSION, ElementName="VM Session Service")
    return fake


@pytest.fixture
def registry(winreg: FakeWinreg) -> WindowsRegistry:
    """An elevated process's."""
    return WindowsRegistry(winreg)


def test_the_key(registry: WindowsRegistry) -> None:
    assert GUEST_COMMUNICATION_SERVICES == GUEST_SERVICES
    assert registry.path == rf"HKEY_LOCAL_MACHINE\{GUEST_SERVICES}"


def test_in_box_services_are_listed_and_stay(registry: WindowsRegistry) -> None:
    (entry,) = registry.entries()
    assert (entry.id, entry.name, entry.inbox) == (SESSION, "VM Session Service", True)
    assert datetime.fromtimestamp(entry.changed, UTC).year == 2024
    for key in (SESSION, "vm session service"):
        with pytest.raises(RefusedError, match="stays registered"):
            registry.unregister(key)


@pytest.mark.parametrize("name", ["HV Socket Demo", "Услуга", "服務", "خدمة", "O'Brien's \"$x\""])
def test_register_find_and_unregister(winreg: FakeWinreg, name: str) -> None:
    with WindowsRegistry(winreg) as registry:
        entry = registry.register(name, GUID.upper())
        assert (entry.id, entry.name, entry.inbox, entry.port_alias) == (GUID, name, False, None)
        key = winreg.service(GUID)
        assert key.name == GUID
        assert key.values == {"ElementName": (name, winreg.REG_SZ)}
        assert registry.entries() == sorted(registry.entries(), key=lambda one: one.name.casefold())
        assert registry.find(GUID.upper()) == registry.find(name.upper()) == registry.get(ServiceId(GUID)) == entry
        assert registry.unregister(name.lower()) == entry
        assert registry.get(ServiceId(GUID)) is None
    assert not any(handle.open for handle in winreg.handles)


def test_a_fresh_id_and_ports(registry: WindowsRegistry) -> None:
    first, second = registry.register("one"), registry.register("two", OTHER)
    assert first.id != second.id
    assert registry.find("2761") == registry.find("0xAC9") == second


def test_keys_of_other_programs_keep_their_spelling(winreg: FakeWinreg, registry: WindowsRegistry) -> None:
    winreg.service(GUID.upper(), ElementName="Loud")
    assert registry.find("loud").id == GUID
    with pytest.raises(DuplicateError, match="registered already, as 'Loud'"):
        registry.register("quiet", GUID)
    with pytest.raises(DuplicateError, match=f"the name 'Loud' is in use, by {GUID}"):
        registry.register("LOUD")
    registry.unregister(GUID)
    assert [entry.name for entry in registry.entries()] == ["VM Session Service"]


def test_what_is_no_service_is_told_and_left_alone(winreg: FakeWinreg, registry: WindowsRegistry) -> None:
    winreg.service(f"{{{GUID}}}", ElementName="Braced")
    winreg.service("2761", ElementName="A port")
    winreg.service(OTHER)
    winreg.service("00000001-facb-11e6-bd58-64006a7986d3").values["ElementName"] = (7, winreg.REG_DWORD)
    winreg.service("00000002-facb-11e6-bd58-64006a7986d3", ElementName="two\nlines")
    assert [entry.name for entry in registry.entries()] == ["VM Session Service"]
    odd = registry.oddities()
    assert len(odd) == 5
    assert sum("no bare GUID" in line for line in odd) == 2
    assert f"the key {OTHER} is no service: it has no ElementName" in odd
    assert any("REG_SZ" in line for line in odd)
    assert any("U+000A" in line for line in odd)
    # what a crash left is completed; a name that is none of ours is not lost
    assert registry.register("completed", OTHER).name == "completed"
    with pytest.raises(DuplicateError, match=r"as 'two\\nlines'"):
        registry.register("other", "00000002-facb-11e6-bd58-64006a7986d3")


def test_who_is_not_elevated_reads_and_is_told_what_to_run(winreg: FakeWinreg) -> None:
    winreg.service(GUID, ElementName="Demo")
    winreg.elevated = False
    registry = WindowsRegistry(winreg)
    assert registry.find("demo").id == GUID
    with pytest.raises(RefusedError) as caught:
        registry.register("O'Brien\u2019s", OTHER)
    assert str(caught.value) == (
        "only administrators may change the services of this host; in an elevated prompt "
        "(Start-Process powershell -Verb RunAs) run: "
        f"(New-Item 'HKLM:\\{GUEST_COMMUNICATION_SERVICES}\\{OTHER}' -Force)"
        ".SetValue('ElementName', 'O''Brien\u2019\u2019s')"
    )
    with pytest.raises(RefusedError) as caught:
        registry.unregister("demo")
    assert str(caught.value).endswith(f" run: Remove-Item 'HKLM:\\{GUEST_COMMUNICATION_SERVICES}\\{GUID}'")
    assert not any(handle.open for handle in winreg.handles)


def test_without_hyper_v() -> None:
    registry = WindowsRegistry(FakeWinreg(hyper_v=False))
    for function in (registry.entries, registry.oddities):
        with pytest.raises(NoFabricError, match="Enable-WindowsOptionalFeature"):
            function()
    with pytest.raises(NoFabricError):
        registry.register("demo")


def test_a_32_bit_python_sees_the_same(winreg: FakeWinreg) -> None:
    winreg.bits = 32
    registry = WindowsRegistry(winreg)
    registry.register("demo", GUID)
    assert len(registry.entries()) == 2
    assert not winreg.hives[32].keys
    registry.unregister("demo")


def test_mistakes(winreg: FakeWinreg, registry: WindowsRegistry) -> None:
    with pytest.raises(UsageError, match="not a GUID"):
        registry.register("demo", "none")
    with pytest.raises(UsageError, match="cannot be a GUID or a port"):
        registry.register("2761")
    with pytest.raises(
        NotFoundError, match=r"no service 'vm sesion service' .*; did you mean 'VM Session Service'\?"
    ):
        registry.find("vm sesion service")
    for service_id in (GUID, OTHER):
        winreg.service(service_id, ElementName="Twice")
    with pytest.raises(NotFoundError, match=f"2 services are called 'twice'; .*{OTHER}"):
        registry.find("twice")
    assert winreg.service(GUID).changed == NOW


@pytest.mark.skipif(sys.platform == "win32", reason="it is there on Windows; run this test elsewhere")
def test_it_needs_windows() -> None:
    with pytest.raises(UsageError, match="on Windows"):
        WindowsRegistry()
