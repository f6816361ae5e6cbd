"""Services of a Windows host as the commands see them: imports that are whole or nothing, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import DuplicateError, RefusedError, UsageError
from hvsock.registry.entries import ServiceName
from hvsock.registry.forwards import parse_forward
from hvsock.windows.host import HostRegistry
from tests.windows.fake_winreg import FakeWinreg, failure

FIRST, SECOND, THIRD = (ServiceId.from_port(number) for number in (1, 2, 3))


def names(registry: HostRegistry) -> dict[str, str]:
    """What is registered."""
    return {str(entry.id): entry.name for entry in registry.entries()}


def test_what_is_the_fabrics() -> None:
    registry = HostRegistry(FakeWinreg())
    with pytest.raises(UsageError, match="port aliases"):
        registry.register("x", port_alias=5)
    with pytest.raises(UsageError, match="no relay"):
        registry.register("x", forward=parse_forward("unix:/run/x"))
    entry = registry.register("x")
    with pytest.raises(UsageError, match="--vm"):
        registry.set_enabled("x", True)
    assert registry.defaults() is None
    assert registry.entries() == [entry]


def test_policies_of_a_vm() -> None:
    asked = []

    def ask(script: str) -> list[Any]:
        asked.append(script)
        return [{"code": 0, "why": ""}]

    registry = HostRegistry(FakeWinreg(), ask)
    registry.register("x", FIRST)
    vm_id = VmId.new()
    assert registry.set_enabled("X", False, vm_id).per_vm[vm_id].enabled is False
    assert registry.set_enabled("X", None, vm_id).per_vm == {}
    assert [script.count("RemoveGuestServiceSettings") for script in asked] == [0, 1]


def test_import() -> None:
    registry = HostRegistry(winreg := FakeWinreg())
    winreg.service(str(FIRST).upper(), ElementName="one")
    with pytest.raises(DuplicateError, match="not to be replaced"):
        registry.import_entries([ServiceName(FIRST, "eins"), ServiceName(SECOND, "zwei")])
    with pytest.raises(DuplicateError, match="the name 'ONE' would be in use twice"):
        registry.import_entries([ServiceName(SECOND, "ONE")])
    assert names(registry) == {FIRST: "one"}
    done = registry.import_entries([ServiceName(FIRST, "eins"), ServiceName(SECOND, "zwei")], replace=True)
    assert done == (1, 1, 0)
    assert registry.import_entries([ServiceName(FIRST, "eins")], replace=True) == (0, 0, 1)
    assert names(registry) == {FIRST: "eins", SECOND: "zwei"}
    assert winreg.service(FIRST).name == str(FIRST).upper()  # the key stayed
    winreg.elevated = False
    with pytest.raises(RefusedError, match="hvsock service import, again"):
        registry.import_entries([ServiceName(THIRD, "drei")])
    assert not any(handle.open for handle in winreg.handles)


@pytest.mark.parametrize("kind", [OSError, PermissionError])
def test_an_import_that_fails_in_the_midst(kind: type[OSError]) -> None:
    """What was written is taken back, new names too."""

    class Failing(FakeWinreg):
        """Refuses to write the name "three"."""

        def SetValueEx(self, key: Any, value_name: str, reserved: Any, type: int, value: str) -> None:  # noqa: N802
            if value == "three":
                raise failure(kind, 5 if kind is PermissionError else 14)
            super().SetValueEx(key, value_name, reserved, type, value)

    registry = HostRegistry(winreg := Failing())
    winreg.service(FIRST, ElementName="one")
    wanted = [ServiceName(SECOND, "two"), ServiceName(THIRD, "three"), ServiceName(FIRST, "eins")]
    with pytest.raises(kind):
        registry.import_entries(wanted, replace=True)
    assert names(registry) == {FIRST: "one"}
    assert registry.oddities() == []
