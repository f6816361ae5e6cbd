"""The rules against a second, naive reading of their tables, on random trees, listeners and settings.

The model below knows partitions by number and goes by the prose alone: it lists every address that a
partition can connect to, asks each row of the table in turn, and has no idea of "relations". The few
lines of the tables are quoted where they are read.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvsock.addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    SERVICE_WILDCARD,
    ServiceId,
    VmId,
)
from hvsock.topology.access import Allowed, Owner, Service, Settings, Subject
from hvsock.topology.decision import Grant, Request, Rules
from hvsock.topology.matching import accepts, match, may_bind
from hvsock.topology.partitions import Kind, Partition, Tree
from hvsock.topology.reachability import relation, resolve
from hvsock.topology.refusals import Refusal
from tests.support import sample

pytestmark = pytest.mark.soak

F = TypeVar("F", bound=Callable[..., None])


def examples(count: int) -> Callable[[F], F]:
    """Run a test on `count` random fabrics, or on very many when soaking."""
    return settings(
        max_examples=sample(count, 100 * count),
        suppress_health_check=[HealthCheck.too_slow],
    )


ECHO = ServiceId("3049197c-facb-11e6-bd58-64006a7986d3")
OWNER = Owner(uid=1000, admin_gid=4)
NOBODY = VmId("0badcafe-0000-4000-8000-000000000000")
WORDS = (
    HV_GUID_WILDCARD,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_BROADCAST,
)
MOST_PARTITIONS = 12


def id_of(number: int) -> VmId:
    """The VmId of partition `number`."""
    return VmId(f"{number + 1:08x}-0000-4000-8000-000000000000")


@dataclass
class Plan:
    """A fabric as plain lists; partition 0 is the host."""

    kinds: list[str]
    parents: list[int | None]
    groups: list[str | None]

    @property
    def numbers(self) -> range:
        return range(len(self.kinds))

    def tree(self) -> Tree:
        """The same fabric as the rules see it."""
        tree = Tree(Partition(id_of(0), "host", Kind.HOST, None, self.groups[0]))
        for number in self.numbers[1:]:
            parent = self.parents[number]
            assert parent is not None
            kind = Kind(self.kinds[number])
            tree.add(Partition(id_of(number), f"p{number}", kind, id_of(parent), self.groups[number]))
        return tree

    # --- the model -----------------------------------------------------------------------------------

    def parent(self, number: int, passthru: bool) -> int | None:
        """ "The parent of a VM is its host; the parent of a container is the container's host [...] and with
        HVSOCKET_CONTAINER_PASSTHRU the VM's parent." """
        above = self.parents[number]
        if passthru and self.kinds[number] == "container" and above is not None and self.kinds[above] == "vm":
            return self.parents[above]
        return above

    def children(self, number: int, passthru: bool) -> set[int]:
        """Those that run directly in it, and with PASSTHRU the containers of its VMs."""
        return {
            other
            for other in self.numbers
            if other and (self.parents[other] == number or self.parent(other, passthru) == number)
        }

    def fellows(self, number: int) -> set[int]:
        """The other members of its group."""
        group = self.groups[number]
        return {other for other in self.numbers if group and other != number and self.groups[other] == group}

    def destinations(self, source: int, passthru: bool) -> dict[VmId, int]:
        """ "S connects to VmId D as follows: PARENT, SILOHOST, LOOPBACK, or the VmId of a child or of a member
        of its group." """
        found = {id_of(other): other for other in self.children(source, passthru) | self.fellows(source)}
        found[HV_GUID_LOOPBACK] = source
        parent, runs_in = self.parent(source, passthru), self.parents[source]
        if parent is not None:
            found[HV_GUID_PARENT] = parent
        if runs_in is not None and self.kinds[source] == "container":
            found[HV_GUID_SILOHOST] = runs_in
        return found

    def takes(self, target: int, bound: VmId, source: int, passthru: bool) -> bool:
        """The table, row by row."""
        if bound == HV_GUID_WILDCARD:  # any S that can reach L
            return target in self.destinations(source, passthru).values()
        if bound == HV_GUID_CHILDREN:  # S is a child of L
            return source in self.children(target, passthru)
        if bound == HV_GUID_LOOPBACK:  # S is L
            return source == target
        if bound == HV_GUID_PARENT:  # S is the parent of L
            return target in self.children(source, passthru)
        if bound == HV_GUID_SILOHOST:  # S is the partition that hosts the container L
            return self.kinds[target] == "container" and self.parents[target] == source
        if bound == HV_GUID_BROADCAST:  # never
            return False
        # S has that id, and is a child of L, or a member of the same group
        near = self.children(target, passthru) | self.fellows(target)
        return bound == id_of(source) and source in near

    def winner(self, target: int, bindings: list[VmId], source: int, passthru: bool) -> VmId | None:
        """ "The most specific binding wins." """
        taking = [bound for bound in bindings if self.takes(target, bound, source, passthru)]
        narrow_to_wide = [
            *(id_of(number) for number in self.numbers),
            HV_GUID_SILOHOST,
            HV_GUID_PARENT,
            HV_GUID_LOOPBACK,
            HV_GUID_CHILDREN,
            HV_GUID_WILDCARD,
        ]
        for bound in narrow_to_wide:
            if bound in taking:
                return bound
        return None

    def bindable(self, target: int, bound: VmId) -> bool:
        """The wide ones are always; the rest where somebody could come in by them."""
        return bound in (HV_GUID_WILDCARD, HV_GUID_CHILDREN) or any(
            self.takes(target, bound, source, passthru) for source in self.numbers for passthru in (False, True)
        )


