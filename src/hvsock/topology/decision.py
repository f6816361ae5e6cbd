"""The verdict on a bind, a listen and a connect: every check in order, the first refusal counts.

Each verdict is a walk over checks. The broker stops at the first that fails; ``hvsock doctor`` prints
them all, so that what is explained is what is decided.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Generic, Protocol, TypeVar

from hvsock.addresses import HV_GUID_LOOPBACK, ServiceId, VmId, describe_vm_id

from .access import Allowed, Owner, Service, Settings, Subject
from .matching import WILDCARD_BINDS, Bound, match, may_bind
from .partitions import Kind, Partition, Tree
from .reachability import NOT_A_DESTINATION, Relation, relation, resolve


class Reason(Enum):
    """Why something is refused; the value is the name that counters and JSON use."""

    NOT_A_DESTINATION = "not-a-destination"
    UNREACHABLE = "unreachable"
    NOT_BINDABLE = "not-bindable"
    NOT_REGISTERED = "not-registered"
    DENIED = "denied"
    DISABLED = "disabled"
    NO_LISTENER = "no-listener"
    WRONG_TYPE = "wrong-type"
    IN_USE = "in-use"
    BACKLOG_FULL = "backlog-full"
    CANCELLED = "cancelled"
    LIMIT = "limit"
    BAD_REQUEST = "bad-request"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal: the errno for the caller's socket, the reason for counters, the words for people."""

    errno: int
    reason: Reason
    text: str


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


L = TypeVar("L", bound=Listening)


