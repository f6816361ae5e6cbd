"""Verdicts: the order of the checks, the steps that explain them, and their texts."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from itertools import islice, product

import pytest

from hvsock.addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    SERVICE_WILDCARD,
    VmId,
    describe_vm_id,
)
from hvsock.topology.access import Allowed, Service, Settings, Subject
from hvsock.topology.decision import Grant, Request
from hvsock.topology.partitions import Kind, Partition
from hvsock.topology.reachability import Relation
from hvsock.topology.refusals import Reason, Refusal
from hvsock.topology.sddl import parse_sddl
from hvsock.topology.sids import vm_sid
from tests.support import FEW
from tests.topology.world import ECHO, NAMES, OWNER, SEQPACKET, STRANGER, STREAM, UNKNOWN_VM, World, outcome, vm_id

WORDS = (
    HV_GUID_WILDCARD,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_BROADCAST,
    UNKNOWN_VM,
)
A_FEW = 7
"""Which part of the connects is enough where few are; no count of what varies can be divided by it."""


def worlds() -> Iterator[World]:
    """Fabrics in which connects come to everything that they can come to."""
    for settings in (None, Settings(), Settings(enabled=False), Settings(wildcard_binds=False)):
        for binding in (None, HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_LOOPBACK, "web"):
            for socket_type in (STREAM, SEQPACKET):
                for listening in (False, True):
                    world = World()
                    if settings is not None:
                        world.register(settings)
                    if binding is not None:
                        for name in NAMES:
                            world.bound(name, binding, socket_type, listening)
                    yield world


def test_what_is_explained_is_what_is_decided() -> None:
    """Step for step: all pass but the last, whose refusal is the verdict; every text is one line."""
    seen: set[Reason | None] = set()
    for world in worlds():
        connects = product(NAMES, [*WORDS, *NAMES], (False, True), (None, STRANGER))
        for name, to, passthru, subject in islice(connects, 0, None, A_FEW if FEW else 1):
            verdict = world.connect(name, to, passthru=passthru, subject=subject)
            steps = world.explain(name, to, passthru=passthru, subject=subject)
            *passed, last = steps
            assert all(step.refusal is None for step in passed)
            assert last.refusal == (verdict if isinstance(verdict, Refusal) else None)
            assert all(step.question.endswith("?") and step.question.isprintable() for step in steps)
            assert all(step.found.isprintable() and step.found.startswith(("yes", "no")) for step in steps)
            if isinstance(verdict, Refusal):
                assert last.found == "no"
                assert_names_a_cure(verdict)
            else:
                assert last.question == "Does something listen?"
            seen.add(verdict.reason if isinstance(verdict, Refusal) else None)
    assert seen == {
        None,
        Reason.NOT_A_DESTINATION,
        Reason.UNREACHABLE,
        Reason.NOT_REGISTERED,
        Reason.DENIED,
        Reason.DISABLED,
        Reason.NO_LISTENER,
        Reason.WRONG_TYPE,
    }


def assert_names_a_cure(refusal: Refusal) -> None:
    """The text is one line of two parts: what is wrong; what to do about it."""
    problem, separator, cure = refusal.text.partition("; ")
    assert refusal.text.isprintable()
    assert problem
    assert separator
    verbs = ("bind to ", "call ", "check ", "close ", "connect ", "its owner can ", "run: ", "start ")
    assert cure.startswith(verbs), refusal.text


def test_texts_of_bind_and_listen_name_a_cure() -> None:
    world = World()
    refusals = [
        world.bind("host", HV_GUID_PARENT),
        world.bind("web", UNKNOWN_VM),
        world.bind("host", HV_GUID_WILDCARD),
        world.register().bind("host", HV_GUID_WILDCARD, STRANGER),
        world.register(Settings(enabled=False)).listen("host", HV_GUID_WILDCARD),
    ]
    for refusal in refusals:
        assert refusal is not None
        assert_names_a_cure(refusal)


OFF, ON = Settings(enabled=False), Settings(enabled=True)


@pytest.mark.parametrize(
    ("general", "per_vm", "source", "to", "passthru", "off_for"),
    [
        (OFF, {}, "host", "web", False, None),
        (ON, {"web": OFF}, "host", "web", False, "web"),
        (OFF, {"web": OFF}, "web", HV_GUID_PARENT, False, "web"),
        (OFF, {"web": Settings(wildcard_binds=False)}, "host", "web", False, None),
        (ON, {"web": OFF}, "box", HV_GUID_PARENT, True, "web"),
        (ON, {"web": ON, "box": OFF}, "box", HV_GUID_PARENT, True, "box"),
        (OFF, {"web": ON}, "web", "db", False, None),
        (ON, {"db": OFF}, "web", "db", False, "db"),
        (ON, {"web": OFF}, "web", "db", False, "web"),
        (OFF, {}, "web", HV_GUID_LOOPBACK, False, None),
    ],
)
def test_the_command_that_is_named_enables_the_service(
    general: Settings,
    per_vm: dict[str, Settings],
    source: str,
    to: VmId | str,
    passthru: bool,
    off_for: str | None,
) -> None:
    """It is about the one partition for which the service is off, where what is said for all changes nothing."""
    world = World().register(general, **per_vm)
    world.bound("host", HV_GUID_WILDCARD)
    world.bound("web", HV_GUID_WILDCARD)
    world.bound("db", HV_GUID_WILDCARD)
    refusal = world.connect(source, to, passthru=passthru)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.DISABLED
    _, _, option = refusal.text.partition(f"; run: hvsock service enable {ECHO}")
    assert option == ("" if off_for is None else f" --vm {world[off_for].id}")
    if off_for is None:
        world.register(ON, **per_vm)
    else:
        world.register(general, **{**per_vm, off_for: ON})
    assert isinstance(world.connect(source, to, passthru=passthru), Grant)


def test_the_same_of_a_listen() -> None:
    for per_vm, option in (({}, ""), ({"web": OFF}, " --vm")):
        refusal = World().register(OFF, **per_vm).listen("host", "web")
        assert refusal is not None
        assert f"{ECHO}{option}" in refusal.text
        assert ("--vm" in refusal.text) == bool(option)


EVERYONE = Allowed(everyone=True)
PUT_RIGHT: dict[Reason, Callable[[World], object]] = {
    Reason.NOT_REGISTERED: lambda world: world.register(Settings(enabled=False)),
    Reason.DENIED: lambda world: world.register(Settings(enabled=False, connect=EVERYONE)),
    Reason.DISABLED: lambda world: world.register(Settings(connect=EVERYONE)),
    Reason.NO_LISTENER: lambda world: world.bound("web", HV_GUID_WILDCARD, SEQPACKET),
    Reason.WRONG_TYPE: lambda world: world.bound("web", HV_GUID_PARENT, STREAM),
}
"""What is wrong with a connect at first, in the order of the checks, and what puts it right."""


def test_order_of_the_verdict() -> None:
    """Registered, then the user, then enabled, then a listener, then its type."""
    world = World()
    questions = []
    for reason, put_right in PUT_RIGHT.items():
        verdict = world.connect("host", "web", subject=STRANGER)
        assert isinstance(verdict, Refusal)
        assert verdict.reason is reason
        questions.append(world.explain("host", "web", subject=STRANGER)[-1].question)
        put_right(world)
    assert isinstance(world.connect("host", "web", subject=STRANGER), Grant)
    assert questions == [
        "Is the service registered?",
        "May this user connect?",
        "Is the service enabled?",
        "Does something listen?",
        "Is it of the same socket type?",
    ]


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        (HV_GUID_BROADCAST, Reason.NOT_A_DESTINATION),
        (HV_GUID_PARENT, Reason.NOT_A_DESTINATION),
        (UNKNOWN_VM, Reason.UNREACHABLE),
        ("inner", Reason.UNREACHABLE),
    ],
)
@pytest.mark.parametrize("registered", [False, True])
def test_the_address_comes_before_everything_else(to: VmId | str, reason: Reason, registered: bool) -> None:
    world = World()
    if registered:
        world.register(Settings(enabled=False))
    for subject in (None, STRANGER):
        verdict = world.connect("host", to, subject=subject)
        assert isinstance(verdict, Refusal)
        assert verdict.reason is reason


def test_bind_asks_for_the_address_first_then_registration_then_the_user() -> None:
    assert outcome(World().bind("host", HV_GUID_PARENT, STRANGER)) == errno.EADDRNOTAVAIL
    refusal = World().bind("host", HV_GUID_WILDCARD, STRANGER)
    assert refusal is not None
    assert refusal.reason is Reason.NOT_REGISTERED
    refusal = World().register().bind("host", HV_GUID_WILDCARD, STRANGER)
    assert refusal is not None
    assert refusal.reason is Reason.DENIED


def test_a_grant_tells_who_takes_it_where_and_what_the_source_is() -> None:
    world = World().register()
    listener = world.bound("host")
    assert world.connect("web", HV_GUID_PARENT) == Grant(listener, world["host"], Relation.CHILD)


def test_a_device_takes_what_no_listener_of_its_vm_does() -> None:
    world = World().register().at_port(7)
    device = world.device("web")
    for source, to, how in (
        ("host", "web", Relation.PARENT),
        ("db", "web", Relation.MEMBER),
        ("box", HV_GUID_PARENT, Relation.CHILD),
    ):
        for socket_type in (STREAM, SEQPACKET):
            assert world.connect(source, to, type=socket_type) == Grant(device, world["web"], how, 7)
        assert [step.found for step in world.explain(source, to)[-2:]] == [
            "yes: the VM's device asks the guest",
            "yes: 7",
        ]
    listener = world.bound("web", HV_GUID_PARENT)
    assert world.connect("host", "web") == Grant(listener, world["web"], Relation.PARENT)
    assert world.connect("db", "web") == Grant(device, world["web"], Relation.MEMBER, 7)
    verdict = world.connect("host", "web", type=SEQPACKET)
    assert isinstance(verdict, Refusal)
    assert verdict.reason is Reason.WRONG_TYPE


def test_a_device_is_asked_after_all_checks() -> None:
    for settings, reason in (
        (None, Reason.NOT_REGISTERED),
        (Settings(), Reason.DENIED),
        (Settings(enabled=False, connect=EVERYONE), Reason.DISABLED),
    ):
        world = World()
        if settings is not None:
            world.register(settings).at_port(7)
        world.device("web")
        verdict = world.connect("host", "web", subject=STRANGER)
        assert isinstance(verdict, Refusal)
        assert verdict.reason is reason
    world = World().register().at_port(7)
    world.device("web")
    assert outcome(world.connect("lone", "web")) == errno.EHOSTUNREACH


@pytest.mark.parametrize("to", [HV_GUID_LOOPBACK, "host", "db"])
def test_a_device_is_not_asked_for_its_own_vm_nor_for_another(to: VmId | str) -> None:
    world = World().register().at_port(7)
    world.device("web")
    verdict = world.connect("web", HV_GUID_PARENT if to == "host" else to)
    assert isinstance(verdict, Refusal)
    assert verdict.reason is Reason.NO_LISTENER


def test_the_way_up_takes_what_is_for_the_parent_of_the_host() -> None:
    """And nothing else; what is served there is the outer fabric's affair, so no registration is asked for."""
    out = {("host", HV_GUID_PARENT, False), ("host", HV_GUID_PARENT, True), ("jail", HV_GUID_PARENT, True)}
    for service in (False, True):
        world, bare = World(), World()
        if service:
            for one in (world, bare):
                one.register(Settings(enabled=False, connect=EVERYONE))
        way_up = world.device("host")
        for source, to, passthru in product(NAMES, (*WORDS, *NAMES), (False, True)):
            verdict = world.connect(source, to, passthru=passthru, subject=STRANGER)
            if (source, to, passthru) in out:
                assert verdict == Grant(way_up, world["host"], Relation.CHILD, ECHO.port)
                (step,) = world.explain(source, to, passthru=passthru)
                assert "the way up" in step.found
            else:
                assert verdict == bare.connect(source, to, passthru=passthru, subject=STRANGER)
    world.listeners.clear()
    world.device("host", listening=False)
    assert outcome(world.connect("host", HV_GUID_PARENT)) == errno.EADDRNOTAVAIL


