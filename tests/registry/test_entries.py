"""What may be registered: names in any script of the world, ids, port aliases, settings."""

# ruff: noqa: RUF001 - names in many scripts look alike

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_ZERO, ServiceId, VmId, parse_service_id
from hvsock.constants import INTEGRATION_SERVICES
from hvsock.errors import UsageError
from hvsock.registry import entries
from hvsock.registry.entries import (
    MAX_ALLOWED_IDS,
    MAX_SERVICE_NAME_CHARACTERS,
    MAX_VMS_WITH_SETTINGS,
    ServiceEntry,
    check_entry,
    check_port_alias,
    check_service_id,
    check_service_name,
    check_settings,
    check_vm_id,
    inbox_entries,
    name_key,
    quoted,
)
from hvsock.registry.values import rounded_time, time_from_text, time_to_text
from hvsock.topology.access import Allowed, Service, Settings

DEMO = ServiceId("3049197c-facb-11e6-bd58-64006a7986d3")
OTHER = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
VM = VmId("11111111-2222-3333-4444-555555555555")


def test_inbox_services_are_those_of_the_original() -> None:
    first, second, *ours = inbox_entries(5.0)
    assert (first.id, first.name, first.port_alias) == (
        "999e53d4-3d5c-4c3e-8779-bed06ec056e1",
        "VM Session Service",
        0x999E53D4,
    )
    assert (second.id, second.name, second.port_alias) == (
        "a5201c21-2770-4c11-a68e-f182edb29220",
        "VM Session Service-2",
        0xA5201C21,
    )
    assert [(one.id.port, one.name) for one in ours] == [(one.port, one.name) for one in INTEGRATION_SERVICES]
    assert all(one.inbox and (one.created, one.changed) == (5.0, 5.0) for one in (first, second, *ours))
    assert all(check_entry(one) == one for one in (first, second, *ours))


def test_inbox_services_are_enabled_but_for_the_one_that_the_original_disables() -> None:
    off = [one for one in inbox_entries(5.0) if not one.service().settings_for(None).enabled]
    assert [one.name for one in off] == ["Guest Service Interface"]
    assert not any(one.touched for one in inbox_entries(5.0))
    enabled = replace(off[0], per_vm={VM: Settings(enabled=True)})
    assert enabled.touched
    assert enabled.service().settings_for(VM).enabled
    assert not enabled.service().settings_for(None).enabled
    assert enabled.service().settings_for(VM).wildcard_binds
    assert replace(off[0], settings=Settings(enabled=True)).service().settings_for(None).enabled
    assert replace(off[0], flags=frozenset()).service().settings_for(None).enabled  # an operator's own


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "HV Socket Demo",
        "VM Session Service-2",
        "a/b\\c",
        'say "hello"',
        "it's; [here]",
        "服务",
        "служба",
        "خدمة",
        "שירות",
        "می\u200cخواهم",
        "ශ්\u200dරී",
        "サービス\u3000一",
        "👩\u200d💻 service",
        "𐐀𝔘𝔫𝔦",
        "n" * MAX_SERVICE_NAME_CHARACTERS,
        "0x",
        "0xyz",
        "port 5000",
        "-1",
        "5000 x",
    ],
)
def test_names_in_any_script(name: str) -> None:
    assert check_service_name(name) == name


