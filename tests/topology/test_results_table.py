"""What a bind, a listen and a connect come to, row by row of the table of results.

The classes quote the rows. Four rows are no matter of the rules: whether an address is bound already depends
on which sockets still live (EADDRINUSE), and an answer that does not come in time (ETIMEDOUT) on the clock,
which are the broker's; a pause of a VM is for its device, and a malformed address for the socket class: the
rules meet addresses as values that cannot be malformed.
"""

from __future__ import annotations

import errno

import pytest

from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_LOOPBACK, HV_GUID_PARENT, HV_GUID_WILDCARD, ServiceId, VmId
from hvsock.topology.access import Allowed, Settings, Subject
from hvsock.topology.decision import Grant
from hvsock.topology.refusals import Reason, Refusal
from tests.topology.world import ADMIN_GID, OWNER, SEQPACKET, STRANGER, STREAM, World, outcome

OFF = Settings(enabled=False)
ON = Settings(enabled=True)
NO_WILDCARDS = Settings(wildcard_binds=False)
GOES_ON = "goes on"

ROUTES = (
    ("host", HV_GUID_LOOPBACK, "host", False),
    ("host", "web", "web", False),
    ("host", "box", "box", True),
    ("web", HV_GUID_PARENT, "host", False),
    ("box", HV_GUID_PARENT, "web", False),
    ("box", HV_GUID_PARENT, "host", True),
    ("web", HV_GUID_LOOPBACK, "web", False),
    ("web", "db", "db", False),
)
ROUTE_IDS = (
    "host by LOOPBACK",
    "host to vm",
    "host to container in vm with PASSTHRU",
    "vm to host",
    "container to its vm",
    "container in vm to host with PASSTHRU",
    "vm by LOOPBACK",
    "vm to vm in its group",
)
every_route = pytest.mark.parametrize(("source", "to", "target", "passthru"), ROUTES, ids=ROUTE_IDS)


class TestNothingListens:
    """Row: nothing listens | ECONNREFUSED at once, never a time-out."""

    @every_route
    def test_no_socket(self, source: str, to: VmId | str, target: str, passthru: bool) -> None:
        verdict = World().register().connect(source, to, passthru=passthru)
        assert isinstance(verdict, Refusal)
        assert (verdict.errno, verdict.reason) == (errno.ECONNREFUSED, Reason.NO_LISTENER)

    @every_route
    def test_bound_and_not_listening(self, source: str, to: VmId | str, target: str, passthru: bool) -> None:
        world = World().register()
        world.bound(target, listening=False)
        assert outcome(world.connect(source, to, passthru=passthru)) == errno.ECONNREFUSED

    @every_route
    def test_with_a_listener_it_goes_on(self, source: str, to: VmId | str, target: str, passthru: bool) -> None:
        world = World().register()
        listener = world.bound(target)
        verdict = world.connect(source, to, passthru=passthru)
        assert isinstance(verdict, Grant)
        assert (verdict.listener, verdict.target) == (listener, world[target])

    def test_a_listener_for_another_service_is_none(self) -> None:
        world = World().register()
        world.listeners[world["host"].id, ServiceId.from_port(9)] = [world.bound("db")]
        assert outcome(world.connect("web", HV_GUID_PARENT)) == errno.ECONNREFUSED

    def test_a_socket_that_only_is_bound_does_not_hide_one_that_listens(self) -> None:
        world = World().register()
        world.bound("host", "web", listening=False)
        listener = world.bound("host")
        verdict = world.connect("web", HV_GUID_PARENT)
        assert isinstance(verdict, Grant)
        assert verdict.listener is listener

    @pytest.mark.parametrize(("have", "want"), [(STREAM, SEQPACKET), (SEQPACKET, STREAM)])
    def test_a_listener_of_the_other_type_is_eprototype(self, have: int, want: int) -> None:
        world = World().register()
        world.bound("host", type=have)
        verdict = world.connect("web", HV_GUID_PARENT, type=want)
        assert isinstance(verdict, Refusal)
        assert (verdict.errno, verdict.reason) == (errno.EPROTOTYPE, Reason.WRONG_TYPE)
        assert outcome(world.connect("web", HV_GUID_PARENT, type=have)) == GOES_ON