def test_a_service_that_is_registered_says_who_of_the_host_may_use_the_way_up() -> None:
    """Containers are not asked, and neither is who wants what is not registered."""
    world = World()
    way_up = world.device("host")
    granted = Grant(way_up, world["host"], Relation.CHILD, ECHO.port)
    assert world.connect("host", HV_GUID_PARENT, subject=STRANGER) == granted
    world.register()
    verdict = world.connect("host", HV_GUID_PARENT, subject=STRANGER)
    assert isinstance(verdict, Refusal)
    assert (verdict.errno, verdict.reason) == (errno.EACCES, Reason.DENIED)
    assert_names_a_cure(verdict)
    steps = world.explain("host", HV_GUID_PARENT, subject=STRANGER)
    assert [step.refusal for step in steps] == [None, verdict]
    for subject in (None, Subject(OWNER.uid)):
        assert world.connect("host", HV_GUID_PARENT, subject=subject) == granted
    assert world.connect("jail", HV_GUID_PARENT, passthru=True, subject=STRANGER) == granted
    world.register(Settings(connect=Allowed(uids=frozenset({STRANGER.uid}))))
    assert world.connect("host", HV_GUID_PARENT, subject=STRANGER) == granted
    assert [step.question for step in world.explain("host", HV_GUID_PARENT, subject=STRANGER)][1:] == [
        "May this user connect?"
    ]


