"""The verdict on a bind, a listen and a connect: every check in order, the first refusal counts.

A verdict is a walk over checks that ends at the first that fails. The broker takes where it ends,
``hvsock doctor`` prints the way there: what is explained is what is decided.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from hvsock.addresses import (
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    SERVICE_WILDCARD,
    ServiceId,
    VmId,
    describe_vm_id,
)
from hvsock.constants import VSOCK_PORT_MAX

from . import refusals
from .access import Defaults, Owner, Service, Setting, Settings, Subject, ask, may, token_of_guest, unlisted
from .descriptors import Descriptor
from .matching import Bound, match, may_bind
from .partitions import Kind, Partition, Tree
from .reachability import Relation, leads_out, relation, resolve, view
from .refusals import Reason, Refusal


@dataclass(frozen=True, slots=True)
class Check:
    """One step of a verdict: what was asked, what was found, and the refusal when it fails."""

    question: str
    found: str
    refusal: Refusal | None = None


class Listening(Bound, Protocol):
    """What a verdict needs to know of a listener."""

    @property
    def type(self) -> int:
        """SOCK_STREAM or SOCK_SEQPACKET."""

    @property
    def listening(self) -> bool:
        """Whether listen() was called."""

    @property
    def device(self) -> bool:
        """Whether it is the one of a VM's device, which takes what no other listener of the VM does.

        In the host it is the one of the way up, which takes what is for the host's own parent."""


L = TypeVar("L", bound=Listening)