@dataclass(frozen=True)
class Listener:
    """A bound socket."""

    vm_id: VmId
    type: int = 1
    listening: bool = True
    device: bool = False


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A host with up to eleven partitions below it, in two groups at most."""
    groups = st.sampled_from([None, None, "blue", "green"])
    plan = Plan(["host"], [None], [draw(groups)])
    for number in range(1, draw(st.integers(1, MOST_PARTITIONS))):
        plan.kinds.append(draw(st.sampled_from(["vm", "container"])))
        plan.parents.append(draw(st.integers(0, number - 1)))
        plan.groups.append(draw(groups))
    return plan


def vm_ids(plan: Plan) -> st.SearchStrategy[VmId]:
    """Words, ids that exist and one that does not."""
    return st.sampled_from([*WORDS, *(id_of(number) for number in plan.numbers), NOBODY])


def partition(tree: Tree, number: int) -> Partition:
    found = tree.get(id_of(number))
    assert found is not None
    return found


def pairs(plan: Plan, tree: Tree) -> Iterator[tuple[int, Partition, int, Partition]]:
    """Every source with every target."""
    for source in plan.numbers:
        for target in plan.numbers:
            yield source, partition(tree, source), target, partition(tree, target)


@examples(150)
@given(plans(), st.booleans())
def test_resolve_finds_the_destinations_of_the_model(plan: Plan, passthru: bool) -> None:
    tree = plan.tree()
    addresses = [*WORDS, NOBODY, *(id_of(number) for number in plan.numbers)]
    for source in plan.numbers:
        destinations = plan.destinations(source, passthru)
        for address in addresses:
            found = resolve(tree, partition(tree, source), address, passthru)
            expected = destinations.get(address)
            assert found == (None if expected is None else partition(tree, expected))


@examples(150)
@given(plans(), st.booleans())
def test_related_is_what_can_be_reached(plan: Plan, passthru: bool) -> None:
    tree = plan.tree()
    for source, source_is, target, target_is in pairs(plan, tree):
        reached = target in plan.destinations(source, passthru).values()
        assert (relation(tree, source_is, target_is, passthru) is not None) is reached


@examples(60)
@given(plans(), st.booleans())
def test_accepts_is_the_table_of_the_model(plan: Plan, passthru: bool) -> None:
    tree = plan.tree()
    bindings = [*WORDS, NOBODY, *(id_of(number) for number in plan.numbers)]
    for source, source_is, target, target_is in pairs(plan, tree):
        for bound in bindings:
            taken = accepts(tree, target_is, bound, source_is, passthru)
            assert taken is plan.takes(target, bound, source, passthru)


@examples(200)
@given(st.data(), plans(), st.booleans())
def test_match_picks_the_winner_of_the_model(data: st.DataObject, plan: Plan, passthru: bool) -> None:
    tree = plan.tree()
    bindings = data.draw(st.lists(vm_ids(plan), unique=True, max_size=8))
    listeners = [Listener(bound) for bound in bindings]
    for source, source_is, target, target_is in pairs(plan, tree):
        for wildcards in (True, False):
            counting = [
                bound for bound in bindings if wildcards or bound not in (HV_GUID_WILDCARD, HV_GUID_CHILDREN)
            ]
            found = match(tree, target_is, listeners, source_is, passthru=passthru, wildcards=wildcards)
            assert (found.vm_id if found else None) == plan.winner(target, counting, source, passthru)


@examples(60)
@given(plans())
def test_what_can_be_bound_is_what_could_be_taken(plan: Plan) -> None:
    tree = plan.tree()
    for target in plan.numbers:
        for bound in [*WORDS, NOBODY, *(id_of(number) for number in plan.numbers)]:
            assert may_bind(tree, partition(tree, target), bound) is plan.bindable(target, bound)


# --- verdicts ----------------------------------------------------------------------------------------


@dataclass
class Case:
    """A fabric with a service or none, the same sockets in every partition, a device in each VM, and who asks."""

    plan: Plan
    registered: bool
    general: Settings
    per_vm: dict[VmId, Settings]
    bound: list[Listener]
    type: int
    subject: Subject | None
    device: Listener | None
    port: int | None

    def rules(self) -> Rules[Listener]:
        """The same fabric as the rules see it."""
        services = {ECHO: Service(ECHO, "echo", self.general, self.per_vm, self.port)} if self.registered else {}
        listeners = {(id_of(number), ECHO): self.bound for number in self.plan.numbers}
        if self.device is not None:
            vms = [number for number in self.plan.numbers if self.plan.kinds[number] == "vm"]
            listeners |= {(id_of(number), SERVICE_WILDCARD): [self.device] for number in vms}
        return Rules(self.plan.tree(), services, listeners, OWNER)

    def questions(self) -> Iterator[tuple[int, bool, VmId]]:
        """Whoever may ask for whatever: source, PASSTHRU, address."""
        for source in self.plan.numbers:
            for passthru in (False, True):
                for to in [*WORDS, NOBODY, *(id_of(number) for number in self.plan.numbers)]:
                    yield source, passthru, to

    # --- the model -----------------------------------------------------------------------------------

    def in_force(self, name: str, *levels: int) -> Any:
        """The first that says anything: the partitions given, then the service, then the default."""
        defaults = {"enabled": True, "wildcard_binds": True, "bind": Allowed(), "connect": Allowed()}
        of_partitions = [self.per_vm.get(id_of(level), Settings()) for level in levels]
        for level in [*of_partitions, self.general]:
            if getattr(level, name) is not None:
                return getattr(level, name)
        return defaults[name]

    def between(self, name: str, one: int, other: int) -> Any:
        """A setting for the connections of two partitions."""
        plan = self.plan
        if one == other:  # loopback in a partition uses the settings for all
            return self.in_force(name)
        for guest, above in ((one, other), (other, one)):
            through = plan.parents[guest]
            if through == above:  # a VM's settings apply to connections between it and its host
                return self.in_force(name, guest)
            if through is not None and plan.parent(guest, True) == above:  # ... and to what passes through it
                return self.in_force(name, guest, through)
        if name in ("enabled", "wildcard_binds"):  # between members, off for one is off
            return self.in_force(name, one) and self.in_force(name, other)
        return self.in_force(name, one if other == 0 else other)

    def between_bound(self, name: str, where: int, bound: VmId) -> Any:
        """A setting for a listener: that between it and the one it is bound to, else that for all."""
        for number in self.plan.numbers:
            if id_of(number) == bound:
                return self.between(name, number, where)
        return self.in_force(name)

    def allows(self, allowed: Allowed) -> bool:
        """Root, the owner, the admin group, and those that the descriptor names."""
        asking = self.subject
        if asking is None or asking.uid in (0, OWNER.uid) or OWNER.admin_gid in asking.gids:
            return True
        by_group = any(gid in allowed.gids for gid in asking.gids)
        return allowed.everyone or asking.uid in allowed.uids or by_group

    def connect(self, source: int, passthru: bool, to: VmId) -> int | Listener:
        """An errno, or who takes the connection."""
        if to in (HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_BROADCAST):
            return errno.EADDRNOTAVAIL
        target = self.plan.destinations(source, passthru).get(to)
        if target is None:
            return errno.EADDRNOTAVAIL if to in WORDS else errno.EHOSTUNREACH
        on_host, loopback = source == 0, source == target
        wildcards = True
        if not self.registered and not loopback:
            return errno.EACCES if on_host else errno.ECONNREFUSED
        if self.registered:
            if on_host and not self.allows(self.between("connect", source, target)):
                return errno.EACCES
            if not self.between("enabled", source, target):
                return errno.EINVAL if on_host else errno.ECONNREFUSED
            if target == 0 and not loopback:
                wildcards = self.between("wildcard_binds", source, target)
        there = {one.vm_id: one for one in self.bound if one.listening}
        if not wildcards:
            there = {
                bound: one for bound, one in there.items() if bound not in (HV_GUID_WILDCARD, HV_GUID_CHILDREN)
            }
        winner = self.plan.winner(target, list(there), source, passthru)
        if winner is None:  # what no listener of a VM takes is asked of its guest, by the service's port
            asked = self.device if self.plan.kinds[target] == "vm" and not loopback else None
            if asked is None or not asked.listening or self.port is None:
                return errno.ECONNREFUSED
            return asked
        return there[winner] if there[winner].type == self.type else errno.EPROTOTYPE

    def bind(self, where: int, to: VmId) -> int | None:
        """What a bind comes to."""
        if not self.plan.bindable(where, to):
            return errno.EADDRNOTAVAIL
        if where != 0:
            return None
        if not self.registered:
            return None if to == HV_GUID_LOOPBACK else errno.EACCES
        return None if self.allows(self.between_bound("bind", where, to)) else errno.EACCES

    def listen(self, where: int, to: VmId) -> int | None:
        """What a listen on a socket so bound comes to."""
        on_host = where == 0 and self.registered
        return errno.EINVAL if on_host and not self.between_bound("enabled", where, to) else None


few = st.frozensets(st.sampled_from([4, 7, 8]), max_size=2)
allowed_or_open = st.none() | st.builds(Allowed, everyone=st.booleans(), uids=few, gids=few)
switch = st.sampled_from([None, None, True, False])
settings_of_a_service = st.builds(
    Settings, enabled=switch, wildcard_binds=switch, bind=allowed_or_open, connect=allowed_or_open
)
subjects = st.none() | st.builds(Subject, uid=st.sampled_from([0, 7, 8, 1000]), gids=few, in_others=st.just(False))
socket_types = st.sampled_from([1, 1, 1, 5])

devices = st.builds(Listener, st.just(HV_GUID_WILDCARD), listening=st.booleans(), device=st.just(True))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A plan with settings for the service, and for some partitions, and sockets bound to some addresses."""
    plan = draw(plans())
    bindings = draw(st.lists(vm_ids(plan), unique=True, max_size=5))
    return Case(
        plan,
        registered=draw(st.sampled_from([True, True, True, False])),
        general=draw(settings_of_a_service),
        per_vm=draw(st.dictionaries(st.sampled_from(plan.numbers).map(id_of), settings_of_a_service, max_size=4)),
        bound=[
            Listener(vm_id, draw(socket_types), draw(st.sampled_from([True, True, False]))) for vm_id in bindings
        ],
        type=draw(socket_types),
        subject=draw(subjects),
        device=draw(st.none() | devices),
        port=draw(st.none() | st.just(7)),
    )


