"""The registry as JSON: everything there and back, and nothing else in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import UsageError
from hvsock.registry.entries import MAX_SERVICES, ServiceEntry, inbox_entries
from hvsock.registry.formats import jsonfile
from hvsock.registry.formats.jsonfile import dump_json, load_json
from hvsock.registry.forwards import Forward
from hvsock.topology.access import Allowed, Settings
from tests.registry import strategies

ONE = "3049197c-9a4e-4fbf-9367-97f792f16994"
VM = "11111111-2222-3333-4444-555555555555"


def document(**service: Any) -> bytes:
    """A document with one service, that of the arguments over a good one."""
    return json.dumps(
        {"format": "hvsock-registry", "version": 1, "services": [{"id": ONE, "name": "x", **service}]}
    ).encode()


def test_the_document_of_one_service() -> None:
    entry = ServiceEntry(
        ServiceId(ONE),
        "Bücher 服",
        port_alias=5000,
        created=1_769_860_800.25,
        changed=1_769_860_801.0,
        settings=Settings(enabled=False, connect=Allowed(uids=frozenset({1000, 4}), gids=frozenset({7}))),
        per_vm={VmId(VM): Settings(enabled=True, wildcard_binds=False, bind=Allowed(everyone=True))},
        forward=Forward("127.0.0.1", 80),
    )
    data = dump_json([entry])
    assert "Bücher 服".encode() in data
    assert json.loads(data) == {
        "format": "hvsock-registry",
        "version": 1,
        "services": [
            {
                "id": ONE,
                "name": "Bücher 服",
                "port_alias": 5000,
                "flags": [],
                "created": "2026-01-31T12:00:00.250000Z",
                "changed": "2026-01-31T12:00:01.000000Z",
                "settings": {"enabled": False, "connect": {"everyone": False, "uids": [4, 1000], "gids": [7]}},
                "per_vm": {
                    VM: {
                        "enabled": True,
                        "wildcard_binds": False,
                        "bind": {"everyone": True, "uids": [], "gids": []},
                    }
                },
                "forward": "tcp:127.0.0.1:80",
            }
        ],
    }
    assert load_json(data, now=0.0).services == [entry]


@settings(max_examples=strategies.EXAMPLES)
@given(strategies.registries)
def test_there_and_back(entries: list[ServiceEntry]) -> None:
    everything = [*inbox_entries(12.5), *entries]
    data = dump_json(everything)
    assert load_json(data, now=1.0).services == everything
    assert load_json(b"\xef\xbb\xbf" + data, now=1.0).services == everything


def test_id_and_name_are_enough() -> None:
    assert load_json(document(), now=7.0).services == [ServiceEntry(ServiceId(ONE), "x", created=7.0, changed=7.0)]
    nothing = dict.fromkeys(("port_alias", "flags", "created", "changed", "settings", "per_vm"))
    assert load_json(document(**nothing), now=7.0) == load_json(document(), now=7.0)
    assert load_json(
        document(settings={"enabled": None, "bind": None}, per_vm={VM: {"connect": {}}}), now=7.0
    ).services == [
        ServiceEntry(ServiceId(ONE), "x", created=7.0, changed=7.0, per_vm={VmId(VM): Settings(connect=Allowed())})
    ]


@pytest.mark.parametrize(
    ("service", "why"),
    [
        ({"id": "hello"}, "not a GUID: 'hello'"),
        ({"id": 5}, "a ServiceId is text, not int"),
        ({"id": None}, "a ServiceId is text"),
        ({"name": ""}, "empty"),
        ({"name": " "}, "empty"),
        ({"name": "\ud800"}, r"U\+D800"),
        ({"name": "x" * 256}, "at most 255"),
        ({"name": ["x"]}, "a service's name is text, not list"),
        ({"port_alias": -1}, "0 to 4294967294, not -1"),
        ({"port_alias": 5.5}, "not float"),
        ({"port_alias": True}, "not bool"),
        ({"port_alias": 1 << 1000}, "more than 64 bits"),
        ({"id": "3049197c-facb-11e6-bd58-64006a7986d3", "port_alias": 5}, "takes no port alias"),
        ({"flags": "inbox"}, "flags is an array"),
        ({"flags": [1]}, "flags is an array"),
        ({"flags": ["outbox"]}, "unknown flag: 'outbox'"),
        ({"created": "yesterday"}, "created is a time like"),
        ({"changed": 5}, "changed is a time like"),
        ({"changed": "2026-01-31T12:00:00"}, "changed is a time like"),
        ({"settings": []}, "settings is an object, not an array"),
        ({"settings": {"enabled": "yes"}}, "settings.enabled is true or false, not a string"),
        ({"settings": {"enabled": 1}}, "settings.enabled is true or false, not a number"),
        ({"settings": {"wildcard_binds": 1.5}}, "settings.wildcard_binds is true or false, not a number"),
        ({"settings": {"enabeld": True}}, "settings has no member 'enabeld'"),
        ({"settings": {"bind": True}}, "settings.bind is an object, not a boolean"),
        ({"settings": {"bind": {"everyone": 1}}}, "settings.bind.everyone is true or false"),
        ({"settings": {"connect": {"uids": 5}}}, "settings.connect.uids is an array"),
        ({"settings": {"connect": {"gids": [True]}}}, "settings.connect.gids is an array"),
        ({"settings": {"connect": {"gids": [-1]}}}, "0 to 4294967294"),
        ({"settings": {"connect": {"gids": [1 << 100]}}}, "0 to 4294967294"),
        ({"per_vm": []}, "per_vm is an object"),
        ({"per_vm": {"host": {}}}, "not a VmId: 'host'"),
        ({"per_vm": {"00000000-0000-0000-0000-000000000000": {}}}, "not the VmId of one"),
        ({"per_vm": {VM: {}, "{" + VM + "}": {}}}, f"per_vm has {VM} twice"),
        ({"per_vm": {VM: None}}, f"per_vm.{VM} is an object, not null"),
        ({"alias": 5}, "has no member 'alias'"),
        ({"a\nb": 5}, r"has no member 'a\\nb'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(service: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=rf"^services\[0\].*{why}") as caught:
        load_json(document(**service), now=0.0)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8: byte 0"),
        (b"[" * 100_000, "not JSON"),
        (b"5" * 10_000, "not JSON"),
        (b"NaN", "not JSON: NaN"),
        (b"[]", "the document is an object, not an array"),
        (b"null", "the document is an object, not null"),
        (b"{}", "not a registry"),
        (b'{"format": "other", "version": 1, "services": []}', "not a registry"),
        (b'{"format": "hvsock-registry", "services": []}', 'unknown "version"'),
        (b'{"format": "hvsock-registry", "version": 2, "services": []}', 'unknown "version"'),
        (b'{"format": "hvsock-registry", "version": true, "services": []}', 'unknown "version"'),
        (b'{"format": "hvsock-registry", "version": 1}', '"services" is an array, not null'),
        (b'{"format": "hvsock-registry", "version": 1, "services": {}}', '"services" is an array'),
        (b'{"format": "hvsock-registry", "version": 1, "services": [[]]}', r"services\[0\] is an object"),
        (b'{"format": "hvsock-registry", "version": 1, "more": 1}', "no member 'more'"),
        (b'{"format": 1, "format": 2}', "member 'format' twice"),
    ],
)
def test_documents_that_are_none(data: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        load_json(data, now=0.0)
    assert str(caught.value).isprintable()


def test_documents_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "MAX_JSON_BYTES", 100)
    with pytest.raises(UsageError, match="the file has 101 bytes"):
        load_json(b" " * 101, now=0.0)
    services = json.dumps({"format": "hvsock-registry", "version": 1, "services": [0] * (MAX_SERVICES + 1)})
    monkeypatch.undo()
    with pytest.raises(UsageError, match="16385 services; a registry holds 16384"):
        load_json(services.encode(), now=0.0)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*jsonfile._MEMBERS, "enabled", "bind", "uids", VM]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=60) | _VALUES.map(lambda value: document(settings=value, per_vm=value)))
def test_nothing_but_a_clear_refusal_comes_of_rubbish(data: bytes) -> None:
    try:
        load_json(data, now=0.0)
    except UsageError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text


@given(_VALUES, st.sampled_from(jsonfile._MEMBERS))
def test_nothing_but_a_clear_refusal_comes_of_any_value(value: Any, member: str) -> None:
    try:
        loaded = load_json(document(**{member: value}), now=0.0).services
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017 - a refusal is one of two good outcomes
    else:
        assert load_json(dump_json(loaded), now=1.0).services == loaded
