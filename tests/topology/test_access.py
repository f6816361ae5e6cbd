"""Settings lie over each other: a VM's over the service's over the defaults."""

from __future__ import annotations

from dataclasses import fields

import pytest

from hvsock.topology.access import DEFAULTS, Allowed, Owner, Service, Settings, Subject
from tests.topology.world import ECHO, vm_id

VM, OTHER_VM, CONTAINER = vm_id(2), vm_id(3), vm_id(4)
OPEN_TO_ALL = Allowed(everyone=True)
FULL = Settings(enabled=False, wildcard_binds=False, bind=OPEN_TO_ALL, connect=OPEN_TO_ALL)


def test_defaults_enabled_wildcard_binds_allowed_and_nobody_besides_the_administrators() -> None:
    by_default = Settings(enabled=True, wildcard_binds=True, bind=Allowed(), connect=Allowed())
    assert by_default == DEFAULTS
    assert Service(ECHO, "echo").settings_for(None) == DEFAULTS
    assert Service(ECHO, "echo").settings_for(VM) == DEFAULTS


@pytest.mark.parametrize("name", [one.name for one in fields(Settings)])
def test_each_setting_lies_over_the_level_below_by_itself(name: str) -> None:
    """The others stay as they are below."""
    one = Settings(**{name: getattr(FULL, name)})
    expected = {field.name: getattr(DEFAULTS, field.name) for field in fields(Settings)}
    expected[name] = getattr(FULL, name)
    assert one.over(DEFAULTS) == Settings(**expected)
    assert DEFAULTS.over(one) == DEFAULTS
    assert Service(ECHO, "echo", one).settings_for(None) == Settings(**expected)
    assert Service(ECHO, "echo", FULL, {VM: DEFAULTS}).settings_for(VM) == DEFAULTS
    per_vm = Service(ECHO, "echo", per_vm={VM: one})
    assert per_vm.settings_for(VM) == Settings(**expected)
    assert per_vm.settings_for(OTHER_VM) == DEFAULTS
    assert per_vm.settings_for(None) == DEFAULTS


def test_what_a_vm_leaves_open_the_service_decides() -> None:
    service = Service(ECHO, "echo", Settings(enabled=False, bind=OPEN_TO_ALL), {VM: Settings(enabled=True)})
    assert service.settings_for(VM) == Settings(
        enabled=True, wildcard_binds=True, bind=OPEN_TO_ALL, connect=Allowed()
    )


def test_what_a_container_leaves_open_the_vm_decides_that_it_passes_through() -> None:
    per_vm = {VM: Settings(enabled=False, wildcard_binds=False), CONTAINER: Settings(enabled=True)}
    settings = Service(ECHO, "echo", per_vm=per_vm).settings_for(CONTAINER, through=VM)
    assert (settings.enabled, settings.wildcard_binds) == (True, False)
    assert Service(ECHO, "echo", per_vm=per_vm).settings_for(CONTAINER).wildcard_binds is True


def test_allowed_includes_by_user_by_group_or_everyone() -> None:
    subject = Subject(uid=7, gids=frozenset({8, 9}))
    assert not Allowed().includes(subject)
    assert not Allowed(uids=frozenset({8}), gids=frozenset({7})).includes(subject)
    assert Allowed(uids=frozenset({1, 7})).includes(subject)
    assert Allowed(gids=frozenset({1, 9})).includes(subject)
    assert Allowed(everyone=True).includes(Subject(uid=7))


@pytest.mark.parametrize(
    ("owner", "subject", "administers"),
    [
        (Owner(7), Subject(7), True),
        (Owner(7), Subject(0), True),
        (Owner(7), Subject(8), False),
        (Owner(7), Subject(8, frozenset({7})), False),
        (Owner(7, admin_gid=4), Subject(8, frozenset({4, 8})), True),
        (Owner(7, admin_gid=4), Subject(8, frozenset({8})), False),
        (Owner(7, admin_gid=4), Subject(4), False),
    ],
)
def test_who_administers_the_fabric(owner: Owner, subject: Subject, administers: bool) -> None:
    assert owner.administers(subject) is administers
