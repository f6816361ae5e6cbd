"""Descriptors and defaults in the registry: kept, changed, exported, and unknown to files of earlier versions."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from hvsock.addresses import HV_GUID_PARENT, ServiceId, VmId
from hvsock.errors import DuplicateError, RefusedError, StateError, UsageError
from hvsock.registry import Imported, Registry
from hvsock.registry.database import FILE_NAME
from hvsock.registry.formats.jsonfile import dump_json, load_json
from hvsock.registry.values import settings_from_value, settings_to_value
from hvsock.topology.access import Allowed, Settings
from hvsock.topology.descriptors import MAX_ACES, Ace, AceType, Acl, Descriptor
from hvsock.topology.sddl import parse_sddl
from hvsock.topology.sids import EVERYONE
from tests.registry.strategies import settings_of_services
from tests.support import sample

ONE = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
VM = VmId("11111111-2222-3333-4444-555555555555")
VM2 = VmId("66666666-7777-8888-9999-aaaaaaaaaaaa")
ALLOW, DENY = parse_sddl("D:P(A;;FA;;;SY)(A;;FA;;;BA)"), parse_sddl("D:P(D;;FA;;;WD)")
TOO_LONG = Descriptor(Acl((Ace(AceType.ALLOW, 1, EVERYONE),) * (MAX_ACES + 1)))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry with one service."""
    with Registry(tmp_path) as made:
        made.register("One", ONE)
        yield made


def test_descriptors_are_kept_and_replace_users_and_groups(registry: Registry, tmp_path: Path) -> None:
    registry.change_settings(ONE, bind=Allowed(everyone=True), connect=DENY)
    entry = registry.change_settings(ONE, VM, bind=ALLOW)
    entry = registry.change_settings(ONE, bind=DENY)
    assert (entry.settings, entry.per_vm) == (Settings(bind=DENY, connect=DENY), {VM: Settings(bind=ALLOW)})
    with Registry(tmp_path) as again:
        assert again.get(ONE) == entry
        assert again.services()[ONE].settings_for(VM) == Settings(True, True, ALLOW, DENY)
    assert registry.change_settings(ONE, bind=None).settings == Settings(connect=DENY)


def test_defaults_are_kept_and_taken_back(registry: Registry, tmp_path: Path) -> None:
    assert registry.defaults() == {}
    assert registry.change_defaults(bind=ALLOW, wildcard_binds=False) == Settings(None, False, ALLOW)
    assert registry.change_defaults(str(VM).upper(), connect=DENY) == Settings(connect=DENY)
    assert registry.change_defaults(VM, bind=Allowed(everyone=True)) == Settings(None, None, Allowed(True), DENY)
    version = registry.version()
    registry.change_defaults(connect=None)
    assert registry.version() == version, "what changes nothing writes nothing"
    everything = {None: Settings(None, False, ALLOW), VM: Settings(None, None, Allowed(True), DENY)}
    with Registry(tmp_path) as again:
        assert again.defaults() == everything
        assert again.known_defaults() == {}, "the services were not asked for yet"
        assert again.services()[ONE].settings_for(VM) == Settings(True, False, Allowed(True), DENY)
        assert again.services()[ONE].settings_for(VM2) == Settings(True, False, ALLOW, Allowed())
        assert again.known_defaults() == everything
        registry.change_defaults(bind=None, wildcard_binds=None)
        assert again.services()[ONE].settings_for(VM2) == Settings(True, True, Allowed(), Allowed())
        assert again.known_defaults() == registry.defaults() == {VM: everything[VM]}
    assert registry.forget_vm(VM) == 0
    assert registry.defaults() == {}


