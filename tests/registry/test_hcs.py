"""What HCS documents say of hvsocket: read, written, and taken over into a registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import DuplicateError, UsageError
from hvsock.registry import Imported, Registry, ServiceEntry
from hvsock.registry.entries import MAX_SERVICES, inbox_entries
from hvsock.registry.formats.hcs import HcsConfig, dump_hcs, load_hcs, looks_like_hcs
from hvsock.topology.access import Allowed, Defaults, Settings
from hvsock.topology.descriptors import MAX_ACES
from hvsock.topology.sddl import parse_sddl
from tests.registry.strategies import registries, settings_of_defaults
from tests.support import sample

ONE = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
PORT = ServiceId.from_port(5000)
VM = VmId("11111111-2222-3333-4444-555555555555")
VM2 = VmId("66666666-7777-8888-9999-aaaaaaaaaaaa")
ALLOW, DENY = "D:P(A;;FA;;;SY)(A;;FA;;;BA)", "D:P(D;;FA;;;WD)"
NO_WILDCARDS = Settings(wildcard_binds=False)

WSL: dict[str, Any] = {
    "DefaultBindSecurityDescriptor": "D:P(A;;FA;;;SY)(A;;FA;;;S-1-5-21-1-2-3-1001)",
    "DefaultConnectSecurityDescriptor": "D:P(A;;FA;;;SY)(A;;FA;;;S-1-5-21-1-2-3-1001)",
}
"""As WSL describes its VM: the system and the user."""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry with one service."""
    with Registry(tmp_path) as made:
        made.register("One", ONE)
        yield made


def encode(value: Any) -> bytes:
    """A value as the bytes of a JSON file."""
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda config: {
            "SchemaVersion": {"Major": 2, "Minor": 1},
            "Owner": "WSL",
            "VirtualMachine": {
                "Chipset": {},
                "Devices": {"Scsi": {}, "HvSocket": {"HvSocketConfig": config, "HvSocketAddress": {}}},
            },
        },
        lambda config: {"Container": {"HvSocket": {"Config": config, "EnablePowerShellDirect": True}}},
        lambda config: {"HvSocketConfig": config},
        lambda config: config,
    ],
)
def test_it_is_found_where_documents_have_it(wrap: Any) -> None:
    document = encode(wrap({**WSL, "ServiceTable": {ONE.upper(): {"AllowWildcardBinds": True}}}))
    assert looks_like_hcs(document)
    user = parse_sddl(WSL["DefaultBindSecurityDescriptor"])
    assert load_hcs(b"\xef\xbb\xbf" + document) == HcsConfig(
        Settings(wildcard_binds=False, bind=user, connect=user),
        {ONE: Settings(enabled=True, wildcard_binds=True)},
    )


