"""What a service's settings allow: enabled or not, wildcard binds, and which users of the host.

Settings are given for a service as a whole and, on top, for single VMs; what a VM's setting leaves
open, the service's decides, and what that leaves open, the defaults: enabled (but for in-box services that
are off by default), wildcard binds allowed (as for classic VMs), and the fabric's owner, root and its admin
group may bind and connect.

This is the one place where access is decided. Only processes of the host are checked for their user,
as in the original: what a guest does is the guest's own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hvsock.addresses import ServiceId, VmId

ROOT_UID = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks: a process of the host, by its Unix user and groups."""

    uid: int
    gids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Owner:
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


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a service, for all VMs or for one; None leaves a setting to the level above."""

    enabled: bool | None = None
    wildcard_binds: bool | None = None
    bind: Allowed | None = None
    connect: Allowed | None = None

    def over(self, lower: Settings) -> Settings:
        """These settings, with what they leave open taken from `lower`."""
        return Settings(
            enabled=lower.enabled if self.enabled is None else self.enabled,
            wildcard_binds=lower.wildcard_binds if self.wildcard_binds is None else self.wildcard_binds,
            bind=lower.bind if self.bind is None else self.bind,
            connect=lower.connect if self.connect is None else self.connect,
        )


DEFAULTS = Settings(enabled=True, wildcard_binds=True, bind=Allowed(), connect=Allowed())


@dataclass(frozen=True, slots=True)
class Service:
    """What the rules need to know of a registered service.

    Attributes:
        id: its ServiceId.
        name: its friendly name (ElementName).
        settings: for all VMs.
        per_vm: on top, for the connections of single VMs with their host.
        port: the AF_VSOCK port by which guests know it; None where it has none.
        defaults: what holds where no setting says anything; nothing in them is None.
    """

    id: ServiceId
    name: str
    settings: Settings = Settings()
    per_vm: Mapping[VmId, Settings] = field(default_factory=dict)
    port: int | None = None
    defaults: Settings = DEFAULTS

    def settings_for(self, vm_id: VmId | None, through: VmId | None = None) -> Settings:
        """The effective settings, in which nothing is None any more.

        Args:
            vm_id: for connections of this VM or container; None for no one in particular.
            through: the VM that they pass through, whose settings apply where `vm_id` has none of its own.
        """
        settings = self.settings.over(self.defaults)
        for level in (through, vm_id):
            one = None if level is None else self.per_vm.get(level)
            if one is not None:
                settings = one.over(settings)
        return settings