@pytest.mark.parametrize(
    ("change", "kind", "why"),
    [
        (lambda r: r.change_defaults("host", bind=DENY), UsageError, "not a VmId"),
        (lambda r: r.change_defaults(HV_GUID_PARENT, bind=DENY), UsageError, "not the VmId of one"),
        (lambda r: r.change_defaults(bind=Allowed(uids=frozenset({-1}))), UsageError, "user or group id"),
        (lambda r: r.change_defaults(bind=TOO_LONG), UsageError, f"at most {MAX_ACES} entries"),
        (lambda r: r.change_settings(ONE, connect=TOO_LONG), UsageError, f"at most {MAX_ACES} entries"),
        (lambda r: r.import_entries([], defaults={VM: Settings(enabled=True)}), UsageError, "one by one"),
        (lambda r: r.import_of_vm(VM, Settings(enabled=True), {}), UsageError, "one by one"),
        (lambda r: r.import_of_vm(HV_GUID_PARENT, Settings(), {}), UsageError, "not the VmId of one"),
        (lambda r: r.import_of_vm(VM, Settings(bind=DENY), {ONE: Settings(bind=TOO_LONG)}), UsageError, "at most"),
    ],
)
def test_bad_changes_change_nothing(
    registry: Registry, change: Callable[[Registry], Any], kind: type[Exception], why: str
) -> None:
    before, version = registry.entries(), registry.version()
    with pytest.raises(kind, match=why):
        change(registry)
    assert (registry.entries(), registry.defaults(), registry.version()) == (before, {}, version)


