"""Probes of addresses, names, options, errors and messages, put to every transport alike.

A probe gets a :class:`Setting`: the ends of a transport, and the ways from one to the other. It raises
AssertionError, or whatever the sockets raise, where something is otherwise than the reference says. Probes run on
the host and in guests.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket as stdlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from hvsock import (
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    ServiceId,
    VmId,
)
from hvsock.selftest import Ground, connections, ground
from hvsock.transport import Transport

WAIT_SECONDS: Final = 30.0
"""For one step; a guest under software emulation is slow."""
A_MOMENT: Final = 0.05
"""Seconds to wait for what does not come."""
DEFAULT_CONNECT_TIMEOUT: Final = 2000
"""Milliseconds."""
MAX_CONNECT_TIMEOUT: Final = 300_000

_PLACE: Final = re.compile(r" in \w+, line \d+: .*| outside the checks.*|; meanwhile .*")
MakeSocket = Callable[[int], Any]
"""Gives a fresh socket of a type, such as SOCK_STREAM, of one partition."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a connection comes about, and what its ends are called then.

    Attributes:
        calling: makes sockets of the partition that connects.
        serving: makes sockets of that which listens.
        bind: what the listener is bound to.
        to: what is connected to.
        near: the VmIds of the connecting end: its own, and its peer's.
        far: those of the accepted end.
    """

    calling: MakeSocket
    serving: MakeSocket
    bind: VmId
    to: VmId
    near: tuple[VmId, VmId]
    far: tuple[VmId, VmId]


@dataclass(frozen=True, slots=True)
class Lack:
    """A form that a transport does not have, and the error that says so.

    Attributes:
        make: makes sockets of the partition that tries.
        call: "bind" or "connect".
        vm_id: the address.
        code: the errno.
    """

    make: MakeSocket
    call: str
    vm_id: VmId
    code: int


@dataclass(frozen=True, slots=True)
class Setting:
    """A transport, as probes see it.

    Attributes:
        forms: the address forms, by the probe's name; what is not there is in `skipped`.
        calling_here: a way whose connecting socket is of this process.
        serving_here: a way whose listening socket is.
        port_service: gives a fresh service that is a port.
        guid_service: gives a fresh service that is none.
        absent: errno of what the transport says it does not have, by the probe's name; None where it says nothing.
        skipped: why probes cannot be run here, by their names.
    """

    forms: Mapping[str, Way | Lack]
    calling_here: Way
    serving_here: Way
    port_service: Callable[[], ServiceId]
    guid_service: Callable[[], ServiceId]
    absent: Mapping[str, int | None] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unexplained = [name for name in FORMS if name not in self.forms and not self.skipped.get(name)]
        assert not unexplained, f"neither forms nor reasons why they are not run: {unexplained}"


@contextlib.contextmanager
def listening(way: Way, service: ServiceId, type: int = stdlib.SOCK_STREAM) -> Iterator[Any]:
    """A listener, with a time-out."""
    with way.serving(type) as listener:
        listener.settimeout(WAIT_SECONDS)
        listener.bind((way.bind, service))
        listener.listen()
        yield listener


@contextlib.contextmanager
def connected(
    way: Way, service: ServiceId, type: int = stdlib.SOCK_STREAM
) -> Iterator[tuple[Any, Any, tuple[str, str]]]:
    """A connection: both ends, and the peer's address as accept tells it."""
    with ExitStack() as stack:
        listener = stack.enter_context(listening(way, service, type))
        near = stack.enter_context(way.calling(type))
        near.settimeout(WAIT_SECONDS)
        near.connect((way.to, service))
        far, peer = listener.accept()
        stack.enter_context(far)
        far.settimeout(WAIT_SECONDS)
        yield near, far, tuple(peer)


def both_ways(near: Any, far: Any) -> None:
    """A few bytes arrive."""
    for one, other in ((near, far), (far, near)):
        one.sendall(b"to the other end")
        got = b""
        while len(got) < 16:
            piece = other.recv(16 - len(got))
            assert piece, "the stream ended"
            got += piece
        assert got == b"to the other end", got


def refused(code: int | tuple[int, ...], call: Callable[..., object], *arguments: Any) -> None:
    """Require that a call fails with errno `code`."""
    codes = code if isinstance(code, tuple) else (code,)
    wanted = " or ".join(errno.errorcode[one] for one in codes)
    try:
        call(*arguments)
    except OSError as error:
        seen, words = error.errno, errno.errorcode.get(error.errno or 0, str(error))
    else:
        seen, words = None, "no error"
    assert seen in codes, f"{words} came, where {wanted} had to"