def test_a_device_that_does_not_listen_is_none() -> None:
    world = World().register().at_port(7)
    world.device("web", listening=False)
    verdict = world.connect("host", "web")
    assert isinstance(verdict, Refusal)
    assert verdict.reason is Reason.NO_LISTENER


@pytest.mark.parametrize("port", [None, 0xFFFFFFFF])
def test_a_service_without_a_port_cannot_be_asked_for(port: int | None) -> None:
    world = World().register().at_port(port)
    world.device("web")
    verdict = world.connect("host", "web")
    assert isinstance(verdict, Refusal)
    assert (verdict.errno, verdict.reason) == (errno.ECONNREFUSED, Reason.NO_PORT)
    assert "--port-alias" in verdict.text
    assert_names_a_cure(verdict)
    assert world.explain("host", "web")[-1].refusal == verdict


def test_no_service_is_a_device_itself() -> None:
    """ServiceId zero, under which devices are kept, leads to none."""
    world = World()
    world.device("web")
    for to in (HV_GUID_LOOPBACK, world["web"].id):
        verdict = world.rules.connect(Request(world["web"], to, SERVICE_WILDCARD, STREAM))
        assert isinstance(verdict, Refusal)
    verdict = world.rules.connect(Request(world["web"], HV_GUID_LOOPBACK, SERVICE_WILDCARD, STREAM))
    assert isinstance(verdict, Refusal)
    assert verdict.reason is Reason.NO_LISTENER