def test_defaults_for_too_many_vms(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvsock.registry.store.MAX_VMS_WITH_DEFAULTS", 1)
    registry.change_defaults(VM, bind=DENY)
    with pytest.raises(UsageError, match="at most 1 VMs, not 2"):
        registry.change_defaults(VM2, bind=DENY)
    with pytest.raises(UsageError, match="at most 1 VMs, not 2"):
        registry.import_of_vm(VM2, Settings(bind=DENY), {})
    assert registry.change_defaults(VM, bind=ALLOW).bind == ALLOW


def test_only_who_may_change_the_registry_changes_defaults(registry: Registry, tmp_path: Path) -> None:
    with Registry(tmp_path, read_only_because="a guest") as guest, pytest.raises(RefusedError, match="a guest"):
        guest.change_defaults(bind=DENY)


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_earlier_version_has_no_defaults_and_gets_them(tmp_path: Path, version: int) -> None:
    with Registry(tmp_path) as registry:
        registry.register("One", ONE)
        registry.change_settings(ONE, VM, bind=Allowed(gids=frozenset({7})))
        before = registry.entries()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("DROP TABLE defaults")
        if version == 1:
            connection.execute("ALTER TABLE service DROP COLUMN forward")
        connection.execute(f"PRAGMA user_version = {version}")
    with Registry(tmp_path, read_only_because="only looks") as registry:
        assert (registry.entries(), registry.defaults()) == (before, {})
        assert registry.services()[ONE].settings_for(VM).bind == Allowed(gids=frozenset({7}))
    with Registry(tmp_path) as registry:
        assert (registry.entries(), registry.defaults()) == (before, {})
        registry.change_defaults(VM, bind=DENY)
    with Registry(tmp_path) as registry:
        assert registry.defaults() == {VM: Settings(bind=DENY)}


@pytest.mark.parametrize("sddl", ["O:\u017fY", "D:A\u0131", "D:(A;;FA;;;\u017fY)"])
def test_a_file_with_a_descriptor_that_is_none_is_damaged(registry: Registry, tmp_path: Path, sddl: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        connection.execute("UPDATE service SET settings = ?", (json.dumps({"bind": {"sddl": sddl}}),))
    with pytest.raises(StateError, match=r"damaged at .* is not of ASCII"):
        registry.services()


@settings(max_examples=sample(20, 2_000))
@given(settings_of_services)
def test_settings_are_written_and_read_again(one: Settings) -> None:
    assert settings_from_value(json.loads(json.dumps(settings_to_value(one))), "settings") == one


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"bind": {"sddl": 5}}, r"settings\.bind\.sddl is a string, not a number"),
        ({"bind": {"sddl": "D:("}}, r"settings\.bind\.sddl: SDDL, character 3: an entry ends"),
        ({"connect": {"sddl": "D:", "everyone": True}}, "no member 'everyone'"),
        ({"connect": "D:"}, "settings.connect is an object, not a string"),
        ({"denied": "kvp.set"}, "settings.denied is an array of strings, not a string"),
        ({"denied": [5]}, "settings.denied is a string, not a number"),
        ({"denied": ["kvp*"]}, r"'kvp\*' is no operation"),
        ({"denied": ["kvp set"]}, "'kvp set' is no operation: they are like kvp.set"),
        ({"denied": [f"kvp.a{number}" for number in range(65)]}, "at most 64 operations, not 65"),
    ],
)
def test_what_is_no_setting_is_refused_with_its_place(value: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        settings_from_value(value, "settings")


def test_json_carries_defaults(registry: Registry, tmp_path: Path) -> None:
    registry.change_settings(ONE, VM, connect=DENY)
    registry.change_defaults(bind=ALLOW)
    registry.change_defaults(VM, wildcard_binds=False, connect=Allowed(uids=frozenset({5})))
    document = load_json(dump_json(registry.entries(), registry.defaults()), now=0.0)
    assert document == (registry.entries(), registry.defaults())
    (tmp_path / "other").mkdir()
    with Registry(tmp_path / "other") as other:
        other.import_entries(document.services, defaults=document.defaults)
        assert other.get(ONE) == registry.get(ONE)
        assert other.defaults() == registry.defaults()
        other.import_entries(document.services, replace=True, defaults=document.defaults)
        other.change_defaults(bind=DENY)
        with pytest.raises(DuplicateError, match="other defaults for all VMs already"):
            other.import_entries([], defaults=document.defaults)
        assert other.import_entries([], replace=True, defaults=document.defaults) == Imported(0, 0, 0)
        assert other.defaults() == registry.defaults()


def test_empty_defaults_are_none_and_open_nothing(registry: Registry, tmp_path: Path) -> None:
    """A VM that has defaults is asked about services that are not registered (unlisted)."""
    registry.import_entries([], defaults={VM: Settings(), VM2: Settings(bind=DENY)})
    assert registry.defaults() == {VM2: Settings(bind=DENY)}
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        assert connection.execute("SELECT vm_id FROM defaults").fetchall() == [(str(VM2),)]
        connection.execute("INSERT INTO defaults VALUES (?, '{}')", (str(VM),))  # as earlier imports left it
    assert registry.defaults() == {VM2: Settings(bind=DENY)}
    with pytest.raises(DuplicateError, match=f"other defaults for the VM {VM2}"):
        registry.import_entries([], defaults={VM2: Settings()})
    registry.import_entries([], replace=True, defaults={VM2: Settings()})
    assert registry.defaults() == {}


@pytest.mark.parametrize(
    ("defaults", "why"),
    [
        ([], "defaults is an object, not an array"),
        ({"everybody": {}}, "not a VmId: 'everybody'"),
        ({"all": {"enabled": True}}, "defaults.all: defaults say who"),
        ({VM: {"bind": {"sddl": "x"}}}, rf"defaults\.{VM}\.bind\.sddl: SDDL, character 1"),
        ({str(VM2): {}, str(VM2).upper(): {}}, "twice"),
    ],
)
def test_json_with_bad_defaults(defaults: Any, why: str) -> None:
    document = {"format": "hvsock-registry", "version": 1, "defaults": defaults, "services": []}
    with pytest.raises(UsageError, match=why):
        load_json(json.dumps(document).encode(), now=0.0)


def test_two_who_deny_at_once_lose_nothing(registry: Registry) -> None:
    registry.change_settings(ONE, VM, denied=lambda before: before | {"one.do"})
    entry = registry.change_settings(ONE, VM, denied=lambda before: before | {"one.stop"})
    assert entry.service().settings_for(VM).denied == frozenset({"one.do", "one.stop"})
    assert registry.change_settings(ONE, VM, denied=None).per_vm == {}