def test_each_member_is_read_and_absence_is_hcs_own_default() -> None:
    table = {
        ONE: {"BindSecurityDescriptor": DENY, "ConnectSecurityDescriptor": ALLOW, "Disabled": True},
        PORT: {"BindSecurityDescriptor": "", "ConnectSecurityDescriptor": None},
    }
    assert load_hcs(encode({"ServiceTable": table})) == HcsConfig(
        NO_WILDCARDS,
        {
            ONE: Settings(False, False, parse_sddl(DENY), parse_sddl(ALLOW)),
            PORT: Settings(True, False),
        },
    )
    assert load_hcs(encode({"ServiceTable": None})) == HcsConfig(NO_WILDCARDS, {})
    assert load_hcs(encode({"HvSocketConfig": {}})) == HcsConfig(NO_WILDCARDS, {})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([], "the document is an object, not an array"),
        ({}, "says nothing of hvsocket: it has no VirtualMachine.Devices.HvSocket.HvSocketConfig and no"),
        ({"VirtualMachine": {"Devices": []}}, "says nothing of hvsocket"),
        ({"HvSocketConfig": 5}, "HvSocketConfig is an object, not a number"),
        ({"HvSocketConfig": {"Defaults": {}}}, "HvSocketConfig has no member 'Defaults'"),
        ({"ServiceTable": []}, "the document.ServiceTable is an object, not an array"),
        ({"ServiceTable": {"x": {}}}, "the document.ServiceTable: not a GUID: 'x'"),
        ({"ServiceTable": {ONE: None}}, f"ServiceTable.{ONE} is an object, not null"),
        ({"ServiceTable": {ONE: {}, ONE.upper(): {}}}, "twice"),
        ({"ServiceTable": {ONE: {"Disable": True}}}, "no member 'Disable'"),
        ({"ServiceTable": {ONE: {"Disabled": 1}}}, f"{ONE}.Disabled is true or false, not a number"),
        ({"ServiceTable": {ONE: {"AllowWildcardBinds": "yes"}}}, "AllowWildcardBinds is true or false"),
        ({"ServiceTable": {ONE: {"BindSecurityDescriptor": []}}}, "BindSecurityDescriptor is a string, not an"),
        ({"DefaultBindSecurityDescriptor": "D:(A"}, "DefaultBindSecurityDescriptor: SDDL, character 3: "),
    ],
)
def test_what_is_no_document_is_refused_with_its_place(value: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        load_hcs(encode(value))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    table: dict[str, Any] = {str(ServiceId.from_port(port)): {} for port in range(2)}
    monkeypatch.setattr("hvsock.registry.formats.hcs.MAX_SERVICES", 1)
    with pytest.raises(UsageError, match="ServiceTable has 2 services; a registry holds 1"):
        load_hcs(encode({"ServiceTable": table}))
    assert MAX_SERVICES > 2


def test_what_is_written_is_what_is_in_force() -> None:
    entry = ServiceEntry(
        ONE,
        "One",
        settings=Settings(bind=Allowed(uids=frozenset({1000}), gids=frozenset({100}))),
        per_vm={VM: Settings(enabled=False, connect=parse_sddl(DENY))},
    )
    everything = [*inbox_entries(0.0), entry]
    by_default: Defaults = {VM: Settings(connect=Allowed(everyone=True), wildcard_binds=False)}

    def written(vm_id: VmId | None, *, inbox: bool = False) -> Any:
        document = json.loads(dump_hcs(everything, by_default, vm_id, inbox=inbox))
        return document["VirtualMachine"]["Devices"]["HvSocket"]["HvSocketConfig"]

    theirs = "D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;S-1-22-1-1000)(A;;FA;;;S-1-22-2-100)"
    assert written(VM) == {
        "DefaultBindSecurityDescriptor": ALLOW,
        "DefaultConnectSecurityDescriptor": "D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;WD)",
        "ServiceTable": {
            ONE: {
                "BindSecurityDescriptor": theirs,
                "ConnectSecurityDescriptor": DENY,
                "AllowWildcardBinds": False,
                "Disabled": True,
            }
        },
    }
    assert written(None) == {
        "DefaultBindSecurityDescriptor": ALLOW,
        "DefaultConnectSecurityDescriptor": ALLOW,
        "ServiceTable": {ONE: {"BindSecurityDescriptor": theirs, "AllowWildcardBinds": True}},
    }
    assert set(written(None, inbox=True)["ServiceTable"]) == {entry.id for entry in everything}


def test_more_users_than_a_descriptor_has_entries_are_not_written() -> None:
    """It could not be read again."""
    most = Allowed(uids=frozenset(range(MAX_ACES - 2)))  # besides root and who administers
    more = Allowed(uids=frozenset(range(MAX_ACES - 1)))
    dump_hcs([ServiceEntry(ONE, "One", settings=Settings(bind=most))], {}, VM)
    entry = ServiceEntry(ONE, "One", settings=Settings(bind=more))
    with pytest.raises(UsageError, match=f"^'One': .* {MAX_ACES + 1} entries of a descriptor"):
        dump_hcs([entry], {}, VM)
    with pytest.raises(UsageError, match=r"^the defaults: "):
        dump_hcs([entry], {None: Settings(connect=more)}, VM)


@settings(max_examples=sample(10, 1_000))
@given(registries, settings_of_defaults)
def test_a_document_that_was_written_is_taken_over_and_written_the_same(
    entries: list[ServiceEntry], defaults: Settings
) -> None:
    vm_id = next((vm for entry in entries for vm in entry.per_vm), VM)
    first = dump_hcs(entries, {vm_id: defaults}, vm_id)
    found = load_hcs(first)
    again = [
        ServiceEntry(entry.id, entry.name, per_vm={VM2: found.services[entry.id]})
        for entry in entries
        if not entry.inbox
    ]
    assert dump_hcs(again, {VM2: found.defaults}, VM2) == first


def test_a_document_is_taken_over_for_one_vm(registry: Registry, tmp_path: Path) -> None:
    registry.set_enabled(ONE, False, VM2)
    table = {ONE: {"ConnectSecurityDescriptor": DENY}, PORT: {"AllowWildcardBinds": True}}
    found = load_hcs(encode({**WSL, "ServiceTable": table}))
    done = registry.import_of_vm(str(VM).upper(), found.defaults, found.services, now=5.0)
    assert done == Imported(1, 1, 0)
    with Registry(tmp_path) as other:
        one = other.find("One")
        assert one.per_vm == {VM2: Settings(enabled=False), VM: Settings(True, False, None, parse_sddl(DENY))}
        assert one.settings == Settings()
        fresh = other.find("5000")
        assert (fresh.name, fresh.created, fresh.changed) == ("vsock port 5000", 5.0, 5.0)
        assert fresh.settings == NO_WILDCARDS
        assert fresh.per_vm == {VM: Settings(True, True)}
        assert other.defaults() == {VM: found.defaults}
    assert registry.import_of_vm(VM, found.defaults, found.services) == Imported(0, 0, 2)
    other_guid = ServiceId("ae8da506-a019-4553-a52b-902bc0fa0411")
    assert registry.import_of_vm(VM, Settings(), {other_guid: Settings(enabled=True)}) == Imported(1, 0, 0)
    assert registry.find(other_guid).name == f"HvSocket {other_guid}"


def test_what_is_there_is_not_replaced_unless_told_to(registry: Registry) -> None:
    registry.change_settings(ONE, VM, bind=Allowed(everyone=True))
    deny = Settings(bind=parse_sddl(DENY))
    before = registry.entries()
    with pytest.raises(DuplicateError, match="'One' has other settings there already"):
        registry.import_of_vm(VM, deny, {PORT: Settings(), ONE: deny})
    assert (registry.entries(), registry.defaults()) == (before, {}), "all of it, or nothing"
    assert registry.import_of_vm(VM, deny, {PORT: Settings(), ONE: deny}, replace=True) == Imported(1, 1, 0)
    assert registry.find("One").per_vm == {VM: deny}
    with pytest.raises(DuplicateError, match=f"other defaults for the VM {VM}"):
        registry.import_of_vm(VM, Settings(bind=parse_sddl(ALLOW)), {})
    assert registry.import_of_vm(VM, Settings(), {ONE: Settings()}, replace=True) == Imported(0, 1, 0)
    assert registry.find("One").per_vm == {}


def test_for_all_vms_it_is_the_services_own_settings(registry: Registry) -> None:
    document = encode({**WSL, "ServiceTable": {ONE: {"BindSecurityDescriptor": DENY}, PORT: {}}})
    found = load_hcs(document, for_all=True)
    assert registry.import_of_vm(None, found.defaults, found.services) == Imported(1, 1, 0)
    assert registry.find("One").settings == Settings(True, False, parse_sddl(DENY))
    assert registry.find("5000").settings == Settings(True, False)
    assert registry.defaults() == {None: found.defaults}
    other = registry.register("Two").id
    assert registry.services()[other].settings_for(VM).wildcard_binds is True, "the document does not list it"


def test_a_name_that_is_taken_and_a_registry_that_is_full(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.register("VSOCK port 5000")
    with pytest.raises(DuplicateError, match="would be in use twice"):
        registry.import_of_vm(VM, Settings(), {PORT: Settings()})
    monkeypatch.setattr("hvsock.registry.store.MAX_SERVICES", len(registry.entries()))
    with pytest.raises(UsageError, match="a registry holds"):
        registry.import_of_vm(VM, Settings(), {ServiceId.new(): Settings()})


def test_operations_that_are_denied_are_no_concern_of_a_document(registry: Registry) -> None:
    registry.change_settings(ONE, VM, denied=frozenset({"one.do"}))
    settings = Settings(enabled=False)
    assert registry.import_of_vm(VM, Settings(), {ONE: settings}) == Imported(0, 1, 0)
    assert registry.services()[ONE].per_vm == {VM: Settings(enabled=False, denied=frozenset({"one.do"}))}
    assert registry.import_of_vm(VM, Settings(), {ONE: settings}) == Imported(0, 0, 1)