@dataclass(frozen=True, slots=True)
class Grant(Generic[L]):
    """A connect that may go on.

    Attributes:
        listener: who takes it.
        target: its partition.
        source_is: what the connecting partition is to the target.
    """

    listener: L
    target: Partition
    source_is: Relation


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
        listeners: the listeners of a partition for a service.
        owner: whose fabric it is.
    """

    def __init__(
        self,
        tree: Tree,
        services: Mapping[ServiceId, Service],
        listeners: Mapping[tuple[VmId, ServiceId], Sequence[L]],
        owner: Owner,
    ) -> None:
        self.tree = tree
        self.services = services
        self.listeners = listeners
        self.owner = owner

    def connect(self, request: Request) -> Grant[L] | Refusal:
        """The verdict on a connect."""
        for step in self._connect_checks(request):
            if isinstance(step, Grant):
                return step
            if step.refusal is not None:
                return step.refusal
        raise AssertionError("a walk over the checks ends in a grant or a refusal")

    def explain_connect(self, request: Request) -> list[Check]:
        """The checks behind :meth:`connect`, up to the first that fails."""
        steps: list[Check] = []
        for step in self._connect_checks(request):
            if isinstance(step, Grant):
                break
            steps.append(step)
            if step.refusal is not None:
                break
        return steps

    def _connect_checks(self, request: Request) -> Iterator[Check | Grant[L]]:
        source, passthru = request.source, request.passthru
        on_host = source.kind is Kind.HOST

        question = "Can the address be connected to?"
        if request.vm_id in NOT_A_DESTINATION:
            word = describe_vm_id(request.vm_id)
            yield _no(question, errno.EADDRNOTAVAIL, Reason.NOT_A_DESTINATION, f"{word} is for listeners only")
            return
        target = resolve(self.tree, source, request.vm_id, passthru)
        how = None if target is None else relation(self.tree, source, target, passthru)
        if target is None or how is None:
            # a word that means nothing here is EADDRNOTAVAIL, as at bind; an id is a host out of reach
            code = errno.EHOSTUNREACH if describe_vm_id(request.vm_id) == request.vm_id else errno.EADDRNOTAVAIL
            text = f"{describe_vm_id(request.vm_id)} is not a partition that {source.name!r} can reach"
            yield _no(question, code, Reason.UNREACHABLE, text)
            return
        yield Check(question, f"yes: {target.name!r}; {source.name!r} is {how.value} to it")

        service = self.services.get(request.service_id)
        question = "Is the service registered?"
        if service is not None:
            yield Check(question, f"yes: {service.name!r}")
        elif how is Relation.SAME:
            yield Check(question, "no; a loopback connection does not need it")
        else:
            code = errno.EACCES if on_host else errno.ECONNREFUSED
            yield Check(question, "no", _not_registered(request.service_id, code))
            return

        if service is not None:
            settings = _settings(service, source, target, how)
            if on_host and request.subject is not None:
                refusal = self._denied(settings.connect, request.subject, service, "connect to")
                yield Check("May this user connect?", "no" if refusal else "yes", refusal)
            refusal = _disabled(settings, service, errno.EINVAL if on_host else errno.ECONNREFUSED)
            yield Check("Is the service enabled?", "no" if refusal else "yes", refusal)
            wildcards = target.kind is not Kind.HOST or settings.wildcard_binds is not False
        else:
            wildcards = True

        question = "Does something listen?"
        listening = [
            listener for listener in self.listeners.get((target.id, request.service_id), ()) if listener.listening
        ]
        listener = match(self.tree, target, listening, source, passthru=passthru, wildcards=wildcards)
        if listener is None:
            yield _no(
                question,
                errno.ECONNREFUSED,
                Reason.NO_LISTENER,
                _why_none(target, source, listening, wildcards),
            )
        elif listener.type != request.type:
            text = "the listener's socket type is another: one is SOCK_STREAM, the other SOCK_SEQPACKET"
            yield _no(question, errno.EPROTOTYPE, Reason.WRONG_TYPE, text)
        else:
            yield Check(question, f"yes: in {target.name!r}, bound to {describe_vm_id(listener.vm_id)}")
            yield Grant(listener, target, how)

    def bind(
        self, partition: Partition, vm_id: VmId, service_id: ServiceId, subject: Subject | None
    ) -> Refusal | None:
        """The verdict on a bind in `partition`; None lets it go on. Whether the address is free is not asked."""
        if not may_bind(self.tree, partition, vm_id):
            text = f"{describe_vm_id(vm_id)} is no address that a listener in {partition.name!r} can have"
            return Refusal(errno.EADDRNOTAVAIL, Reason.NOT_BINDABLE, text)
        if partition.kind is not Kind.HOST:
            return None
        service = self.services.get(service_id)
        if service is not None:
            if subject is None:
                return None
            return self._denied(service.settings_for(vm_id).bind, subject, service, "bind")
        return None if vm_id == HV_GUID_LOOPBACK else _not_registered(service_id, errno.EACCES)

    def listen(self, partition: Partition, vm_id: VmId, service_id: ServiceId) -> Refusal | None:
        """The verdict on a listen on a bound socket; None lets it go on."""
        service = self.services.get(service_id)
        if partition.kind is not Kind.HOST or service is None:
            return None
        return _disabled(service.settings_for(vm_id), service, errno.EINVAL)

    def _denied(self, allowed: Allowed | None, subject: Subject, service: Service, act: str) -> Refusal | None:
        if self.owner.administers(subject) or (allowed is not None and allowed.includes(subject)):
            return None
        text = f"user {subject.uid} may not {act} {service.name!r}; its owner can allow it: hvsock service access"
        return Refusal(errno.EACCES, Reason.DENIED, text)


def _settings(service: Service, source: Partition, target: Partition, how: Relation) -> Settings:
    """The settings in force: those of the guest on either side; between two members, off for one is off."""
    if how is Relation.SAME:
        return service.settings_for(None)
    of_source, of_target = service.settings_for(source.id), service.settings_for(target.id)
    if how is Relation.MEMBER:
        return replace(of_target, enabled=of_source.enabled and of_target.enabled)
    return of_source if how is Relation.CHILD else of_target


def _no(question: str, code: int, reason: Reason, text: str) -> Check:
    return Check(question, "no", Refusal(code, reason, text))


def _not_registered(service_id: ServiceId, code: int) -> Refusal:
    text = f"{service_id} is not registered; run: hvsock service register NAME --id {service_id}"
    return Refusal(code, Reason.NOT_REGISTERED, text)


def _disabled(settings: Settings, service: Service, code: int) -> Refusal | None:
    if settings.enabled:
        return None
    text = f"{service.name!r} is disabled here; run: hvsock service enable {service.id}"
    return Refusal(code, Reason.DISABLED, text)


def _why_none(target: Partition, source: Partition, listening: Sequence[Listening], wildcards: bool) -> str:
    if not listening:
        return f"nothing listens to it in {target.name!r}"
    bindings = ", ".join(sorted(describe_vm_id(listener.vm_id) for listener in listening))
    text = f"{target.name!r} listens on {bindings}, which does not take {source.name!r}"
    if not wildcards and any(listener.vm_id in WILDCARD_BINDS for listener in listening):
        text += " (wildcard binds are forbidden for this service; run: hvsock service access)"
    return text