@pytest.mark.parametrize(
    ("binding", "source", "to", "cure"),
    [
        (HV_GUID_CHILDREN, "host", "web", HV_GUID_PARENT),
        (HV_GUID_PARENT, "web", HV_GUID_LOOPBACK, HV_GUID_LOOPBACK),
        (HV_GUID_LOOPBACK, "db", "web", "db"),
        (HV_GUID_LOOPBACK, "box", HV_GUID_PARENT, "box"),
    ],
)
def test_a_listener_that_does_not_take_it_is_told_what_would(
    binding: VmId, source: str, to: VmId | str, cure: VmId | str
) -> None:
    world = World().register()
    world.bound("web", binding)
    verdict = world.connect(source, to)
    assert isinstance(verdict, Refusal)
    listens = f"'web' listens on {describe_vm_id(binding)}, which does not take {source!r}"
    assert verdict.text == f"{listens}; bind to {describe_vm_id(world.address(cure))}"
    world.bound("web", cure)
    assert isinstance(world.connect(source, to), Grant)


def test_forbidden_wildcard_binds_are_named() -> None:
    world = World().register(Settings(wildcard_binds=False))
    world.bound("host", "lone")
    verdict = world.connect("web", HV_GUID_PARENT)
    assert isinstance(verdict, Refusal)
    assert "wildcard" not in verdict.text
    world.bound("host", HV_GUID_WILDCARD)
    verdict = world.connect("web", HV_GUID_PARENT)
    assert isinstance(verdict, Refusal)
    command = f"hvsock service access {ECHO} --vm {world['web'].id} --wildcard-binds"
    assert verdict.text.endswith(f"bind to {world['web'].id}, or allow wildcard binds: {command}")
    world.register(Settings(wildcard_binds=False), web=Settings(wildcard_binds=True))
    assert isinstance(world.connect("web", HV_GUID_PARENT), Grant)


