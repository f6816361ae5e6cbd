"""Why something is refused: the errno, the reason for counters, and the words that say what to do (pure)."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from hvsock.addresses import WELL_KNOWN_VMIDS, ServiceId, VmId, describe_vm_id

from .access import Opinion, Service, Subject
from .matching import WILDCARD_BINDS, Bound
from .partitions import Partition
from .reachability import NOT_A_DESTINATION

_WORDS: Final = frozenset(WELL_KNOWN_VMIDS.values())


class Reason(Enum):
    """Why something is refused; the value is the name that counters and JSON use."""

    NOT_A_DESTINATION = "not-a-destination"
    UNREACHABLE = "unreachable"
    NOT_BINDABLE = "not-bindable"
    NOT_REGISTERED = "not-registered"
    DENIED = "denied"
    DISABLED = "disabled"
    NO_LISTENER = "no-listener"
    NO_PORT = "no-port"
    WRONG_TYPE = "wrong-type"
    IN_USE = "in-use"
    BACKLOG_FULL = "backlog-full"
    CANCELLED = "cancelled"
    LISTENER_GONE = "listener-gone"
    LIMIT = "limit"
    BAD_REQUEST = "bad-request"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something does not go on.

    Attributes:
        errno: for the caller's socket.
        reason: for counters.
        text: for people, one line with what to do about it. It may name other partitions and their
            bindings, so it is for those on the host; a guest gets no more than the errno.
    """

    errno: int
    reason: Reason
    text: str


def nowhere(source: Partition, vm_id: VmId) -> Refusal:
    """A word that leads nowhere is no destination; an id is a host out of reach, whether it exists or not."""
    word = describe_vm_id(vm_id)
    if vm_id == source.id:
        text = f"{word} is {source.name!r} itself and none of its VMs; connect to one of these, or to loopback"
        return Refusal(errno.EHOSTUNREACH, Reason.UNREACHABLE, text)
    if vm_id in NOT_A_DESTINATION:
        text = f"{word} is for listeners only; connect to loopback or a VmId"
        return Refusal(errno.EADDRNOTAVAIL, Reason.NOT_A_DESTINATION, text)
    if vm_id in _WORDS:
        text = f"{word} means no partition in {source.name!r}; connect to loopback or a VmId"
        return Refusal(errno.EADDRNOTAVAIL, Reason.NOT_A_DESTINATION, text)
    text = f"{word} is no child of {source.name!r} and in no group with it; check the id, or put both in one group"
    return Refusal(errno.EHOSTUNREACH, Reason.UNREACHABLE, text)


def not_registered(service_id: ServiceId, code: int) -> Refusal:
    """Nobody registered the service."""
    text = f"{service_id} is not registered; run: hvsock service register NAME --id {service_id}"
    return Refusal(code, Reason.NOT_REGISTERED, text)


def no_port(service: Service) -> Refusal:
    """A guest has no way to be asked for the service."""
    text = f"{service.name!r} has no AF_VSOCK port, by which a guest would know it; "
    text += f"run: hvsock service unregister {service.id}, and: hvsock service register NAME "
    text += f"--id {service.id} --port-alias PORT"
    return Refusal(errno.ECONNREFUSED, Reason.NO_PORT, text)


def denied(
    subject: Subject, service: Service, what: Literal["bind", "connect"], opinion: Opinion, vm_id: VmId | None
) -> Refusal:
    """A user of the host may not do that; what says so is said for `vm_id` alone, or for all VMs."""
    act = "connect to" if what == "connect" else "bind"
    text = f"user {subject.uid} may not {act} {service.name!r}{_because(opinion)}"
    option = f"{what}-sddl SDDL" if opinion.because else f"{what} user:{subject.uid}"
    return Refusal(errno.EACCES, Reason.DENIED, f"{text}; {_who_can_allow(service, vm_id, option)}")


def guest_denied(source: Partition, service: Service, opinion: Opinion, vm_id: VmId | None) -> Refusal:
    """A guest may not connect; it is told no more than that nobody listens."""
    text = f"{source.name!r} may not connect to {service.name!r}{_because(opinion)}"
    text += f"; {_who_can_allow(service, vm_id, 'connect-sddl SDDL')}"
    return Refusal(errno.ECONNREFUSED, Reason.DENIED, text)


def _who_can_allow(service: Service, vm_id: VmId | None, option: str) -> str:
    where = f"access {service.id}" if service.listed else "defaults"
    where += "" if vm_id is None else f" --vm {vm_id}"
    return f"its owner can allow it: hvsock service {where} --{option}"


def _because(opinion: Opinion) -> str:
    return f", as {opinion.because}" if opinion.because else ""


def yes(opinion: Opinion) -> str:
    """What a check found that passed."""
    return f"yes: {opinion.because}" if opinion.because else "yes"


def disabled(service: Service, code: int, vm_id: VmId | None) -> Refusal:
    """The service is switched off: for `vm_id` alone, or for all."""
    text = f"{service.name!r} is disabled here; run: hvsock service enable {service.id}"
    return Refusal(code, Reason.DISABLED, text if vm_id is None else f"{text} --vm {vm_id}")


def why_none(
    bound: Sequence[Bound],
    listening: Sequence[Bound],
    target: Partition,
    source: Partition,
    seen_as: VmId,
    without_wildcards: Service | None,
) -> str:
    """Why no listener takes a connection, and what to do.

    Args:
        bound: the sockets that are bound to the service.
        listening: those of them that listen.
        target: their partition.
        source: the partition that connects.
        seen_as: what that is called in `target`.
        without_wildcards: the service, where wildcard binds do not count for it and `source`.
    """
    if not bound:
        return f"nothing listens to it in {target.name!r}; start its server there"
    if not listening:
        return f"a socket in {target.name!r} is bound to it and does not listen; call listen() on it"
    bindings = ", ".join(sorted(describe_vm_id(listener.vm_id) for listener in listening))
    text = f"{target.name!r} listens on {bindings}, which does not take {source.name!r}"
    text += f"; bind to {describe_vm_id(seen_as)}"
    if without_wildcards is not None and any(listener.vm_id in WILDCARD_BINDS for listener in listening):
        text += f", or allow wildcard binds: hvsock service access {without_wildcards.id}"
        text += f" --vm {source.id} --wildcard-binds"
    return text
