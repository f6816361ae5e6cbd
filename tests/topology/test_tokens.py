"""Who somebody is in the words of Windows, and what a setting of either kind says about it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.topology.access import (
    DEFAULTS,
    Allowed,
    Opinion,
    Owner,
    Service,
    Settings,
    Subject,
    may,
    token_of_guest,
    unlisted,
)
from hvsock.topology.sddl import format_sddl, parse_sddl
from hvsock.topology.sids import ADMINISTRATORS, AUTHENTICATED_USERS, EVERYONE, SYSTEM, VIRTUAL_MACHINES, vm_sid
from tests.support import sample
from tests.topology.world import ECHO, World, vm_id

OWNER = Owner(7, admin_gid=4)
VM, OTHER_VM, CONTAINER = vm_id(2), vm_id(3), vm_id(4)
USERS = {EVERYONE, AUTHENTICATED_USERS}


@pytest.mark.parametrize(
    ("subject", "more"),
    [
        (Subject(7, frozenset({70})), {"S-1-22-1-7", "S-1-22-2-70", ADMINISTRATORS}),
        (Subject(0), {"S-1-22-1-0", SYSTEM, ADMINISTRATORS}),
        (Subject(8, frozenset({4, 80})), {"S-1-22-1-8", "S-1-22-2-4", "S-1-22-2-80", ADMINISTRATORS}),
        (Subject(8), {"S-1-22-1-8"}),
    ],
    ids=["owner", "root", "in the admin group", "another"],
)
def test_the_token_of_a_process_of_the_host(subject: Subject, more: set[str]) -> None:
    assert OWNER.token(subject) == USERS | more


def test_the_token_of_a_guest_has_the_vms_that_it_runs_in() -> None:
    world = World()
    assert token_of_guest(world.tree, world["web"]) == {EVERYONE, VIRTUAL_MACHINES, vm_sid(world["web"].id)}
    assert token_of_guest(world.tree, world["pod"]) == {
        EVERYONE,
        VIRTUAL_MACHINES,
        *(vm_sid(world[name].id) for name in ("pod", "nested", "web")),
    }


@pytest.mark.parametrize(
    ("sddl", "uid", "opinion"),
    [
        ("D:P(A;;FA;;;BA)", 7, Opinion(True, "ACE 1 of its descriptor, (A;;FA;;;BA), allows it")),
        ("D:P(A;;FA;;;SY)(D;;GA;;;WD)", 7, Opinion(False, "ACE 2 of its descriptor, (D;;GA;;;WD), denies it")),
        ("D:P(A;;FA;;;SY)", 7, Opinion(False, "no ACE of its descriptor allows it")),
        ("D:NO_ACCESS_CONTROL", 8, Opinion(True, "its descriptor has no list")),
        ("D:P(A;;FA;;;S-1-22-1-8)", 8, Opinion(True, "ACE 1 of its descriptor, (A;;FA;;;S-1-22-1-8), allows it")),
    ],
)
def test_a_descriptor_decides_alone_and_says_why(sddl: str, uid: int, opinion: Opinion) -> None:
    """Over the owner of the fabric too."""
    assert may(parse_sddl(sddl), Subject(uid), OWNER) == opinion


def test_users_and_groups_are_besides_those_who_administer() -> None:
    assert may(Allowed(), Subject(7), OWNER) == Opinion(True)
    assert may(Allowed(), Subject(8), OWNER) == Opinion(False)
    assert may(None, Subject(0), OWNER) == Opinion(True)
    assert may(None, Subject(8), OWNER) == Opinion(False)
    assert may(Allowed(uids=frozenset({8})), Subject(8), OWNER) == Opinion(True)


def test_who_may_be_in_other_groups_is_allowed_nothing_by_them_and_denied_what_any_is() -> None:
    denied = parse_sddl("D:P(D;;FA;;;S-1-22-2-9)(A;;FA;;;WD)")
    assert may(denied, Subject(8), OWNER).allowed
    assert not may(denied, Subject(8, in_others=True), OWNER).allowed
    assert not may(Allowed(gids=frozenset({9})), Subject(8, in_others=True), OWNER).allowed
    assert may(Allowed(), Subject(7, in_others=True), OWNER).allowed


_few = st.frozensets(st.integers(0, 9), max_size=3)


@settings(max_examples=sample(40, 5_000))
@given(
    st.builds(Allowed, st.booleans(), _few, _few),
    st.builds(Subject, st.integers(0, 9), _few),
    st.builds(Owner, st.integers(0, 9), st.none() | st.integers(0, 9)),
)
def test_users_and_groups_as_a_descriptor_say_the_same(allowed: Allowed, subject: Subject, owner: Owner) -> None:
    descriptor = allowed.descriptor()
    assert may(descriptor, subject, owner).allowed is may(allowed, subject, owner).allowed
    assert parse_sddl(format_sddl(descriptor)) == descriptor


def test_the_built_in_default_is_that_of_hcs() -> None:
    assert format_sddl(Allowed().descriptor()) == "D:P(A;;FA;;;SY)(A;;FA;;;BA)"


def test_defaults_lie_below_the_service_and_over_what_is_built_in() -> None:
    """The service for the VM, the service, the defaults of the VM, the defaults for all, what is built in."""
    one, two, three, four = (Allowed(uids=frozenset({number})) for number in (1, 2, 3, 4))
    by_default = {None: Settings(bind=four, connect=four), VM: Settings(bind=three, wildcard_binds=False)}
    bare = Service(ECHO, "echo", defaults=by_default)
    assert bare.settings_for(None) == Settings(True, True, four, four)
    assert bare.settings_for(VM) == Settings(True, False, three, four)
    assert bare.settings_for(OTHER_VM) == Settings(True, True, four, four)
    assert bare.settings_for(CONTAINER, through=VM) == Settings(True, False, three, four)
    service = Service(ECHO, "echo", Settings(bind=two), {VM: Settings(connect=one)}, defaults=by_default)
    assert service.settings_for(VM) == Settings(True, False, two, one)
    assert service.settings_for(OTHER_VM) == Settings(True, True, two, four)


def test_services_that_are_not_registered_are_for_vms_with_defaults() -> None:
    by_default = {None: Settings(bind=Allowed(True)), VM: Settings()}
    assert unlisted(ECHO, {None: Settings()}, VM, None) is None
    assert unlisted(ECHO, by_default, OTHER_VM, None) is None
    for service in (unlisted(ECHO, by_default, VM, None), unlisted(ECHO, by_default, CONTAINER, VM)):
        assert service is not None
        assert service.settings_for(VM) == Settings(True, False, Allowed(True), DEFAULTS.connect)
        assert service.port == ECHO.port