@examples(200)
@given(cases())
def test_connect_comes_to_the_verdict_of_the_model(case: Case) -> None:
    rules = case.rules()
    for source, passthru, to in case.questions():
        request = Request(partition(rules.tree, source), to, ECHO, case.type, passthru, case.subject)
        verdict = rules.connect(request)
        expected = case.connect(source, passthru, to)
        if isinstance(verdict, Grant):
            assert verdict.listener == expected
            assert verdict.port == (case.port if verdict.listener.device else None)
            assert verdict.target.id == id_of(case.plan.destinations(source, passthru)[to])
        else:
            assert verdict.errno == expected
        steps = rules.explain_connect(request)
        assert steps[-1].refusal == (verdict if isinstance(verdict, Refusal) else None)


@examples(60)
@given(cases())
def test_bind_and_listen_come_to_the_verdict_of_the_model(case: Case) -> None:
    rules = case.rules()
    for where, _, to in case.questions():
        refusal = rules.bind(partition(rules.tree, where), to, ECHO, case.subject)
        expected = case.bind(where, to)
        assert (refusal.errno if refusal else None) == expected
        if expected is None:
            refusal = rules.listen(partition(rules.tree, where), to, ECHO)
            assert (refusal.errno if refusal else None) == case.listen(where, to)