def test_a_socket_that_does_not_listen_is_named() -> None:
    world = World().register()
    world.bound("host", listening=False)
    verdict = world.connect("web", HV_GUID_PARENT)
    assert isinstance(verdict, Refusal)
    assert verdict.text == "a socket in 'host' is bound to it and does not listen; call listen() on it"


def test_names_that_people_gave_stay_on_one_line() -> None:
    """A friendly name comes from the registry as it is."""
    world = World()
    world.services[ECHO] = Service(ECHO, "two\nlines", Settings(enabled=False))
    verdict = world.connect("host", "web")
    assert isinstance(verdict, Refusal)
    assert verdict.text.isprintable()
    assert all(step.found.isprintable() for step in world.explain("host", "web"))


def test_members_among_them_the_host() -> None:
    """The settings of the guest count, and what is off or forbidden for one of both is so between them."""
    off, no_wildcards = Settings(enabled=False), Settings(wildcard_binds=False)
    cases: tuple[tuple[dict[VmId, Settings], object, object, object], ...] = (
        ({}, "goes on", "goes on", "goes on"),
        ({vm_id(21): off}, errno.ECONNREFUSED, errno.EINVAL, errno.EINVAL),
        ({vm_id(1): off}, errno.ECONNREFUSED, errno.EINVAL, errno.EINVAL),
        ({vm_id(21): no_wildcards}, errno.ECONNREFUSED, "goes on", "goes on"),
        ({vm_id(1): no_wildcards}, errno.ECONNREFUSED, "goes on", "goes on"),
    )
    for per_vm, inwards, outwards, listen in cases:
        world = World()
        host = Partition(vm_id(1), "host", Kind.HOST, group="green")
        world.tree = type(world.tree)(host)
        world.rules.tree = world.tree
        world.tree.add(Partition(vm_id(20), "outer", Kind.VM, host.id))
        world.tree.add(Partition(vm_id(21), "deep", Kind.VM, vm_id(20), "green"))
        world.services[ECHO] = Service(ECHO, "echo", Settings(), per_vm)
        world.bound("host")
        world.bound("deep")
        assert outcome(world.connect("deep", "host")) == inwards
        assert outcome(world.connect("host", "deep")) == outwards
        assert outcome(world.listen("host", "deep")) == listen