def test_names_are_kept_in_form_nfc() -> None:
    decomposed = unicodedata.normalize("NFD", "Ünïcödé")
    assert check_service_name(decomposed) == "Ünïcödé"
    most = unicodedata.normalize("NFD", "ᾂ") * MAX_SERVICE_NAME_CHARACTERS
    assert len(most) == 4 * MAX_SERVICE_NAME_CHARACTERS
    assert check_service_name(most) == "ᾂ" * MAX_SERVICE_NAME_CHARACTERS


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("\t", "empty"),
        (" x", "blanks"),
        ("x ", "blanks"),
        ("x\u3000", "blanks"),
        ("n" * (MAX_SERVICE_NAME_CHARACTERS + 1), "at most 255 characters, not 256"),
        ("n" * 1_000_000, "at most 255 characters, not 1000000"),
        ("a\nb", "U+000A"),
        ("a\rb", "U+000D"),
        ("a\0b", "U+0000"),
        ("a\x1b[31mb", "U+001B"),
        ("a\x7fb", "U+007F"),
        ("a\u202eb", "U+202E"),
        ("a\u2028b", "U+2028"),
        ("a\ufeffb", "U+FEFF"),
        ("a\ue000b", "U+E000"),
        ("a\uffffb", "U+FFFF"),
        ("a\ufdd0b", "U+FDD0"),
        ("a\U0010fffeb", "U+10FFFE"),
        ("a\ud800b", "U+D800"),
        ("\u200d", "visible"),
        ("5000", "GUID or a port"),
        ("4294967296", "GUID or a port"),
        ("0" * 20, "GUID or a port"),
        ("0x10", "GUID or a port"),
        ("0Xffffffffff", "GUID or a port"),
        ("999e53d4-3d5c-4c3e-8779-bed06ec056e1", "GUID or a port"),
        ("{999E53D4-3D5C-4C3E-8779-BED06EC056E1}", "GUID or a port"),
        (None, "text"),
        (b"x", "text"),
        (5, "text"),
    ],
)
def test_names_that_none_can_be(name: Any, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_service_name(name)
    message = str(caught.value)
    assert why in message
    assert message.isprintable()
    assert len(message) < 250


@given(st.text(max_size=30))
def test_a_name_is_never_read_as_something_else(text: str) -> None:
    try:
        name = check_service_name(text)
    except UsageError:
        return
    assert parse_service_id(name) is None
    assert check_service_name(name) == name
    assert name.encode("utf-16-le").decode("utf-16-le") == name


@pytest.mark.parametrize(
    ("one", "other"),
    [("Straße", "STRASSE"), ("ÅNGSTRÖM", "a\u030angstro\u0308m"), ("ΣΑΣ", "σας"), ("ﬃ", "FFI"), ("İ", "i\u0307")],
)
def test_names_compare_without_case_and_composition(one: str, other: str) -> None:
    assert name_key(one) == name_key(other)


@given(st.text(max_size=20))
def test_the_key_of_a_name_does_not_depend_on_its_form(text: str) -> None:
    assert (
        name_key(text)
        == name_key(unicodedata.normalize("NFC", text))
        == name_key(unicodedata.normalize("NFD", text))
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hello", "not a GUID: 'hello'"),
        ("", "not a GUID: ''"),
        ("2761", "not a GUID"),
        ("999e53d4-3d5c-4c3e-8779-bed06ec056e", "not a GUID"),
        ("9" * 1_000_000, "not a GUID"),
        ("99\n", r"not a GUID: '99\n'"),
        (str(HV_GUID_ZERO), "cannot be registered"),
        (7, "text"),
    ],
)
def test_ids_that_none_can_be(text: Any, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_service_id(text)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 250


def test_ids_may_be_spelt_in_any_case() -> None:
    assert check_service_id("{3049197C-FACB-11E6-BD58-64006A7986D3}") == DEMO


@pytest.mark.parametrize(
    ("port", "why"),
    [
        (-1, "0 to 4294967294, not -1"),
        (0xFFFFFFFF, "not 4294967295"),
        pytest.param(10**5000, "more than 64 bits", id="huge"),
        (True, "not bool"),
        (5.0, "not float"),
        ("5", "not str"),
    ],
)
def test_port_aliases_that_none_can_be(port: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_port_alias(port, OTHER)


def test_a_service_of_the_template_takes_no_port_alias() -> None:
    assert check_port_alias(None, DEMO) is None
    with pytest.raises(UsageError, match=f"is port {0x3049197C} in itself"):
        check_port_alias(5, DEMO)


def test_the_port_of_an_entry() -> None:
    assert ServiceEntry(OTHER, "x").port is None
    assert ServiceEntry(OTHER, "x", port_alias=0).port == 0
    assert ServiceEntry(DEMO, "x").port == 0x3049197C


def test_an_entry_as_the_rules_take_it() -> None:
    settings, per_vm = Settings(enabled=False), {VM: Settings(enabled=True)}
    entry = ServiceEntry(OTHER, "x", settings=settings, per_vm=per_vm)
    assert entry.service() == Service(OTHER, "x", settings, per_vm)
    assert entry.touched
    assert not entry.inbox
    assert not ServiceEntry(OTHER, "x").touched


@pytest.mark.parametrize(
    ("text", "why"), [("host", "not a VmId"), (str(HV_GUID_CHILDREN), "not the VmId of one"), (5, "text")]
)
def test_vm_ids_that_none_can_be(text: Any, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_vm_id(text)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(bind=Allowed(uids=frozenset({-1}))),
        Settings(connect=Allowed(gids=frozenset({0xFFFFFFFF}))),
        Settings(connect=Allowed(uids=frozenset({True}))),
        Settings(bind=Allowed(uids=frozenset(range(MAX_ALLOWED_IDS + 1)))),
        Settings(enabled=1),  # type: ignore[arg-type]
        Settings(wildcard_binds="no"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_none_can_be(settings: Settings) -> None:
    with pytest.raises(UsageError):
        check_settings(settings)


@pytest.mark.parametrize(
    "change",
    [
        lambda: ServiceEntry(OTHER, " x"),
        lambda: ServiceEntry(ServiceId(HV_GUID_ZERO), "x"),
        lambda: ServiceEntry(DEMO, "x", port_alias=1),
        lambda: ServiceEntry(OTHER, "x", flags=frozenset({"outbox"})),
        lambda: ServiceEntry(OTHER, "x", settings=Settings(bind=Allowed(uids=frozenset({-1})))),
        lambda: ServiceEntry(OTHER, "x", per_vm={HV_GUID_CHILDREN: Settings()}),
        lambda: ServiceEntry(OTHER, "x", per_vm={VM: Settings(bind=Allowed(uids=frozenset({-1})))}),
        lambda: ServiceEntry(
            OTHER, "x", per_vm=dict.fromkeys(map(VmId.new().from_bytes_le, _many_guids()), Settings())
        ),
    ],
)
def test_entries_that_none_can_be(change: Callable[[], ServiceEntry]) -> None:
    with pytest.raises(UsageError):
        check_entry(change())


def _many_guids() -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(1, MAX_VMS_WITH_SETTINGS + 2)]


def test_a_refused_text_is_repeated_in_part() -> None:
    assert quoted("a\nb") == r"'a\nb'"
    assert len(quoted("x" * 1_000_000)) < 100


@given(st.floats(0, 253_402_300_799.0))
def test_times_survive_their_written_form(seconds: float) -> None:
    moment = rounded_time(seconds)
    assert time_from_text(time_to_text(moment), "created") == moment


def test_times_as_iso_8601() -> None:
    assert time_to_text(1_769_860_800.25) == "2026-01-31T12:00:00.250000Z"
    assert time_from_text("2026-01-31T13:00:00.25+01:00", "created") == 1_769_860_800.25


@pytest.mark.parametrize("text", ["", "now", "2026-01-31", "2026-01-31T12:00:00", "1969-12-31T23:59:59Z", None, 5])
def test_times_that_none_can_be(text: Any) -> None:
    with pytest.raises(UsageError, match="changed is a time like"):
        time_from_text(text, "changed")


@pytest.mark.parametrize("now", [-1.0, float("nan"), float("inf"), 1e12])
def test_clocks_that_are_wrong(now: float) -> None:
    with pytest.raises(UsageError, match="from 1970 to 9999"):
        rounded_time(now)


def test_keep_says_what_it_is() -> None:
    assert repr(entries.KEEP) == "KEEP"


def test_sqlite_is_loaded_at_the_first_use_of_a_registry_only() -> None:
    code = """if True:
        import sys, hvsock, hvsock.registry
        from hvsock.registry import ServiceEntry
        from hvsock.registry.formats import jsonfile, powershell, regfile
        assert "sqlite3" not in sys.modules
        from hvsock.registry import Registry, Imported
        assert "sqlite3" in sys.modules
        assert not hasattr(hvsock.registry, "Registrar")
    """
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
