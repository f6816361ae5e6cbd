"""The registry: register, unregister, find, settings, import, and that nothing half-done is ever there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from hvsock.addresses import HV_GUID_PARENT, HV_GUID_ZERO, ServiceId, VmId
from hvsock.constants import INTEGRATION_SERVICES
from hvsock.errors import (
    DuplicateError,
    HvsockError,
    NotFoundError,
    RefusedError,
    UsageError,
)
from hvsock.registry import KEEP, Imported, Registry, ServiceEntry, ServiceName
from hvsock.registry import store as store_module
from hvsock.registry.entries import inbox_entries, name_key
from hvsock.registry.formats.jsonfile import dump_json, load_json
from hvsock.registry.formats.regfile import dump_reg, load_reg
from hvsock.topology.access import Allowed, Settings
from tests.registry import strategies

PS = ServiceId("999e53d4-3d5c-4c3e-8779-bed06ec056e1")
PS2 = ServiceId("a5201c21-2770-4c11-a68e-f182edb29220")
ONE = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
TWO = ServiceId("c378280d-da14-42c8-a24e-0de92a1028e2")
GUEST_INTERFACE = ServiceId.from_port(5185)
INBOX = {entry.id for entry in inbox_entries(0.0)}
VM = VmId("11111111-2222-3333-4444-555555555555")
VM2 = VmId("66666666-7777-8888-9999-aaaaaaaaaaaa")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path) as opened:
        yield opened


def test_a_new_registry_lists_the_inbox_services(registry: Registry) -> None:
    first, second = (entry for entry in registry.entries() if entry.port_alias is not None)
    ours = [entry for entry in registry.entries() if entry.port_alias is None]
    assert (first.id, first.name, first.port_alias, first.inbox) == (PS, "VM Session Service", 0x999E53D4, True)
    assert (second.id, second.name, second.port_alias, second.inbox) == (
        PS2,
        "VM Session Service-2",
        0xA5201C21,
        True,
    )
    assert registry.find("2577290196") == first
    assert registry.alias(0xA5201C21) == PS2
    assert {one.id.port: one.name for one in ours} == {one.port: one.name for one in INTEGRATION_SERVICES}
    assert registry.find("5180") == registry.find("heartbeat")
    assert set(registry.services()) == INBOX
    assert registry.displaced == ()


def test_register(registry: Registry, tmp_path: Path) -> None:
    entry = registry.register("HV Socket Demo", str(ONE).upper(), port_alias=5000, now=1000.25)
    assert entry == ServiceEntry(ONE, "HV Socket Demo", 5000, created=1000.25, changed=1000.25)
    assert registry.get(ONE) == entry
    assert entry in registry.entries()
    assert registry.services()[ONE] == entry.service()
    assert registry.alias(5000) == ONE
    with Registry(tmp_path) as other:
        assert other.get(ONE) == entry


def test_register_without_an_id_makes_one(registry: Registry) -> None:
    first, second = registry.register("a"), registry.register("b")
    assert first.id != second.id
    assert first.id[14] == "4"
    assert first.created == first.changed > 1_700_000_000


def test_names_are_unique_without_regard_to_case_and_composition(registry: Registry) -> None:
    registry.register("Bücher Straße", ONE)
    with pytest.raises(DuplicateError, match=r"the name 'Bücher Straße' is in use, by 3049197c-9a4e"):
        registry.register("BU\u0308CHER STRASSE")
    assert registry.find("bu\u0308cher STRASSE").id == ONE


def test_entries_come_by_name(registry: Registry) -> None:
    for name in ("zz", "Aa", "b", "ÄA"):
        registry.register(name)
    names = [entry.name for entry in registry.entries()]
    assert [name for name in names if len(name) <= 2] == ["Aa", "ÄA", "b", "zz"]
    assert names == sorted(names, key=name_key)


@pytest.mark.parametrize(
    ("name", "id", "alias", "kind", "why"),
    [
        ("", None, None, UsageError, "empty"),
        ("x" * 256, None, None, UsageError, "at most 255"),
        ("a\nb", None, None, UsageError, "printable"),
        ("5000", None, None, UsageError, "GUID or a port"),
        ("x", "hello", None, UsageError, "not a GUID: 'hello'"),
        ("x", str(HV_GUID_ZERO), None, UsageError, "cannot be registered"),
        ("x", None, -1, UsageError, "port alias"),
        ("x", str(ServiceId.from_port(70)), 5, UsageError, "takes no port alias"),
        ("x", str(ONE), None, DuplicateError, "3049197c-.* is registered already, as 'One'"),
        ("x", "{" + str(ONE).upper() + "}", None, DuplicateError, "is registered already"),
        ("oNE", None, None, DuplicateError, "the name 'One' is in use"),
        ("x", None, 5000, DuplicateError, "port 5000 is in use, by 'One'"),
        ("x", str(ServiceId.from_port(5000)), None, DuplicateError, "port 5000 is in use, by 'One'"),
        ("x", None, 6000, DuplicateError, "port 6000 is in use, by 'Template'"),
        ("x", str(PS), None, RefusedError, "in-box service 'VM Session Service', which stays"),
        ("x", str(PS2).upper(), None, RefusedError, "in-box service"),
        ("vm session service", None, None, DuplicateError, "the name 'VM Session Service' is in use"),
        ("x", None, 0x999E53D4, DuplicateError, "port 2577290196 is in use"),
        ("x", "999e53d4-facb-11e6-bd58-64006a7986d3", None, DuplicateError, "port 2577290196 is in use"),
    ],
)
def test_bad_input_gets_one_line_and_changes_nothing(
    registry: Registry, name: str, id: str | None, alias: int | None, kind: type[Exception], why: str
) -> None:
    registry.register("One", ONE, port_alias=5000)
    registry.register("Template", ServiceId.from_port(6000))
    before, version = registry.entries(), registry.version()
    with pytest.raises(kind, match=why) as caught:
        registry.register(name, id, port_alias=alias)
    assert isinstance(caught.value, HvsockError)
    assert str(caught.value).isprintable()
    assert registry.entries() == before
    assert registry.version() == version


def test_a_full_registry_takes_no_more(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    most = len(INBOX) + 1
    monkeypatch.setattr(store_module, "MAX_SERVICES", most)
    monkeypatch.setattr("hvsock.registry.merging.MAX_SERVICES", most)
    registry.register("third")
    with pytest.raises(UsageError, match=f"full: {most} services"):
        registry.register("fourth")
    with pytest.raises(UsageError, match=f"would be {most + 1} services; a registry holds {most}"):
        registry.import_entries([ServiceName(ONE, "fourth")])
    with pytest.raises(UsageError, match=f"more than {most} services"):
        registry.import_entries([ServiceName(ServiceId.new(), f"s{number}") for number in range(most + 1)])
    assert len(registry.entries()) == most


def test_unregister(registry: Registry, tmp_path: Path) -> None:
    entry = registry.register("One", ONE, port_alias=5000)
    entry = registry.set_enabled("one", False, VM)
    assert registry.unregister("ONE") == entry
    assert registry.get(ONE) is None
    assert registry.alias(5000) is None
    with pytest.raises(NotFoundError):
        registry.unregister("One")
    again = registry.register("One", ONE)
    assert again.per_vm == {}
    with Registry(tmp_path) as other:
        assert other.get(ONE) == again


@pytest.mark.parametrize("key", ["VM Session Service", str(PS2), "0x999e53d4"])
def test_inbox_services_stay(registry: Registry, key: str) -> None:
    before = registry.entries()
    with pytest.raises(RefusedError, match="in-box service and stays registered; disable it instead"):
        registry.unregister(key)
    assert registry.entries() == before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (str(ONE), ONE),
        ("{" + str(ONE).upper() + "}", ONE),
        (ONE, ONE),
        ("HV Socket Demo", ONE),
        ("hv socket DEMO", ONE),
        ("5000", ONE),
        ("0x1388", ONE),
        ("0X1388", ONE),
        ("2761", ServiceId.from_port(2761)),
        ("0xac9", ServiceId.from_port(2761)),
        ("00000ac9-facb-11e6-bd58-64006a7986d3", ServiceId.from_port(2761)),
        ("a/b %20", TWO),
    ],
)
def test_find(registry: Registry, text: str, found: ServiceId) -> None:
    registry.register("HV Socket Demo", ONE, port_alias=5000)
    registry.register("template", ServiceId.from_port(2761))
    registry.register("a/b %20", TWO)
    assert registry.find(text).id == found


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("HV Sokcet Demo", "; did you mean 'HV Socket Demo'?"),
        ("vm session servise", "; did you mean 'VM Session Service' or 'VM Session Service-2'?"),
        ("999e53d4-3d5c-4c3e-8779-bed06ec056e2", f"; did you mean {PS}?"),
        ("999e53d4-3d5c-4c3e-8779-bed06ec056e", f"; did you mean {PS}?"),
        ("nothing like it", ""),
        ("5001", ""),
        ("00001388-facb-11e6-bd58-64006a7986d3", "; did you mean "),
        ("", ""),
        ("\ud800", ""),
        ("a\nb", ""),
        ("x" * 100_000, ""),
    ],
)
def test_what_is_not_found_is_told_with_what_is_spelt_like_it(
    registry: Registry, text: str, suggestion: str
) -> None:
    registry.register("HV Socket Demo", ONE, port_alias=5000)
    with pytest.raises(NotFoundError) as caught:
        registry.find(text)
    message = str(caught.value)
    assert message.startswith("no service '")
    assert f"is registered{suggestion}" in message
    assert message.endswith("is registered") is (not suggestion)
    assert message.isprintable()
    assert len(message) < 250


def test_enable_and_disable_for_all_and_for_one_vm(registry: Registry) -> None:
    registry.register("One", ONE, now=1.0)
    entry = registry.set_enabled("One", False, now=2.0)
    assert (entry.settings, entry.created, entry.changed) == (Settings(enabled=False), 1.0, 2.0)
    entry = registry.set_enabled(ONE, True, VM, now=3.0)
    assert entry.per_vm == {VM: Settings(enabled=True)}
    assert registry.get(ONE) == entry
    assert entry.changed == 3.0
    service = registry.services()[ONE]
    assert service.settings_for(None).enabled is False
    assert service.settings_for(VM).enabled is True
    assert service.settings_for(VM2).enabled is False
    entry = registry.set_enabled(ONE, None, VM)
    assert entry.per_vm == {}
    assert registry.set_enabled(ONE, None).settings == Settings()
    assert registry.services()[ONE].settings_for(VM).enabled is True


def test_settings_are_kept_set_and_taken_back_one_by_one(registry: Registry) -> None:
    registry.register("One", ONE)
    some = Allowed(uids=frozenset({5, 7}), gids=frozenset({9}))
    registry.change_settings(ONE, enabled=False, bind=some)
    entry = registry.change_settings(ONE, wildcard_binds=False, connect=Allowed(everyone=True))
    assert entry.settings == Settings(False, False, some, Allowed(everyone=True))
    assert registry.get(ONE) == entry
    entry = registry.change_settings(ONE, enabled=KEEP, wildcard_binds=None, bind=None)
    assert entry.settings == Settings(enabled=False, connect=Allowed(everyone=True))
    entry = registry.change_settings(ONE, str(VM).upper(), bind=some)
    entry = registry.change_settings(ONE, VM, enabled=True)
    assert entry.per_vm == {VM: Settings(enabled=True, bind=some)}
    assert registry.get(ONE) == entry


def test_a_change_that_changes_nothing_writes_nothing(registry: Registry) -> None:
    entry = registry.register("One", ONE)
    before = registry.version()
    assert registry.change_settings(ONE) == entry
    assert registry.set_enabled(ONE, None, VM) == entry
    assert registry.version() == before


def test_inbox_services_take_settings(registry: Registry) -> None:
    entry = registry.set_enabled("VM Session Service", False, now=5.0)
    assert entry.inbox
    assert entry.name == "VM Session Service"
    assert registry.services()[PS].settings_for(VM).enabled is False


@pytest.mark.parametrize(
    ("change", "kind", "why"),
    [
        (lambda r: r.set_enabled("Two", False), NotFoundError, "no service 'Two'"),
        (lambda r: r.set_enabled(ONE, False, "host"), UsageError, "not a VmId: 'host'"),
        (lambda r: r.set_enabled(ONE, False, HV_GUID_PARENT), UsageError, "not the VmId of one"),
        (lambda r: r.set_enabled(ONE, "no"), UsageError, "true, false or none"),
        (lambda r: r.change_settings(ONE, bind=Allowed(uids=frozenset({-1}))), UsageError, "user or group id"),
        (lambda r: r.set_enabled(ONE, False, now=-1.0), UsageError, "from 1970"),
        (lambda r: r.forget_vm(HV_GUID_PARENT), UsageError, "not the VmId of one"),
        (lambda r: r.import_entries([ServiceName(TWO, "fine"), ServiceName(ONE, "")]), UsageError, "empty"),
    ],
)
def test_bad_changes_change_nothing(
    registry: Registry, change: Callable[[Registry], Any], kind: type[Exception], why: str
) -> None:
    registry.register("One", ONE)
    before, version = registry.entries(), registry.version()
    with pytest.raises(kind, match=why):
        change(registry)
    assert registry.entries() == before
    assert registry.version() == version


def test_settings_for_too_many_vms(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvsock.registry.entries.MAX_VMS_WITH_SETTINGS", 1)
    registry.set_enabled(PS, False, VM)
    registry.set_enabled(PS, True, VM)
    with pytest.raises(UsageError, match="at most 1 VMs, not 2"):
        registry.set_enabled(PS, False, VM2)


def test_forget_vm(registry: Registry, tmp_path: Path) -> None:
    registry.register("One", ONE, now=1.0)
    registry.register("Two", TWO, now=1.0)
    registry.set_enabled(ONE, False, VM, now=2.0)
    registry.set_enabled(ONE, False, VM2, now=2.0)
    registry.set_enabled(PS, True, VM, now=2.0)
    assert registry.forget_vm(str(VM).upper(), now=9.0) == 2
    with Registry(tmp_path) as other:
        assert {e.id: (dict(e.per_vm), e.changed) for e in other.entries() if e.id not in INBOX - {PS}} == {
            ONE: ({VM2: Settings(enabled=False)}, 9.0),
            TWO: ({}, 1.0),
            PS: ({}, 9.0),
        }
    version = registry.version()
    assert registry.forget_vm(VM) == 0
    assert registry.version() == version


# Import


def test_import_of_json_takes_everything_over(registry: Registry, tmp_path: Path) -> None:
    registry.register("One", ONE, port_alias=5000, now=1.0)
    registry.change_settings(ONE, VM, enabled=False, bind=Allowed(everyone=True), now=2.0)
    registry.set_enabled(PS, False, now=3.0)
    exported = dump_json(registry.entries())
    (tmp_path / "other").mkdir()
    with Registry(tmp_path / "other") as other:
        assert other.import_entries(load_json(exported, now=0.0).services) == Imported(1, len(INBOX), 0)
        assert other.entries() == registry.entries()
        assert other.import_entries(load_json(exported, now=0.0).services, replace=True) == Imported(
            0, 0, 1 + len(INBOX)
        )


@given(strategies.registries)
@settings(max_examples=strategies.EXAMPLES // 4, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_goes_through_the_registry_and_both_formats(tmp_path: Path, entries: list[ServiceEntry]) -> None:
    for file in tmp_path.iterdir():
        file.unlink()
    with Registry(tmp_path) as registry:
        inbox = registry.entries()
        used = {entry.port for entry in inbox}
        good = []
        for entry in entries:
            if entry.port_alias is None or entry.port_alias not in used:
                good.append(entry)
                used.add(entry.port_alias)
        assert registry.import_entries(good).added == len(good)
        stored = registry.entries()
    with Registry(tmp_path) as registry:
        assert registry.entries() == stored
        assert {entry.id: entry for entry in stored} == {entry.id: entry for entry in (*good, *inbox)}
        assert load_json(dump_json(stored), now=0.0).services == stored
        for entry in good:
            registry.unregister(entry.id)
        names = load_reg(dump_reg(stored)).services
        assert registry.import_entries(names, now=5.0) == Imported(len(good), 0, 0)
        assert {(entry.id, entry.name) for entry in registry.entries()} == {(e.id, e.name) for e in stored}


def test_import_of_a_reg_file_registers_names(registry: Registry) -> None:
    assert registry.import_entries([ServiceName(ONE, "One"), ServiceName(PS, "VM Session Service")], now=4.0) == (
        Imported(added=1, replaced=0, unchanged=1)
    )
    assert registry.get(ONE) == ServiceEntry(ONE, "One", created=4.0, changed=4.0)


def test_import_replaces_on_request_what_it_says_and_nothing_else(registry: Registry) -> None:
    registry.register("One", ONE, port_alias=5000, now=1.0)
    registry.set_enabled(ONE, False, VM, now=1.0)
    registry.register("Stays", TWO, now=1.0)
    with pytest.raises(DuplicateError, match=r"registered already, as 'One', and was not to be replaced"):
        registry.import_entries([ServiceName(ONE, "New name")])
    assert registry.import_entries([ServiceName(ONE, "New name")], replace=True, now=2.0) == Imported(0, 1, 0)
    assert registry.get(ONE) == ServiceEntry(
        ONE, "New name", 5000, created=1.0, changed=2.0, per_vm={VM: Settings(enabled=False)}
    )
    assert registry.import_entries([ServiceName(ONE, "New name")], replace=True) == Imported(0, 0, 1)
    whole = ServiceEntry(ONE, "Whole", created=3.0, changed=4.0)
    assert registry.import_entries([whole], replace=True) == Imported(0, 1, 0)
    assert registry.get(ONE) == whole
    assert registry.find("Stays").id == TWO


def test_import_may_swap_names_and_ports(registry: Registry) -> None:
    registry.register("One", ONE, port_alias=1)
    registry.register("Two", TWO, port_alias=2)
    swapped = [ServiceEntry(ONE, "Two", 2), ServiceEntry(TWO, "One", 1)]
    assert registry.import_entries(swapped, replace=True) == Imported(0, 2, 0)
    assert registry.find("two").id == registry.alias(2) == ONE


@pytest.mark.parametrize(
    ("bad", "kind", "why"),
    [
        (ServiceEntry(TWO, ""), UsageError, "empty"),
        (ServiceEntry(TWO, "x", created=-1.0), UsageError, "from 1970"),
        (ServiceName(TWO, "a\nb"), UsageError, "printable"),
        (ServiceName(ServiceId(HV_GUID_ZERO), "x"), UsageError, "cannot be registered"),
        (ServiceName(ServiceId.from_port(9), "X"), DuplicateError, "is there twice, as 'Good' and 'X'"),
        (ServiceName(ONE, "x"), DuplicateError, "registered already, as 'One'"),
        (ServiceName(TWO, "one"), DuplicateError, "the name .* would be in use twice"),
        (ServiceName(TWO, "GOOD"), DuplicateError, "the name .* would be in use twice"),
        (ServiceEntry(TWO, "x", 5000), DuplicateError, "port 5000 would be in use twice"),
        (ServiceEntry(TWO, "x", 9), DuplicateError, "port 9 would be in use twice"),
        (ServiceName(ServiceId.from_port(5000), "x"), DuplicateError, "port 5000 would be in use twice"),
        (ServiceName(PS, "Mine now"), RefusedError, "in-box service 'VM Session Service', whose name"),
        (ServiceEntry(PS, "VM Session Service", 6), RefusedError, "whose name and port alias stay"),
        (ServiceEntry(TWO, "x", flags=frozenset({"inbox"})), UsageError, "none of the in-box services"),
        (ServiceEntry(TWO, "x", flags=frozenset({"sticky"})), UsageError, "unknown flag"),
    ],
)
def test_import_is_all_or_nothing(
    registry: Registry, bad: ServiceEntry | ServiceName, kind: type[Exception], why: str
) -> None:
    registry.register("One", ONE, port_alias=5000)
    before, version = registry.entries(), registry.version()
    with pytest.raises(kind, match=why):
        registry.import_entries([ServiceName(ServiceId.from_port(9), "Good"), bad])
    assert registry.entries() == before
    assert registry.version() == version


def test_import_leaves_the_operators_settings_of_inbox_services(registry: Registry) -> None:
    disabled = registry.set_enabled(PS, False, now=2.0)
    untouched = ServiceEntry(PS, "VM Session Service")
    assert registry.import_entries([untouched, ServiceName(PS2, "VM Session Service-2")]) == Imported(0, 0, 2)
    assert registry.get(PS) == disabled
    other = ServiceEntry(PS, "VM Session Service", settings=Settings(wildcard_binds=False))
    with pytest.raises(DuplicateError, match="has other settings here"):
        registry.import_entries([other])
    assert registry.import_entries([other], replace=True) == Imported(0, 1, 0)
    found = registry.get(PS)
    assert found is not None
    assert (found.settings, found.port_alias, found.inbox) == (other.settings, 0x999E53D4, True)


# Who may, and the version


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.register("x"),
        lambda r: r.unregister(ONE),
        lambda r: r.set_enabled(ONE, False),
        lambda r: r.change_settings(ONE, VM, enabled=False),
        lambda r: r.import_entries([ServiceName(TWO, "Two")]),
        lambda r: r.forget_vm(VM),
    ],
)
def test_a_partition_that_is_not_the_host_changes_nothing(
    registry: Registry, tmp_path: Path, change: Callable[[Registry], Any]
) -> None:
    registry.register("One", ONE)
    why = "you speak for partition vm1; only the host changes the registry"
    with Registry(tmp_path, read_only_because=why) as guest:
        assert guest.read_only_because == why
        with pytest.raises(RefusedError) as caught:
            change(guest)
        assert str(caught.value) == why
        assert guest.entries() == registry.entries()
        assert guest.find("One").id == ONE
    assert registry.read_only_because is None


def test_the_version_changes_with_every_change_of_anybody(registry: Registry, tmp_path: Path) -> None:
    with Registry(tmp_path) as other:
        seen = {registry.version()}
        changes: list[Callable[[Registry], object]] = [
            lambda r: r.register("One", ONE),
            lambda r: r.set_enabled(ONE, False),
            lambda r: r.set_enabled(ONE, True, VM),
            lambda r: r.forget_vm(VM),
            lambda r: r.import_entries([ServiceName(TWO, "Two")]),
            lambda r: r.unregister(ONE),
        ]
        for change in changes:
            change(other)
            assert registry.version() not in seen
            seen.add(registry.version())
            assert registry.services() == {e.id: e.service() for e in other.entries()}
        registry.register("One", ONE)
        assert registry.version() not in seen
        assert registry.version() == registry.version()
        assert ONE in registry.services()


def test_services_are_read_again_only_after_a_change(registry: Registry, tmp_path: Path) -> None:
    first = registry.services()
    assert registry.services() is first
    registry.find("VM Session Service")
    assert registry.services() is first
    with pytest.raises(TypeError):
        first[ONE] = first[PS]  # type: ignore[index]
    with Registry(tmp_path) as other:
        other.register("One", ONE)
    assert set(registry.services()) == INBOX | {ONE}


def test_another_thread_may_take_over(registry: Registry) -> None:
    found = []

    def work() -> None:
        registry.register("One", ONE)
        found.append((registry.version(), registry.find("one").id, len(registry.services())))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(registry.version(), ONE, len(INBOX) + 1)]


def test_a_closed_registry_is_of_no_use(tmp_path: Path) -> None:
    registry = Registry(os.fsencode(tmp_path).decode())
    assert registry.path == str(tmp_path / "registry.db")
    registry.close()
    registry.close()
    for use in (registry.version, registry.entries, registry.services, lambda: registry.register("x")):
        with pytest.raises(ValueError, match="closed"):
            use()