def test_a_container_in_a_group_with_the_vms_host_chooses_no_settings_by_passthru() -> None:
    """It is a member without the option and a child with it, and what is off for its VM is off either way."""
    world = World()
    world.tree = type(world.tree)(Partition(vm_id(1), "host", Kind.HOST, group="green"))
    world.rules.tree = world.tree
    world.tree.add(Partition(vm_id(20), "outer", Kind.VM, vm_id(1)))
    world.tree.add(Partition(vm_id(21), "within", Kind.CONTAINER, vm_id(20), "green"))
    world.bound("host")
    for per_vm, expected in (({}, "goes on"), ({vm_id(20): Settings(enabled=False)}, errno.ECONNREFUSED)):
        world.services[ECHO] = Service(ECHO, "echo", Settings(), per_vm)
        assert outcome(world.connect("within", "host")) == expected
        assert outcome(world.connect("within", HV_GUID_PARENT, passthru=True)) == expected


def test_the_option_is_off_where_a_request_does_not_name_it() -> None:
    world = World().register()
    world.bound("host", "box")
    world.bound("web", "box")
    verdict = world.rules.connect(Request(world["box"], HV_GUID_PARENT, ECHO, STREAM))
    assert isinstance(verdict, Grant)
    assert verdict.target is world["web"]


def test_a_binding_to_a_partition_that_is_gone_uses_the_settings_for_all() -> None:
    world = World().register(lone=Settings(enabled=False))
    lone = world["lone"].id
    assert outcome(world.listen("host", lone)) == errno.EINVAL
    world.tree.remove(world["lone"])
    assert outcome(world.listen("host", lone)) == "goes on"


NOBODY = parse_sddl("D:P(D;;FA;;;WD)")
BY_ACE = "ACE 1 of its descriptor, (D;;FA;;;WD), denies it"


def test_a_descriptor_decides_over_administrators_and_is_named() -> None:
    world = World().register(Settings(connect=NOBODY, bind=NOBODY))
    world.bound("web")
    subject = Subject(OWNER.uid)
    verdict = world.connect("host", "web", subject=subject)
    assert isinstance(verdict, Refusal)
    assert (verdict.errno, verdict.reason) == (errno.EACCES, Reason.DENIED)
    assert f"user 1000 may not connect to 'echo', as {BY_ACE}; its owner" in verdict.text
    refusal = world.bind("host", "web", subject)
    assert refusal is not None
    assert f"user 1000 may not bind 'echo', as {BY_ACE}; its owner" in refusal.text
    assert outcome(world.connect("host", "web")) == "goes on", "who is not checked is not asked"
    assert outcome(world.connect("db", "web")) == "goes on", "nor are guests"
    world.register(Settings(connect=parse_sddl("D:P(A;;FA;;;BA)")))
    steps = world.explain("host", "web", subject=subject)
    assert ("May this user connect?", "yes: ACE 1 of its descriptor, (A;;FA;;;BA), allows it") in [
        (step.question, step.found) for step in steps
    ]