class TestNotRegistered:
    """Row: service not registered, not loopback | host side EACCES, guest side ECONNREFUSED."""

    @every_route
    def test_connect(self, source: str, to: VmId | str, target: str, passthru: bool) -> None:
        world = World()
        world.bound(target)
        verdict = world.connect(source, to, passthru=passthru)
        if to == HV_GUID_LOOPBACK:
            assert outcome(verdict) == GOES_ON
            return
        assert isinstance(verdict, Refusal)
        assert verdict.reason is Reason.NOT_REGISTERED
        assert verdict.errno == (errno.EACCES if source == "host" else errno.ECONNREFUSED)

    @every_route
    def test_connect_when_nothing_listens(self, source: str, to: VmId | str, target: str, passthru: bool) -> None:
        """Loopback then finds no listener; the others come no further than before."""
        verdict = World().connect(source, to, passthru=passthru)
        assert isinstance(verdict, Refusal)
        assert verdict.reason is (Reason.NO_LISTENER if to == HV_GUID_LOOPBACK else Reason.NOT_REGISTERED)

    @pytest.mark.parametrize(
        ("to", "expected"),
        [
            (HV_GUID_WILDCARD, errno.EACCES),
            (HV_GUID_CHILDREN, errno.EACCES),
            ("web", errno.EACCES),
            (HV_GUID_LOOPBACK, GOES_ON),
        ],
        ids=["WILDCARD", "CHILDREN", "a VmId", "LOOPBACK"],
    )
    def test_bind_on_the_host(self, to: VmId | str, expected: object) -> None:
        assert outcome(World().bind("host", to, STRANGER)) == expected

    @pytest.mark.parametrize("to", [HV_GUID_WILDCARD, HV_GUID_PARENT, HV_GUID_LOOPBACK, "box"])
    def test_bind_and_listen_in_a_guest_are_free(self, to: VmId | str) -> None:
        assert World().bind("web", to) is None
        assert World().listen("web", to) is None

    def test_listen_on_the_host_is_free_on_loopback(self) -> None:
        assert World().listen("host", HV_GUID_LOOPBACK) is None

    def test_no_user_may_do_what_is_not_registered(self) -> None:
        assert outcome(World().bind("host", HV_GUID_WILDCARD, Subject(OWNER.uid))) == errno.EACCES
        assert outcome(World().connect("host", "web", subject=Subject(OWNER.uid))) == errno.EACCES


SUBJECTS = (
    (Subject(OWNER.uid), Allowed(), True),
    (Subject(0), Allowed(), True),
    (Subject(2000, frozenset({2000, ADMIN_GID})), Allowed(), True),
    (STRANGER, Allowed(), False),
    (STRANGER, Allowed(uids=frozenset({2001}), gids=frozenset({2001})), False),
    (STRANGER, Allowed(everyone=True), True),
    (STRANGER, Allowed(uids=frozenset({2000})), True),
    (STRANGER, Allowed(gids=frozenset({7, 2000})), True),
)
every_subject = pytest.mark.parametrize(
    ("subject", "allowed", "may"),
    SUBJECTS,
    ids=[
        "the owner may",
        "root may",
        "a member of the admin group may",
        "others may not by default",
        "others may not when others yet are allowed",
        "everyone",
        "by user",
        "by group",
    ],
)


class TestDescriptorDenies:
    """Row: bind or connect descriptor denies the host process | EACCES."""

    @every_subject
    @pytest.mark.parametrize("to", [HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_LOOPBACK, "web"])
    def test_bind(self, to: VmId | str, subject: Subject, allowed: Allowed, may: bool) -> None:
        world = World().register(Settings(bind=allowed, connect=Allowed(everyone=not may)))
        refusal = world.bind("host", to, subject)
        if may:
            assert refusal is None
        else:
            assert refusal is not None
            assert (refusal.errno, refusal.reason) == (errno.EACCES, Reason.DENIED)

    @every_subject
    @pytest.mark.parametrize("to", [HV_GUID_LOOPBACK, "web"])
    def test_connect(self, to: VmId | str, subject: Subject, allowed: Allowed, may: bool) -> None:
        world = World().register(Settings(connect=allowed, bind=Allowed(everyone=not may)))
        world.bound("host")
        world.bound("web")
        verdict = world.connect("host", to, subject=subject)
        if may:
            assert isinstance(verdict, Grant)
        else:
            assert isinstance(verdict, Refusal)
            assert (verdict.errno, verdict.reason) == (errno.EACCES, Reason.DENIED)

    def test_per_vm_settings_count_for_that_vm_only(self) -> None:
        open_to_all = Allowed(everyone=True)
        world = World().register(web=Settings(bind=open_to_all, connect=open_to_all))
        world.bound("web")
        world.bound("db")
        assert outcome(world.bind("host", "web", STRANGER)) == GOES_ON
        assert outcome(world.bind("host", "db", STRANGER)) == errno.EACCES
        assert outcome(world.bind("host", HV_GUID_WILDCARD, STRANGER)) == errno.EACCES
        assert outcome(world.connect("host", "web", subject=STRANGER)) == GOES_ON
        assert outcome(world.connect("host", "db", subject=STRANGER)) == errno.EACCES

    def test_no_subject_leaves_the_user_unchecked(self) -> None:
        world = World().register()
        world.bound("web")
        assert outcome(world.bind("host", HV_GUID_WILDCARD)) == GOES_ON
        assert outcome(world.connect("host", "web")) == GOES_ON

    @pytest.mark.parametrize(("source", "to", "target", "passthru"), ROUTES[3:], ids=ROUTE_IDS[3:])
    def test_guests_are_never_checked_for_users(
        self, source: str, to: VmId | str, target: str, passthru: bool
    ) -> None:
        world = World().register()
        world.bound(target)
        assert outcome(world.connect(source, to, passthru=passthru, subject=STRANGER)) == GOES_ON
        assert outcome(world.bind(source, HV_GUID_WILDCARD, STRANGER)) == GOES_ON


