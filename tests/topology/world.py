"""A small fabric to ask the rules about, with every kind of neighbourhood in it.

::

    host
    +-- web      vm, group blue
    |   +-- box      container
    |   |   +-- inner    container
    |   +-- nested   vm
    |       +-- pod      container
    +-- db       vm, group blue
    +-- lone     vm
    +-- jail     container
        +-- cell     container
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace

from hvsock.addresses import HV_GUID_WILDCARD, SERVICE_WILDCARD, ServiceId, VmId
from hvsock.topology.access import Owner, Service, Settings, Subject
from hvsock.topology.decision import Check, Grant, Request, Rules
from hvsock.topology.partitions import Kind, Partition, Tree
from hvsock.topology.refusals import Refusal

STREAM, SEQPACKET = int(socket.SOCK_STREAM), int(socket.SOCK_SEQPACKET)
ECHO = ServiceId("3049197c-facb-11e6-bd58-64006a7986d3")
UNKNOWN_VM = VmId("0badcafe-0000-4000-8000-000000000000")

ADMIN_GID = 4
OWNER = Owner(uid=1000, admin_gid=ADMIN_GID)
STRANGER = Subject(uid=2000, gids=frozenset({2000}))
OPEN = Settings()

_SHAPE = (
    ("web", Kind.VM, "host", "blue"),
    ("box", Kind.CONTAINER, "web", None),
    ("inner", Kind.CONTAINER, "box", None),
    ("nested", Kind.VM, "web", None),
    ("pod", Kind.CONTAINER, "nested", None),
    ("db", Kind.VM, "host", "blue"),
    ("lone", Kind.VM, "host", None),
    ("jail", Kind.CONTAINER, "host", None),
    ("cell", Kind.CONTAINER, "jail", None),
)
NAMES = ("host", *(name for name, *_ in _SHAPE))


def vm_id(number: int) -> VmId:
    """The id of the partition with that number."""
    return VmId(f"{number:08x}-0000-4000-8000-000000000000")


def make_host(group: str | None = None) -> Partition:
    """The root of every tree in these tests."""
    return Partition(vm_id(1), "host", Kind.HOST, group=group)


@dataclass(frozen=True)
class Listener:
    """A bound socket, as the broker would know it."""

    vm_id: VmId
    type: int = STREAM
    listening: bool = True
    device: bool = False


class World:
    """A fabric in the hand: partitions by name, sockets bound by `bound`, one service or none."""

    def __init__(self) -> None:
        self.tree = Tree(make_host())
        for number, (name, kind, parent, group) in enumerate(_SHAPE, start=2):
            self.tree.add(Partition(vm_id(number), name, kind, self[parent].id, group))
        self.services: dict[ServiceId, Service] = {}
        self.listeners: dict[tuple[VmId, ServiceId], list[Listener]] = {}
        self.rules: Rules[Listener] = Rules(self.tree, self.services, self.listeners, OWNER)

    def __getitem__(self, name: str) -> Partition:
        found = self.tree.named(name)
        assert found is not None, name
        return found

    def address(self, to: str | VmId) -> VmId:
        """`to` itself, or the id of the partition of that name."""
        return to if isinstance(to, VmId) else self[to].id

    def register(self, general: Settings = OPEN, **per_vm: Settings) -> World:
        """Register ECHO with settings for all, and for single partitions by name."""
        of = {self[name].id: settings for name, settings in per_vm.items()}
        self.services[ECHO] = Service(ECHO, "echo", general, of)
        return self

    def by_default(self, general: Settings = OPEN, **per_vm: Settings) -> World:
        """Have defaults for all, and for single partitions by name."""
        self.rules.defaults = {None: general, **{self[name].id: settings for name, settings in per_vm.items()}}
        self.services.update(
            {one: replace(service, defaults=self.rules.defaults) for one, service in self.services.items()}
        )
        return self

    def at_port(self, port: int | None) -> World:
        """Have guests know ECHO by `port`."""
        self.services[ECHO] = replace(self.services[ECHO], port=port)
        return self

    def bound(
        self, where: str, to: str | VmId = HV_GUID_WILDCARD, type: int = STREAM, listening: bool = True
    ) -> Listener:
        """Have a socket for ECHO in partition `where`."""
        listener = Listener(self.address(to), type, listening)
        self.listeners.setdefault((self[where].id, ECHO), []).append(listener)
        return listener

    def device(self, where: str, listening: bool = True) -> Listener:
        """Have a device serve partition `where`."""
        listener = Listener(HV_GUID_WILDCARD, STREAM, listening, device=True)
        self.listeners.setdefault((self[where].id, SERVICE_WILDCARD), []).append(listener)
        return listener

    def _request(self, source: str, to: str | VmId, passthru: bool, type: int, subject: Subject | None) -> Request:
        return Request(self[source], self.address(to), ECHO, type, passthru, subject)

    def connect(
        self,
        source: str,
        to: str | VmId,
        *,
        passthru: bool = False,
        type: int = STREAM,
        subject: Subject | None = None,
    ) -> Grant[Listener] | Refusal:
        """The verdict on a connect from partition `source`."""
        return self.rules.connect(self._request(source, to, passthru, type, subject))

    def explain(
        self,
        source: str,
        to: str | VmId,
        *,
        passthru: bool = False,
        type: int = STREAM,
        subject: Subject | None = None,
    ) -> list[Check]:
        """The steps of the same verdict."""
        return self.rules.explain_connect(self._request(source, to, passthru, type, subject))

    def bind(self, where: str, to: str | VmId, subject: Subject | None = None) -> Refusal | None:
        """The verdict on a bind for ECHO in partition `where`."""
        return self.rules.bind(self[where], self.address(to), ECHO, subject)

    def listen(self, where: str, to: str | VmId) -> Refusal | None:
        """The verdict on a listen on a socket so bound."""
        return self.rules.listen(self[where], self.address(to), ECHO)


def outcome(verdict: object) -> int | str:
    """What a verdict comes to: the errno of a refusal, or "goes on"."""
    return verdict.errno if isinstance(verdict, Refusal) else "goes on"