def form(setting: Setting, name: str) -> None:
    """An address form carries bytes both ways; or is refused as it should be."""
    found = setting.forms[name]
    if isinstance(found, Lack):
        with found.make(stdlib.SOCK_STREAM) as sock:
            refused(found.code, getattr(sock, found.call), (found.vm_id, setting.port_service()))
        return
    with connected(found, setting.port_service()) as (near, far, _):
        both_ways(near, far)


FORMS: Final = (
    *(f"connect_{name}" for name in ("parent", "loopback", "vm_id", "cid", "silohost")),
    *(f"listen_{name}" for name in ("any", "children", "parent", "loopback", "vm_id", "silohost")),
)


def service_port(setting: Setting) -> None:
    """A service of the vsock template."""
    with connected(setting.calling_here, setting.port_service()) as (near, far, _):
        both_ways(near, far)


def service_guid(setting: Setting) -> None:
    """A service that has no port."""
    with connected(setting.calling_here, setting.guid_service()) as (near, far, _):
        both_ways(near, far)


def names_of_both_ends(setting: Setting) -> None:
    """getsockname and getpeername, of every way there is, and what accept tells."""
    ways = [one for one in setting.forms.values() if isinstance(one, Way)]
    for way in ways:
        with connected(way, setting.port_service()) as (near, far, peer):
            found = [(end.getsockname()[0], end.getpeername()[0]) for end in (near, far)]
            for ids, wanted in zip(found, (way.near, way.far), strict=True):
                assert tuple(ids) == wanted, f"{ids}, where {wanted} had to come"
            assert peer[0] == way.far[1]


def names_of_services(setting: Setting) -> None:
    """Both ends know which service it is."""
    service = setting.port_service()
    with connected(setting.calling_here, service) as (near, far, _):
        for found in (near.getpeername()[1], far.getsockname()[1]):
            assert found == service, f"{found}, where {service} had to come"


def names_of_connectors(setting: Setting) -> None:
    """The accepted end knows the connector's own service."""
    with connected(setting.calling_here, setting.port_service()) as (near, far, peer):
        for found in (far.getpeername()[1], peer[1]):
            assert found == near.getsockname()[1], "another service than the connector's own"


def accept_nonblocking(setting: Setting) -> None:
    """An accept that would wait says so."""
    with listening(setting.serving_here, setting.port_service()) as listener:
        listener.settimeout(0)
        refused(errno.EAGAIN, listener.accept)


def accept_timeout(setting: Setting) -> None:
    """An accept waits as long as it may, and the listener is as good as before."""
    way, service = setting.serving_here, setting.port_service()
    with listening(way, service) as listener, way.calling(stdlib.SOCK_STREAM) as near:
        listener.settimeout(A_MOMENT)
        try:
            listener.accept()
        except TimeoutError:
            pass
        else:
            raise AssertionError("somebody was accepted")
        listener.settimeout(WAIT_SECONDS)
        near.settimeout(WAIT_SECONDS)
        near.connect((way.to, service))
        listener.accept()[0].close()


def option_default(setting: Setting) -> None:
    """What nobody has set can be read; it is another for hybrid sockets."""
    with setting.calling_here.calling(stdlib.SOCK_STREAM) as sock:
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT) >= DEFAULT_CONNECT_TIMEOUT


def error_nobody_listens(setting: Setting) -> None:
    """A refusal, after which the same socket may try again."""
    way, service = setting.calling_here, setting.port_service()
    with way.calling(stdlib.SOCK_STREAM) as near:
        near.settimeout(WAIT_SECONDS)
        refused(errno.ECONNREFUSED, near.connect, (way.to, service))
        with listening(way, service) as listener:
            near.connect((way.to, service))
            far, _ = listener.accept()
            with far:
                far.settimeout(WAIT_SECONDS)
                both_ways(near, far)


def error_datagram(setting: Setting) -> None:
    """There are no datagrams."""
    refused(errno.ESOCKTNOSUPPORT, setting.calling_here.calling, stdlib.SOCK_DGRAM)