def test_a_descriptor_about_vms_decides_about_guests_too() -> None:
    world = World()
    web = vm_sid(world["web"].id)
    world.register(Settings(connect=parse_sddl(f"D:P(A;;FA;;;BA)(A;;FA;;;{web})")))
    for name in NAMES:
        world.bound(name)
    assert outcome(world.connect("web", HV_GUID_PARENT)) == "goes on"
    assert outcome(world.connect("box", HV_GUID_PARENT, passthru=True)) == "goes on", "it runs in the VM"
    verdict = world.connect("db", HV_GUID_PARENT)
    assert isinstance(verdict, Refusal)
    assert (verdict.errno, verdict.reason) == (errno.ECONNREFUSED, Reason.DENIED)
    assert verdict.text.startswith("'db' may not connect to 'echo', as no ACE of its descriptor allows it")
    assert outcome(world.connect("web", "db")) == "goes on"
    assert outcome(world.connect("db", "web")) == errno.ECONNREFUSED
    assert outcome(world.connect("db", HV_GUID_LOOPBACK)) == "goes on", "within a guest it is the guest's affair"
    assert outcome(world.connect("host", "db")) == "goes on"
    world.register(Settings(connect=parse_sddl(f"D:P(D;;FA;;;{web})(A;;FA;;;WD)")))
    assert outcome(world.connect("db", HV_GUID_PARENT)) == "goes on"
    assert outcome(world.connect("web", HV_GUID_PARENT)) == errno.ECONNREFUSED
    found = [(step.question, step.found) for step in world.explain("db", HV_GUID_PARENT)]
    assert ("May this guest connect?", "yes: ACE 2 of its descriptor, (A;;FA;;;WD), allows it") in found


def test_between_members_the_descriptors_of_both_are_asked() -> None:
    world = World()
    web, db = (vm_sid(world[name].id) for name in ("web", "db"))
    world.bound("web")
    world.bound("db")
    cases = (
        (Settings(connect=parse_sddl(f"D:P(D;;FA;;;{db})(A;;FA;;;WD)")), errno.ECONNREFUSED, "goes on"),
        (Settings(connect=parse_sddl(f"D:P(D;;FA;;;{web})(A;;FA;;;WD)")), "goes on", errno.ECONNREFUSED),
        (Settings(connect=parse_sddl("D:P(D;;FA;;;S-1-5-83-0)")), errno.ECONNREFUSED, errno.ECONNREFUSED),
        (Settings(connect=NOBODY), "goes on", "goes on"),
    )
    for settings, inwards, outwards in cases:
        world.register(web=settings)
        assert outcome(world.connect("db", "web")) == inwards
        assert outcome(world.connect("web", "db")) == outwards
    world.register(Settings(connect=parse_sddl("D:P(A;;FA;;;S-1-5-83-0)")))
    asked = [step for step in world.explain("web", "db") if step.question == "May this guest connect?"]
    assert len(asked) == 1, "the same is not asked twice"


def test_a_vm_with_defaults_needs_no_registration() -> None:
    """As with HCS: its defaults decide about services that nobody listed, but not for wildcard binds."""
    world = World().by_default(lone=Settings(bind=Allowed(uids=frozenset({STRANGER.uid}))))
    world.bound("lone", HV_GUID_PARENT)
    assert outcome(world.connect("lone", HV_GUID_PARENT)) == errno.ECONNREFUSED
    world.bound("host", HV_GUID_WILDCARD)
    assert outcome(world.connect("lone", HV_GUID_PARENT)) == errno.ECONNREFUSED
    listener = world.bound("host", "lone")
    verdict = world.connect("lone", HV_GUID_PARENT)
    assert isinstance(verdict, Grant)
    assert verdict.listener is listener
    assert outcome(world.bind("host", "lone", STRANGER)) == "goes on"
    assert outcome(world.bind("host", "db", STRANGER)) == errno.EACCES
    assert outcome(world.bind("host", HV_GUID_WILDCARD, STRANGER)) == errno.EACCES
    assert outcome(world.listen("host", "lone")) == "goes on"
    assert outcome(world.connect("host", "lone", subject=Subject(0))) == "goes on"
    assert outcome(world.connect("host", "lone", subject=STRANGER)) == errno.EACCES
    assert outcome(world.connect("web", HV_GUID_PARENT)) == errno.ECONNREFUSED
    assert outcome(world.connect("web", "db")) == errno.ECONNREFUSED
    found = [(step.question, step.found) for step in world.explain("lone", HV_GUID_PARENT)]
    assert ("Is the service registered?", "no; the defaults of the VM decide about services that are not") in found


