"""What a service's settings allow: enabled or not, wildcard binds, and who may bind and connect.

Settings are given for a service as a whole and, on top, for single VMs. What a VM's setting leaves open, the
service's decides; what that leaves open, the VM's defaults, then the fabric's defaults, then what is built in:
enabled (but for in-box services that are off by default), wildcard binds allowed (as for classic VMs), and the
fabric's owner, root and its admin group may bind and connect.

Who may bind and connect is said in one of two ways, each setting in its own: as users and groups of the host
(:class:`Allowed`), besides those who administer the fabric; or as a security descriptor
(:class:`.descriptors.Descriptor`), which alone decides, over administrators too.

This is the one place where access is decided. Only processes of the host are checked for their user,
as in the original: what a guest does is the guest's own affair. One thing goes beyond the original: a
descriptor that has entries about VMs decides about their connects to other partitions, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from hvsock.addresses import ServiceId, VmId

from .descriptors import FILE_ALL, Ace, AceType, Acl, AclFlag, Descriptor, check
from .partitions import Kind, Partition, Tree
from .sddl import format_ace
from .sids import (
    ADMINISTRATORS,
    AUTHENTICATED_USERS,
    EVERYONE,
    SYSTEM,
    VIRTUAL_MACHINES,
    Sid,
    group_sid,
    user_sid,
    vm_sid,
)

ROOT_UID = 0


class Subject(NamedTuple):
    """Who asks: a process of the host, by its Unix user and groups.

    Attributes:
        uid: its user.
        gids: its groups.
        in_others: whether it may be in groups that `gids` lacks, as they could not be asked for. What is allowed
            to one of those is not allowed to it, and what is denied to any group is denied.
    """

    uid: int
    gids: frozenset[int] = frozenset()
    in_others: bool = False


class Owner(NamedTuple):
    """Whose fabric it is.

    Attributes:
        uid: the user that runs the broker.
        admin_gid: the group whose members administer the fabric; None for none.
    """

    uid: int
    admin_gid: int | None = None

    def administers(self, subject: Subject) -> bool:
        """Whether `subject` may change the fabric and its registry."""
        return subject.uid in (self.uid, ROOT_UID) or self.admin_gid in subject.gids

    def token(self, subject: Subject) -> frozenset[Sid]:
        """The SIDs that `subject` is: its user and groups, everybody, and BA where it administers the fabric."""
        sids = {EVERYONE, AUTHENTICATED_USERS, user_sid(subject.uid), *map(group_sid, subject.gids)}
        if subject.uid == ROOT_UID:
            sids.add(SYSTEM)
        if self.administers(subject):
            sids.add(ADMINISTRATORS)
        return frozenset(sids)


def token_of_guest(tree: Tree, partition: Partition) -> frozenset[Sid]:
    """The SIDs that a guest is: its own, those of the VMs and containers that it runs in, and their group."""
    sids = {EVERYONE, VIRTUAL_MACHINES}
    inside: Partition | None = partition
    while inside is not None and inside.kind is not Kind.HOST:
        sids.add(vm_sid(inside.id))
        inside = tree.parent_of(inside)
    return frozenset(sids)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Who may do one thing, besides those who administer the fabric.

    Attributes:
        everyone: every user of the host.
        uids: these users.
        gids: the members of these groups.
    """

    everyone: bool = False
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def includes(self, subject: Subject) -> bool:
        """Whether `subject` is meant."""
        return self.everyone or subject.uid in self.uids or not self.gids.isdisjoint(subject.gids)

    def descriptor(self) -> Descriptor:
        """The security descriptor that says the same."""
        sids = [SYSTEM, ADMINISTRATORS, *([EVERYONE] if self.everyone else [])]
        sids += [*map(user_sid, sorted(self.uids)), *map(group_sid, sorted(self.gids))]
        aces = tuple(Ace(AceType.ALLOW, FILE_ALL, sid) for sid in sids)
        return Descriptor(Acl(aces, frozenset({AclFlag.PROTECTED})))


Access = Allowed | Descriptor
"""Who may do one thing."""


class Opinion(NamedTuple):
    """What a setting says about one who asks.

    Attributes:
        allowed: whether it may.
        because: which entry of a descriptor decided, in words; empty for users and groups.
    """

    allowed: bool
    because: str = ""


def may(access: Access | None, subject: Subject, owner: Owner) -> Opinion:
    """Whether a process of the host may do what `access` is about; None is for those who administer alone."""
    if isinstance(access, Descriptor):
        return ask(access, owner.token(subject), in_other_groups=subject.in_others)
    return Opinion(owner.administers(subject) or (access is not None and access.includes(subject)))