@dataclass(frozen=True, slots=True)
class Grant(Generic[L]):
    """A connect that may go on.

    Attributes:
        listener: who takes it.
        target: its partition.
        source_is: what the connecting partition is to the target.
        port: where `listener` is a device's, the AF_VSOCK port to ask the guest for; where it is the way up, that
            of the service or 0.
    """

    listener: L
    target: Partition
    source_is: Relation
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A connect as it came in.

    Attributes:
        source: the partition that connects.
        vm_id: the VmId that it connects to.
        service_id: the service.
        type: SOCK_STREAM or SOCK_SEQPACKET.
        passthru: HVSOCKET_CONTAINER_PASSTHRU.
        subject: the process, where `source` is the host; None leaves the user unchecked.
    """

    source: Partition
    vm_id: VmId
    service_id: ServiceId
    type: int
    passthru: bool = False
    subject: Subject | None = None


class Rules(Generic[L]):
    """The rules over one state of the fabric; holds references and no state of its own.

    Args:
        tree: the partitions.
        services: the registered services by id.
        listeners: the listeners of a partition for a service; those of devices are under SERVICE_WILDCARD.
        owner: whose fabric it is.
        defaults: what holds for services that are not registered; those that are have it in them.
    """

    def __init__(
        self,
        tree: Tree,
        services: Mapping[ServiceId, Service],
        listeners: Mapping[tuple[VmId, ServiceId], Sequence[L]],
        owner: Owner,
        defaults: Defaults | None = None,
    ) -> None:
        self.tree = tree
        self.services = services
        self.listeners = listeners
        self.owner = owner
        self.defaults: Defaults = {} if defaults is None else defaults

    def connect(self, request: Request) -> Grant[L] | Refusal:
        """The verdict on a connect."""
        return self._walk(request, [])

    def explain_connect(self, request: Request) -> list[Check]:
        """The checks behind :meth:`connect`, up to the first that fails."""
        steps: list[Check] = []
        self._walk(request, steps)
        return steps

    def _walk(self, request: Request, steps: list[Check]) -> Grant[L] | Refusal:
        source, service_id = request.source, request.service_id
        on_host = source.kind is Kind.HOST

        question = "Can the address be connected to?"
        uplink = self._uplink_for(request)
        if uplink is not None:
            steps.append(Check(question, "yes: the way up leads to the parent of this host, which decides"))
            return self._upwards(request, uplink, steps)
        target = resolve(self.tree, source, request.vm_id, request.passthru)
        how = None if target is None else relation(self.tree, source, target, request.passthru)
        if target is None or how is None:
            return _fails(steps, question, refusals.nowhere(source, request.vm_id))
        steps.append(Check(question, f"yes: {target.name!r}, to which {source.name!r} is {how.value}"))

        question = "Is the service registered?"
        service = self.services.get(service_id)
        found = "" if service is None else f"yes: {service.name!r}"
        if service is None and how is not Relation.SAME:
            service = self._unlisted(service_id, source, target)
            found = "no; the defaults of the VM decide about services that are not"
        wildcards = True
        if service is not None:
            steps.append(Check(question, found))
            settings = self._settings_between(service, source, target)
            if on_host and request.subject is not None:
                question = "May this user connect?"
                opinion = may(settings.connect, request.subject, self.owner)
                if not opinion.allowed:
                    vm_id = self._said_for("connect", service, source, target)
                    refusal = refusals.denied(request.subject, service, "connect", opinion, vm_id)
                    return _fails(steps, question, refusal)
                steps.append(Check(question, refusals.yes(opinion)))
            outside = not on_host and how is not Relation.SAME
            for connect, vm_id in self._about_guests(service, settings, source, target) if outside else ():
                question = "May this guest connect?"
                opinion = ask(connect, token_of_guest(self.tree, source))
                if not opinion.allowed:
                    return _fails(steps, question, refusals.guest_denied(source, service, opinion, vm_id))
                steps.append(Check(question, refusals.yes(opinion)))
            question = "Is the service enabled?"
            if not settings.enabled:
                code = errno.EINVAL if on_host else errno.ECONNREFUSED
                vm_id = self._said_for("enabled", service, source, target)
                return _fails(steps, question, refusals.disabled(service, code, vm_id))
            steps.append(Check(question, "yes"))
            if target.kind is Kind.HOST and how is not Relation.SAME:
                wildcards = settings.wildcard_binds is not False
        elif how is Relation.SAME:
            steps.append(Check(question, "no; a loopback connection does not need it"))
        else:
            code = errno.EACCES if on_host else errno.ECONNREFUSED
            return _fails(steps, question, refusals.not_registered(service_id, code))

        question = "Does something listen?"
        bound = [one for one in self.listeners.get((target.id, service_id), ()) if not one.device]
        listening = [listener for listener in bound if listener.listening]
        listener = match(self.tree, target, listening, source, passthru=request.passthru, wildcards=wildcards)
        if listener is None and service is not None and how is not Relation.SAME:
            device = self._device_of(target)
            if device is not None:
                steps.append(Check(question, "yes: the VM's device asks the guest"))
                question = "Does the guest know a port for it?"
                if service.port in (None, VSOCK_PORT_MAX):
                    return _fails(steps, question, refusals.no_port(service))
                steps.append(Check(question, f"yes: {service.port}"))
                return Grant(device, target, how, service.port)
        if listener is None:
            without = None if wildcards or service is None or not service.listed else service
            text = refusals.why_none(bound, listening, target, source, view(how, source), without)
            return _fails(steps, question, Refusal(errno.ECONNREFUSED, Reason.NO_LISTENER, text))
        steps.append(Check(question, f"yes: in {target.name!r}, bound to {describe_vm_id(listener.vm_id)}"))

        if listener.type != request.type:
            text = "the listener has the other socket type; connect with its own, SOCK_STREAM or SOCK_SEQPACKET"
            refusal = Refusal(errno.EPROTOTYPE, Reason.WRONG_TYPE, text)
            return _fails(steps, "Is it of the same socket type?", refusal)
        return Grant(listener, target, how)

    def _device_of(self, target: Partition) -> L | None:
        """The listener of the device that serves `target`, a VM, if it has one."""
        return None if target.kind is Kind.HOST else self._one_for_all(target)

    def _uplink_for(self, request: Request) -> L | None:
        """The listener of the way up, if there is one and `request` is for the parent of this fabric's host."""
        if request.vm_id == HV_GUID_PARENT and leads_out(self.tree, request.source, request.passthru):
            return self._one_for_all(self.tree.host)
        return None

    def _upwards(self, request: Request, uplink: L, steps: list[Check]) -> Grant[L] | Refusal:
        """The host's parent sees one peer, so users of the host that a service is not for are refused here."""
        service, subject = self.services.get(request.service_id), request.subject
        if service is not None and subject is not None and request.source.kind is Kind.HOST:
            question = "May this user connect?"
            opinion = may(service.settings_for(None).connect, subject, self.owner)
            if not opinion.allowed:
                refusal = refusals.denied(subject, service, "connect", opinion, None)
                return _fails(steps, question, refusal)
            steps.append(Check(question, refusals.yes(opinion)))
        return Grant(uplink, self.tree.host, Relation.CHILD, request.service_id.port or 0)

    def _one_for_all(self, target: Partition) -> L | None:
        devices = self.listeners.get((target.id, SERVICE_WILDCARD), ())
        return next((one for one in devices if one.device and one.listening), None)

    def bind(
        self, partition: Partition, vm_id: VmId, service_id: ServiceId, subject: Subject | None
    ) -> Refusal | None:
        """The verdict on a bind in `partition`; None lets it go on. Whether the address is free is not asked."""
        if not may_bind(self.tree, partition, vm_id):
            word = describe_vm_id(vm_id)
            text = f"{word} is no address for a listener in {partition.name!r}; bind to any instead"
            return Refusal(errno.EADDRNOTAVAIL, Reason.NOT_BINDABLE, text)
        if partition.kind is not Kind.HOST:
            return None
        service = self.services.get(service_id)
        peer = self.tree.get(vm_id)
        if service is None and peer is not None:
            service = self._unlisted(service_id, peer, partition)
        if service is None:
            return None if vm_id == HV_GUID_LOOPBACK else refusals.not_registered(service_id, errno.EACCES)
        if subject is None:
            return None
        opinion = may(self._settings_bound(service, partition, vm_id).bind, subject, self.owner)
        if opinion.allowed:
            return None
        said_for = None if peer is None else self._said_for("bind", service, peer, partition)
        return refusals.denied(subject, service, "bind", opinion, said_for)

    def bind_fresh(
        self, partition: Partition, vm_id: VmId, service_id: ServiceId, subject: Subject | None
    ) -> Refusal | None:
        """The verdict on a bind to a fresh id, in place of SERVICE_WILDCARD.

        It is nobody's service: any address will do, and on the host loopback alone reaches it. But from a VM whose
        defaults decide about services that are not registered it is reached like any other of these.
        """
        peer = self.tree.get(vm_id)
        reached = peer is not None and self._unlisted(service_id, peer, partition) is not None
        if not reached and may_bind(self.tree, partition, vm_id):
            vm_id = HV_GUID_LOOPBACK
        return self.bind(partition, vm_id, service_id, subject)

    def listen(self, partition: Partition, vm_id: VmId, service_id: ServiceId) -> Refusal | None:
        """The verdict on a listen on a bound socket; None lets it go on."""
        service = self.services.get(service_id)
        if partition.kind is not Kind.HOST or service is None:
            return None
        if self._settings_bound(service, partition, vm_id).enabled:
            return None
        peer = self.tree.get(vm_id)
        off_for = None if peer is None else self._said_for("enabled", service, peer, partition)
        return refusals.disabled(service, errno.EINVAL, off_for)

    def _settings_bound(self, service: Service, partition: Partition, vm_id: VmId) -> Settings:
        """The settings in force for a listener: those between it and the one partition it is bound to, if any."""
        peer = self.tree.get(vm_id)
        return service.settings_for(None) if peer is None else self._settings_between(service, peer, partition)

    def _settings_between(self, service: Service, source: Partition, target: Partition) -> Settings:
        """The settings in force between two partitions, those of the guest; between members, off for one is off.

        HVSOCKET_CONTAINER_PASSTHRU makes no difference: the connector chooses it, and chooses no settings with it.
        """
        how = relation(self.tree, source, target, passthru=True)
        if how is Relation.SAME:
            return service.settings_for(None)
        guest, other = _guest_of(source, target, how)
        if how in (Relation.PARENT, Relation.CHILD):
            return service.settings_for(guest.id, through=_through(guest, other))
        settings, others = service.settings_for(guest.id), service.settings_for(other.id)
        return replace(
            settings,
            enabled=settings.enabled and others.enabled,
            wildcard_binds=settings.wildcard_binds and others.wildcard_binds,
        )

    def _said_for(self, what: Setting, service: Service, source: Partition, target: Partition) -> VmId | None:
        """For whom alone is said what refuses something between two partitions; None for all."""
        how = relation(self.tree, source, target, passthru=True)
        if how is Relation.SAME:
            return None
        guest, other = _guest_of(source, target, how)
        if how in (Relation.PARENT, Relation.CHILD):
            return service.said_for(what, guest.id, _through(guest, other))
        switched_off = what == "enabled" and not service.settings_for(guest.id).enabled
        return service.said_for(what, guest.id if what != "enabled" or switched_off else other.id)

    def _about_guests(
        self, service: Service, settings: Settings, source: Partition, target: Partition
    ) -> list[tuple[Descriptor, VmId | None]]:
        """The descriptors that decide whether a guest may connect, each with the VM that it is alone for.

        They are in `settings`, and between members in the guest's own, too.
        """
        found = {settings.connect: self._said_for("connect", service, source, target)}
        if relation(self.tree, source, target, passthru=True) is Relation.MEMBER:
            own = service.settings_for(source.id).connect
            found.setdefault(own, service.said_for("connect", source.id))
        return [(one, vm_id) for one, vm_id in found.items() if isinstance(one, Descriptor) and one.names_vms]

    def _unlisted(self, service_id: ServiceId, source: Partition, target: Partition) -> Service | None:
        """What stands for a service that is not registered, between a VM with defaults of its own and its host."""
        how = relation(self.tree, source, target, passthru=True)
        if how not in (Relation.PARENT, Relation.CHILD):
            return None
        guest, other = _guest_of(source, target, how)
        return unlisted(service_id, self.defaults, guest.id, _through(guest, other))


def _guest_of(source: Partition, target: Partition, how: Relation | None) -> tuple[Partition, Partition]:
    """Which of two partitions is the guest that settings are for, and the other one."""
    if how is Relation.CHILD or target.kind is Kind.HOST:
        return source, target
    return target, source


def _through(guest: Partition, other: Partition) -> VmId | None:
    """The VM through which the connections of `guest` with `other` pass, if any."""
    return None if guest.parent == other.id else guest.parent


def _fails(steps: list[Check], question: str, refusal: Refusal) -> Refusal:
    steps.append(Check(question, "no", refusal))
    return refusal