def seqpacket_messages(setting: Setting) -> None:
    """Two messages are two, however they are asked for."""
    with connected(setting.calling_here, setting.port_service(), stdlib.SOCK_SEQPACKET) as (near, far, _):
        for one, other in ((near, far), (far, near)):
            one.send(b"first")
            one.send(b"the second one")
            assert other.recv(99) == b"first"
            assert other.recv(99) == b"the second one"


OF_THE_SELFTEST: Final = {
    "service_fresh": "bind to a fresh service",
    "destination_wildcard": "error: connect to a wildcard",
    "select_listening": "select: a listener",
    "select_connecting": "select: a connect",
    "option_connect_timeout": "option HVSOCKET_CONNECT_TIMEOUT",
    "option_connected_suspend": "option HVSOCKET_CONNECTED_SUSPEND",
    "option_container_passthru": "option HVSOCKET_CONTAINER_PASSTHRU",
    "option_high_vtl": "option HVSOCKET_HIGH_VTL",
    "error_unknown_vm": "error: unknown VM",
    "error_bound_twice": "error: bound twice",
    "error_no_names": "error: a fresh socket has no names",
    "error_connected_already": "error: connected already",
}
"""Probes that are checks of `hvsock selftest`, by the checks' names."""
_CHECKS: Final = {check.name: check for check in connections.CHECKS}


def ground_of(setting: Setting) -> Ground:
    """What the checks of the selftest stand on, of this setting."""

    def way(one: Way) -> ground.Way:
        calling, serving = (partial(make, stdlib.SOCK_STREAM) for make in (one.calling, one.serving))
        return ground.Way(calling, serving, one.bind, one.to, WAIT_SECONDS)

    def find_vm(name: str) -> VmId:
        raise AssertionError("no probe looks for names")

    out, into = way(setting.calling_here), way(setting.serving_here)
    port = setting.port_service
    return Ground(Transport.FABRIC, out.calling, None, port, None, {}, find_vm, outwards=out, inwards=into)


Probe = Callable[[Setting], object]


def _of_selftest(name: str) -> Probe:
    return lambda setting: _CHECKS[name].function(ground_of(setting))


def _of_form(name: str) -> Probe:
    return lambda setting: form(setting, name)


PROBES: Final[Mapping[str, Probe]] = {
    **{name: _of_form(name) for name in FORMS},
    **{
        one.__name__: one
        for one in (
            *(service_port, service_guid, names_of_both_ends, names_of_services, names_of_connectors),
            *(accept_nonblocking, accept_timeout, option_default, error_nobody_listens),
            *(error_datagram, seqpacket_messages),
        )
    },
    **{name: _of_selftest(check) for name, check in OF_THE_SELFTEST.items()},
}
"""By name, in the order in which they are run."""

PASSED: Final = "pass"
NOT_RUN: Final = "not run"
ABSENT: Final = "no"
ONLY_ONE_WAY: Final = "pass, one end"
"""Where a check was run for one end alone, since the other is in another machine."""
FAILED: Final = "fail"


def outcome_of(setting: Setting, name: str) -> str:
    """What became of a probe: a word of those above; where there is more to say, after a colon.

    After "no" and "fail" that is what came instead, after "not run" the reason.
    """
    if name in setting.skipped:
        return f"{NOT_RUN}: {setting.skipped[name]}"
    try:
        if name in setting.absent:
            return _absence(setting, name, setting.absent[name])
        PROBES[name](setting)
    except Exception as error:
        return f"{FAILED}: {said(error)}"
    found = setting.forms.get(name)
    return f"{ABSENT}: {errno.errorcode[found.code]}" if isinstance(found, Lack) else PASSED


def _absence(setting: Setting, name: str, code: int | None) -> str:
    """The outcome of a probe of what a transport does not have, which is put to it all the same."""
    if code is not None:
        refused(code, PROBES[name], setting)
        return f"{ABSENT}: {errno.errorcode[code]}"
    try:
        PROBES[name](setting)
    except AssertionError:
        return ABSENT
    return f"{FAILED}: it is there, and had not to be"


def said(error: Exception) -> str:
    """An error on one line, with its kind unless it is a check's own words, and without the place in the code."""
    text = _PLACE.sub("", " ".join(str(error).split()))
    return text if isinstance(error, AssertionError) and text else f"{type(error).__name__}: {text}"


def run_probes(setting: Setting) -> dict[str, str]:
    """The outcome of every probe, whatever became of the others."""
    return {name: outcome_of(setting, name) for name in PROBES}