def ask(descriptor: Descriptor, sids: AbstractSet[Sid], *, in_other_groups: bool = False) -> Opinion:
    """Whether a descriptor allows binding or connecting to who is all of `sids`."""
    finding = check(descriptor, sids, in_other_groups=in_other_groups)
    if descriptor.dacl is None:
        return Opinion(True, "its descriptor has no list")
    if finding.ace is None:
        return Opinion(False, "no ACE of its descriptor allows it")
    verb = "allows" if finding.allowed else "denies"
    ace = format_ace(descriptor.dacl.aces[finding.ace - 1])
    return Opinion(finding.allowed, f"ACE {finding.ace} of its descriptor, {ace}, {verb} it")


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a service, for all VMs or for one; None leaves a setting to the level below."""

    enabled: bool | None = None
    wildcard_binds: bool | None = None
    bind: Access | None = None
    connect: Access | None = None
    denied: frozenset[str] | None = None
    """Operations of the service, or patterns of them, that its guest half refuses; no concern of the rules."""

    def over(self, lower: Settings) -> Settings:
        """These settings, with what they leave open taken from `lower`."""
        return Settings(
            enabled=lower.enabled if self.enabled is None else self.enabled,
            wildcard_binds=lower.wildcard_binds if self.wildcard_binds is None else self.wildcard_binds,
            bind=lower.bind if self.bind is None else self.bind,
            connect=lower.connect if self.connect is None else self.connect,
            denied=lower.denied if self.denied is None else self.denied,
        )


Setting = Literal["enabled", "bind", "connect"]
"""The name of a setting that may refuse somebody something."""

DEFAULTS = Settings(enabled=True, wildcard_binds=True, bind=Allowed(), connect=Allowed())

Defaults = Mapping[VmId | None, Settings]
"""What holds where no service says anything: for single VMs, and under None for all of them."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the rules need to know of a registered service.

    Attributes:
        id: its ServiceId.
        name: its friendly name (ElementName).
        settings: for all VMs.
        per_vm: on top, for the connections of single VMs with their host.
        port: the AF_VSOCK port by which guests know it; None where it has none.
        built_in: what holds where no setting says anything; nothing in them is None.
        defaults: over these and below the settings, those that the operator made for all services. All have the
            same, so they are no part of what makes two services equal.
        listed: whether it is registered; what is not is decided by the defaults of a VM (:func:`unlisted`).
    """

    id: ServiceId
    name: str
    settings: Settings = Settings()
    per_vm: Mapping[VmId, Settings] = field(default_factory=dict)
    port: int | None = None
    built_in: Settings = DEFAULTS
    defaults: Defaults = field(default_factory=dict, compare=False)
    listed: bool = True

    def settings_for(self, vm_id: VmId | None, through: VmId | None = None) -> Settings:
        """The effective settings, in which nothing but `denied` is None any more.

        Args:
            vm_id: for connections of this VM or container; None for no one in particular.
            through: the VM that they pass through, whose settings apply where `vm_id` has none of its own.
        """
        levels = [level for level in (through, vm_id) if level is not None]
        settings = self.built_in
        for one in (*(self.defaults.get(level) for level in (None, *levels)), self.settings):
            settings = settings if one is None else one.over(settings)
        for level in levels:
            one = self.per_vm.get(level)
            if one is not None:
                settings = one.over(settings)
        return settings

    def said_for(self, what: Setting, vm_id: VmId, through: VmId | None = None) -> VmId | None:
        """For whom alone something is said of the service; None where that is said for all.

        Args:
            what: the setting in question.
            vm_id: as for :meth:`settings_for`.
            through: the same.

        Of a service that is not registered, the VMs' defaults say it.
        """
        levels = [level for level in (vm_id, through) if level is not None]
        if not self.listed:
            return next(level for level in levels if level in self.defaults)
        return next((one for one in levels if getattr(self.per_vm.get(one), what, None) is not None), None)


def unlisted(service_id: ServiceId, defaults: Defaults, vm_id: VmId, through: VmId | None) -> Service | None:
    """A service that is not registered, for a VM with defaults of its own; None for another one.

    Such a VM is one as HCS makes it: its defaults decide about the services that nobody listed. Wildcard binds are
    not for these, as in the original.
    """
    if vm_id not in defaults and (through is None or through not in defaults):
        return None
    settings = Settings(wildcard_binds=False)
    return Service(service_id, str(service_id), settings, port=service_id.port, defaults=defaults, listed=False)