def test_who_is_denied_a_service_that_nobody_listed_is_told_of_the_defaults() -> None:
    about_vms = parse_sddl("D:P(D;;FA;;;S-1-5-83-0)")
    world = World().by_default(lone=Settings(bind=NOBODY, connect=about_vms))
    for refusal in (
        world.bind("host", "lone", STRANGER),
        world.connect("host", "lone", subject=STRANGER),
        world.connect("lone", HV_GUID_PARENT),
    ):
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.DENIED
        assert f"; its owner can allow it: hvsock service defaults --vm {world['lone'].id} --" in refusal.text
    refusal = world.register(lone=Settings(bind=NOBODY)).bind("host", "lone", STRANGER)
    assert isinstance(refusal, Refusal)
    cure = f"hvsock service access {ECHO} --vm {world['lone'].id} --bind-sddl SDDL"
    assert refusal.text.endswith(f"; its owner can allow it: {cure}")


def test_who_is_denied_is_told_whose_setting_denies_it() -> None:
    """The command that is named changes that setting: of the service, or of it for the VM alone."""
    world = World().register(Settings(), web=Settings(connect=Allowed()), db=Settings(bind=Allowed()))
    web, db = world["web"].id, world["db"].id
    cure = f"its owner can allow it: hvsock service access {ECHO}"
    cases = (
        (world.connect("host", "web", subject=STRANGER), f"{cure} --vm {web} --connect user:{STRANGER.uid}"),
        (world.connect("host", "db", subject=STRANGER), f"{cure} --connect user:{STRANGER.uid}"),
        (world.bind("host", "db", STRANGER), f"{cure} --vm {db} --bind user:{STRANGER.uid}"),
        (world.bind("host", HV_GUID_WILDCARD, STRANGER), f"{cure} --bind user:{STRANGER.uid}"),
    )
    for refusal, ending in cases:
        assert isinstance(refusal, Refusal)
        assert refusal.text.endswith(f"; {ending}")
    world.bound("web")
    about_vms = Settings(connect=parse_sddl("D:P(D;;FA;;;S-1-5-83-0)"))
    for settings, whose in ({"db": about_vms}, db), ({"web": about_vms}, web):
        refusal = world.register(**settings).connect("db", "web")
        assert isinstance(refusal, Refusal)
        assert refusal.text.endswith(f"; {cure} --vm {whose} --connect-sddl SDDL")


def test_a_host_that_connects_to_itself_is_told_so() -> None:
    """As when somebody takes the host for a guest; there is no group to put it into."""
    world = World()
    refusal = world.connect("host", world["host"].id)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.UNREACHABLE
    assert "is 'host' itself and none of its VMs; connect to one of these" in refusal.text


def test_a_fresh_id_is_reached_by_a_vm_with_defaults_and_theirs_to_allow() -> None:
    world = World().by_default(lone=Settings(bind=Allowed(uids=frozenset({STRANGER.uid}))))

    def bound(where: str, to: str | VmId, subject: Subject | None) -> object:
        return outcome(world.rules.bind_fresh(world[where], world.address(to), ECHO, subject))

    other = Subject(2001)
    assert bound("host", "lone", STRANGER) == "goes on"
    assert bound("host", "lone", other) == errno.EACCES
    assert bound("host", "db", other) == "goes on", "nothing but loopback reaches it"
    assert bound("host", HV_GUID_WILDCARD, other) == "goes on"
    assert bound("host", UNKNOWN_VM, other) == errno.EADDRNOTAVAIL
    assert bound("host", HV_GUID_PARENT, other) == errno.EADDRNOTAVAIL
    assert bound("lone", HV_GUID_PARENT, None) == "goes on"


def test_a_device_is_asked_for_a_service_that_nobody_listed() -> None:
    world = World().by_default(lone=Settings())
    device = world.device("lone")
    verdict = world.connect("host", "lone", subject=Subject(0))
    assert isinstance(verdict, Grant)
    assert (verdict.listener, verdict.port) == (device, ECHO.port)