class TestDisabled:
    """Row: service disabled | EINVAL at listen and at connect on the host; guest ECONNREFUSED."""

    @every_route
    def test_connect(self, source: str, to: VmId | str, target: str, passthru: bool) -> None:
        world = World().register(OFF)
        world.bound(target)
        verdict = world.connect(source, to, passthru=passthru)
        assert isinstance(verdict, Refusal)
        assert verdict.reason is Reason.DISABLED
        assert verdict.errno == (errno.EINVAL if source == "host" else errno.ECONNREFUSED)

    @pytest.mark.parametrize("to", [HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_LOOPBACK, "web", "box"])
    def test_listen_on_the_host(self, to: VmId | str) -> None:
        refusal = World().register(OFF).listen("host", to)
        assert refusal is not None
        assert (refusal.errno, refusal.reason) == (errno.EINVAL, Reason.DISABLED)
        assert World().register().listen("host", to) is None

    @pytest.mark.parametrize("to", [HV_GUID_WILDCARD, HV_GUID_PARENT, HV_GUID_LOOPBACK, "box"])
    def test_listen_in_a_guest_succeeds(self, to: VmId | str) -> None:
        assert World().register(OFF, web=OFF).listen("web", to) is None

    @pytest.mark.parametrize("to", [HV_GUID_WILDCARD, HV_GUID_LOOPBACK, "web"])
    def test_bind_does_not_ask(self, to: VmId | str) -> None:
        assert World().register(OFF).bind("host", to) is None

    def test_for_one_vm_both_ways_and_its_host_listens_to_the_others(self) -> None:
        world = World().register(web=OFF)
        for name in ("host", "web", "db"):
            world.bound(name)
        assert outcome(world.connect("web", HV_GUID_PARENT)) == errno.ECONNREFUSED
        assert outcome(world.connect("db", HV_GUID_PARENT)) == GOES_ON
        assert outcome(world.connect("host", "web")) == errno.EINVAL
        assert outcome(world.connect("host", "db")) == GOES_ON
        assert outcome(world.listen("host", "web")) == errno.EINVAL
        assert outcome(world.listen("host", "db")) == GOES_ON
        assert outcome(world.listen("host", HV_GUID_WILDCARD)) == GOES_ON

    def test_for_all_and_enabled_for_one_vm(self) -> None:
        world = World().register(OFF, web=ON)
        for name in ("host", "web", "db"):
            world.bound(name)
        assert outcome(world.connect("web", HV_GUID_PARENT)) == GOES_ON
        assert outcome(world.connect("db", HV_GUID_PARENT)) == errno.ECONNREFUSED
        assert outcome(world.connect("host", "web")) == GOES_ON
        assert outcome(world.connect("host", "db")) == errno.EINVAL
        assert outcome(world.listen("host", "web")) == GOES_ON
        assert outcome(world.listen("host", "db")) == errno.EINVAL

    @pytest.mark.parametrize("name", ["host", "web"])
    def test_loopback_uses_the_settings_for_all(self, name: str) -> None:
        for general, own, enabled in ((OFF, ON, False), (ON, OFF, True)):
            world = World().register(general, **{name: own})
            world.bound(name)
            assert (outcome(world.connect(name, HV_GUID_LOOPBACK)) == GOES_ON) is enabled
        assert outcome(World().register(web=OFF).listen("host", HV_GUID_LOOPBACK)) == GOES_ON

    @pytest.mark.parametrize(
        ("web", "db", "expected"),
        [
            (ON, ON, GOES_ON),
            (OFF, ON, errno.ECONNREFUSED),
            (ON, OFF, errno.ECONNREFUSED),
            (OFF, OFF, errno.ECONNREFUSED),
        ],
    )
    def test_between_members_off_for_one_is_off(self, web: Settings, db: Settings, expected: object) -> None:
        world = World().register(web=web, db=db)
        world.bound("web")
        world.bound("db")
        assert outcome(world.connect("web", "db")) == expected
        assert outcome(world.connect("db", "web")) == expected

    def test_in_a_vm_the_containers_settings_count(self) -> None:
        world = World().register(box=OFF)
        for name in ("host", "web", "box", "inner"):
            world.bound(name)
        assert outcome(world.connect("box", HV_GUID_PARENT)) == errno.ECONNREFUSED
        assert outcome(world.connect("web", "box")) == errno.ECONNREFUSED
        assert outcome(world.connect("inner", HV_GUID_PARENT)) == GOES_ON
        assert outcome(world.connect("web", HV_GUID_PARENT)) == GOES_ON

    def test_passthru_is_no_way_around_the_settings_of_the_vm(self) -> None:
        world = World().register(web=OFF)
        world.bound("host")
        world.bound("box")
        assert outcome(world.connect("box", HV_GUID_PARENT, passthru=True)) == errno.ECONNREFUSED
        assert outcome(world.connect("host", "box", passthru=True)) == errno.EINVAL
        assert outcome(world.listen("host", "box")) == errno.EINVAL

    def test_a_containers_own_settings_lie_over_those_of_its_vm(self) -> None:
        world = World().register(web=OFF, box=ON)
        world.bound("host")
        assert outcome(world.connect("box", HV_GUID_PARENT, passthru=True)) == GOES_ON
        assert outcome(world.listen("host", "box")) == GOES_ON

    def test_a_vms_settings_are_nothing_to_its_own_containers(self) -> None:
        world = World().register(web=OFF)
        world.bound("web")
        assert outcome(world.connect("box", HV_GUID_PARENT)) == GOES_ON


