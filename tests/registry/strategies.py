"""Strategies for what a registry holds."""

# ruff: noqa: RUF001 - names in many scripts look alike

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

from hvsock.addresses import WELL_KNOWN_VMIDS, ServiceId, VmId
from hvsock.errors import UsageError
from hvsock.registry.entries import MAX_PORT_ALIAS, MAX_UNIX_ID, ServiceEntry, check_service_name, name_key
from hvsock.registry.forwards import Forward
from hvsock.topology.access import Allowed, Settings
from hvsock.topology.sddl import parse_sddl
from tests.support import sample

EXAMPLES = sample(12, 2_000)
"""How many registries a test looks at."""


def _is_name(text: str) -> bool:
    try:
        return check_service_name(text) == text
    except UsageError:
        return False


_CHARACTERS = st.one_of(
    st.characters(exclude_categories=("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp")),
    st.sampled_from("\\\"'`$;[]{}#=@,&%^!~|<>()*?/:-_ \u00a0\u3000"),
    st.sampled_from("\u2018\u2019\u201a\u201b\u201c\u201d\u200c\u200d\ufe0f"),
    st.sampled_from("VM服务ਸੇਵਾשירותخدمةбслужба🖥️👩\u200d💻ßİıﬃǅ"),
)
names = (
    st.text(_CHARACTERS, min_size=1, max_size=40)
    .map(lambda text: unicodedata.normalize("NFC", text).strip())
    .filter(_is_name)
)
guids = st.uuids().map(str)
service_ids = guids.map(ServiceId).filter(lambda guid: guid.port is None)
vm_ids = guids.map(VmId).filter(lambda guid: guid not in WELL_KNOWN_VMIDS.values())
times = st.floats(0, 4_000_000_000).map(lambda seconds: round(seconds, 6))
_ids = st.frozensets(st.integers(0, MAX_UNIX_ID), max_size=3)
allowed = st.builds(Allowed, st.booleans(), _ids, _ids)
access = allowed | st.sampled_from(
    [
        "D:P(A;;FA;;;SY)(A;;FA;;;BA)",
        "D:P(D;;FA;;;WD)",
        "D:",
        "O:BAD:NO_ACCESS_CONTROL",
        "D:(A;OICI;GRGW;;;S-1-5-83-0)",
    ]
).map(parse_sddl)
settings_of_defaults = st.builds(
    Settings, wildcard_binds=st.none() | st.booleans(), bind=st.none() | access, connect=st.none() | access
)
settings_of_services = st.builds(
    Settings,
    enabled=st.none() | st.booleans(),
    wildcard_binds=st.none() | st.booleans(),
    bind=st.none() | access,
    connect=st.none() | access,
    denied=st.none() | st.frozensets(st.sampled_from(["kvp.set", "kvp.*", "*", "direct.exec"])),
)
forwards = st.builds(Forward, st.sampled_from(["/run/web.sock", "/tmp/Grüße 你好/s: 1"]), st.none()) | st.builds(
    Forward, st.sampled_from(["127.0.0.1", "127.9.8.7", "::1"]), st.integers(1, 65_535)
)
entries = st.builds(
    ServiceEntry,
    id=service_ids,
    name=names,
    port_alias=st.none() | st.integers(0, MAX_PORT_ALIAS),
    created=times,
    changed=times,
    settings=settings_of_services,
    per_vm=st.dictionaries(vm_ids, settings_of_services.filter(lambda one: one != Settings()), max_size=3),
    forward=st.none() | forwards,
)
registries = st.lists(entries, max_size=5, unique_by=(lambda one: one.id, lambda one: name_key(one.name)))