class TestWildcardBindsForbidden:
    """Row: host listens on WILDCARD or CHILDREN, and wildcard binds are forbidden for that service and VM.

    They are allowed by default; where not, listen succeeds, the guest's connect is ECONNREFUSED.
    """

    wild = pytest.mark.parametrize("to", [HV_GUID_WILDCARD, HV_GUID_CHILDREN], ids=["WILDCARD", "CHILDREN"])

    @wild
    def test_allowed_by_default(self, to: VmId) -> None:
        world = World().register()
        world.bound("host", to)
        assert outcome(world.connect("web", HV_GUID_PARENT)) == GOES_ON

    @wild
    def test_listen_succeeds_and_the_guests_connect_is_refused(self, to: VmId) -> None:
        world = World().register(NO_WILDCARDS)
        world.bound("host", to)
        assert world.bind("host", to) is None
        assert world.listen("host", to) is None
        verdict = world.connect("web", HV_GUID_PARENT)
        assert isinstance(verdict, Refusal)
        assert (verdict.errno, verdict.reason) == (errno.ECONNREFUSED, Reason.NO_LISTENER)

    @wild
    def test_for_that_vm_only(self, to: VmId) -> None:
        world = World().register(web=NO_WILDCARDS)
        world.bound("host", to)
        assert world.listen("host", to) is None
        assert outcome(world.connect("web", HV_GUID_PARENT)) == errno.ECONNREFUSED
        assert outcome(world.connect("db", HV_GUID_PARENT)) == GOES_ON
        assert outcome(world.connect("box", HV_GUID_PARENT, passthru=True)) == errno.ECONNREFUSED

    def test_allowed_for_that_vm_only(self) -> None:
        world = World().register(NO_WILDCARDS, web=Settings(wildcard_binds=True))
        world.bound("host")
        assert outcome(world.connect("web", HV_GUID_PARENT)) == GOES_ON
        assert outcome(world.connect("db", HV_GUID_PARENT)) == errno.ECONNREFUSED

    def test_the_exact_vm_id_still_matches(self) -> None:
        world = World().register(NO_WILDCARDS)
        world.bound("host", HV_GUID_WILDCARD)
        listener = world.bound("host", "web")
        verdict = world.connect("web", HV_GUID_PARENT)
        assert isinstance(verdict, Grant)
        assert verdict.listener is listener

    @pytest.mark.parametrize(
        ("source", "to", "binding"),
        [
            ("host", "web", HV_GUID_WILDCARD),
            ("box", HV_GUID_PARENT, HV_GUID_WILDCARD),
            ("box", HV_GUID_PARENT, HV_GUID_CHILDREN),
            ("db", "web", HV_GUID_WILDCARD),
        ],
    )
    def test_only_listeners_of_the_host_are_meant(self, source: str, to: VmId | str, binding: VmId) -> None:
        world = World().register(NO_WILDCARDS, box=NO_WILDCARDS)
        world.bound("web", binding)
        assert outcome(world.connect(source, to)) == GOES_ON

    @pytest.mark.parametrize("name", ["host", "web"])
    def test_loopback_is_no_guest(self, name: str) -> None:
        world = World().register(NO_WILDCARDS)
        world.bound(name)
        assert outcome(world.connect(name, HV_GUID_LOOPBACK)) == GOES_ON
