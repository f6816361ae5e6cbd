"""A fake of AF_HYPERV on Windows as CPython 3.12 has it: `_socket`, with its checks, over a few partitions.

It is the C module that is faked. CPython's own Lib/socket.py runs on top of it, so what that class does (accept,
dup, detach, makefile) is not imitated. Faithful to these sources, and to nothing else, as no Windows was at hand:

- Modules/socketmodule.c: what an address has to be, and the exceptions and texts (getsockaddrarg); addresses that
  come back are lower case (UuidToStringW); a handle that is passed in has protocol 0 unless told otherwise (there
  is no SO_PROTOCOL); getsockname of an unbound socket is an error.
- PC/errmap.h: errno is the number of Winsock, but for six of them.
- UuidFromStringW takes 36 characters, in any case, without braces.
- go-winio's tests: which addresses both ends of a connection show, that nobody at the other end of a loopback is
  WSAECONNREFUSED, that a second bind is WSAEADDRINUSE, and that the service of an accepted socket is arbitrary.
- hcsshim's tests: WILDCARD and CHILDREN as destinations are WSAEADDRNOTAVAIL.
- hvsocket.h: names, numbers and the largest time-out.

The bytes go over AF_UNIX. A closed listener ends an accept that waits in another thread, as closesocket does.
"""

from __future__ import annotations

import _socket
import asyncio  # noqa: F401 (before there is a fake that it would import)
import contextlib
import errno
import importlib
import itertools
import os
import re
import socket as _stdlib
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, NamedTuple

from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_WILDCARD,
    ServiceId,
    VmId,
)
from hvsock.sockets import patience, sockaddr, streams  # noqa: F401 (as those above)
from hvsock.windows import names  # noqa: F401 (as those above)

assert sys.platform == "linux"

AF_HYPERV: Final = 34
HV_PROTOCOL_RAW: Final = 1
ONLY_ON_LINUX: Final = (
    "AF_UNIX",
    "AF_VSOCK",
    "AF_NETLINK",
    "AF_PACKET",
    "SOCK_NONBLOCK",
    "SOCK_CLOEXEC",
    "SO_PROTOCOL",
)
"""Names that the module must not be asked for."""
CONSTANTS: Final = {
    "AF_HYPERV": AF_HYPERV,
    "HV_PROTOCOL_RAW": HV_PROTOCOL_RAW,
    "HVSOCKET_CONNECT_TIMEOUT": 1,
    "HVSOCKET_CONNECT_TIMEOUT_MAX": 300000,
    "HVSOCKET_CONNECTED_SUSPEND": 4,
    "HVSOCKET_ADDRESS_FLAG_PASSTHRU": 1,
    "HV_GUID_ZERO": "00000000-0000-0000-0000-000000000000",
    "HV_GUID_WILDCARD": "00000000-0000-0000-0000-000000000000",
    "HV_GUID_BROADCAST": "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
    "HV_GUID_CHILDREN": "90DB8B89-0D35-4F79-8CE9-49EA0AC8B7CD",
    "HV_GUID_LOOPBACK": "E0E16197-DD56-4A10-9195-5EE7A155A838",
    "HV_GUID_PARENT": "A42E7CDA-D03F-480C-9CC2-A4DE20ABB878",
    "SOL_SOCKET": 0xFFFF,
    "SO_ERROR": 0x1007,
    "SO_TYPE": 0x1008,
    "SO_SNDBUF": 0x1001,
    "SO_RCVBUF": 0x1002,
}
"""What the module has on Windows; names that hvsocket.h has and CPython lacks are not there."""
_TO_LINUX: Final = {
    CONSTANTS["SO_ERROR"]: _stdlib.SO_ERROR,
    CONSTANTS["SO_TYPE"]: _stdlib.SO_TYPE,
    CONSTANTS["SO_SNDBUF"]: _stdlib.SO_SNDBUF,
    CONSTANTS["SO_RCVBUF"]: _stdlib.SO_RCVBUF,
}

WSAEINTR, WSAEACCES, WSAEINVAL, WSAEMFILE = 10004, 10013, 10022, 10024
WSAEWOULDBLOCK, WSAENOTSOCK, WSAEPROTOTYPE, WSAENOPROTOOPT = 10035, 10038, 10041, 10042
WSAESOCKTNOSUPPORT, WSAEADDRINUSE, WSAEADDRNOTAVAIL = 10044, 10048, 10049
WSAENETUNREACH, WSAEISCONN, WSAENOTCONN, WSAETIMEDOUT, WSAECONNREFUSED = 10051, 10056, 10057, 10060, 10061
_UNWRAPPED: Final = (10004, 10009, 10013, 10014, 10022, 10024)

_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\Z")
_KINDS = {
    WSAEWOULDBLOCK: BlockingIOError,
    WSAEACCES: PermissionError,
    WSAECONNREFUSED: ConnectionRefusedError,
    WSAETIMEDOUT: TimeoutError,
}


def winerror(number: int) -> OSError:
    """The exception of set_error: errno is that of Windows, which Linux knows under other numbers."""
    code = number - 10000 if number in _UNWRAPPED else number
    error = _KINDS.get(number, OSError)(code, f"what Windows says of {number}")
    error.winerror = number  # type: ignore[attr-defined]
    return error


class Pair(NamedTuple):
    """An address in the kernel."""

    vm_id: str
    service_id: str


@dataclass
class Endpoint:
    """What the kernel knows of one socket."""

    own: Pair | None = None
    peer: Pair | None = None
    partition: str = ""
    path: bytes = b""
    bound: bool = False
    listening: bool = False
    options: dict[int, int] = field(default_factory=dict)
    closed: threading.Event = field(default_factory=threading.Event)


class Machine:
    """A host and its VMs, each with sockets: ids of VMs, and the services that the host has registered."""

    def __init__(self) -> None:
        self.vms: set[str] = set()
        self.silent: set[str] = set()
        """VMs that do not answer where nothing listens, as those with Linux."""
        self.registered: set[str] = set()
        self.endpoints: dict[int, Endpoint] = {}
        """By the inode of the AF_UNIX socket; threads add to it, so what goes through it takes :meth:`all`."""
        self._numbers = itertools.count(1)

    def add_vm(self) -> VmId:
        """A VM that runs."""
        vm_id = VmId.new()
        self.vms.add(str(vm_id))
        return vm_id

    def add_service(self) -> ServiceId:
        """A fresh service that the host has registered."""
        service_id = ServiceId.new()
        self.registered.add(str(service_id))
        return service_id

    def all(self) -> list[Endpoint]:
        """The sockets that there are now, or were."""
        return list(self.endpoints.values())

    def path(self) -> bytes:
        """A fresh abstract address."""
        return f"\0hvsock-fake-{os.getpid()}-{id(self)}-{next(self._numbers)}".encode()

    def target(self, source: str, address: Pair) -> tuple[str, str, str]:
        """Of a connect from partition `source` ("" is the host): (partition, who it is there, who it is here)."""
        vm_id = address.vm_id
        if vm_id == HV_GUID_LOOPBACK:
            return source, HV_GUID_LOOPBACK, HV_GUID_CHILDREN
        if vm_id == HV_GUID_PARENT and source:
            return "", source, HV_GUID_PARENT
        if vm_id in (HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_PARENT):
            raise winerror(WSAEADDRNOTAVAIL)
        if source or vm_id not in self.vms:
            raise winerror(WSAENETUNREACH)
        return vm_id, HV_GUID_PARENT, vm_id

    def listener(self, partition: str, seen: str, service_id: str) -> Endpoint | None:
        """Who listens in `partition` for connections from `seen`."""
        for one in self.all():
            if not one.listening or one.partition != partition or one.own is None:
                continue
            if one.own.service_id == service_id and one.own.vm_id in self.bindings(seen):
                return one
        return None

    def bindings(self, seen: str) -> tuple[str, ...]:
        """What a listener may be bound to, to take connections from `seen`."""
        wide = (HV_GUID_WILDCARD, HV_GUID_CHILDREN) if seen in self.vms else (HV_GUID_WILDCARD,)
        return (seen, *wide)


def c_socket(machine: Machine, partition: str) -> type[_socket.socket]:
    """`_socket.socket` for programs of `partition`."""

    class socket(_socket.socket):
        """What the C class is on Windows, for AF_HYPERV alone."""

        __slots__ = ("_proto",)

        def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            if fileno is None:
                assert family == AF_HYPERV, "the fake has no other family"
                if type != _stdlib.SOCK_STREAM:
                    raise winerror(WSAESOCKTNOSUPPORT)
                if proto != HV_PROTOCOL_RAW:
                    raise winerror(WSAEPROTOTYPE)
                super().__init__(_stdlib.AF_UNIX, _stdlib.SOCK_STREAM, 0)
                machine.endpoints[self._inode()] = Endpoint(partition=partition)
            else:
                super().__init__(-1, -1, -1, fileno)
                if family == -1 and self._endpoint().own is None:
                    super().detach()
                    raise winerror(WSAEINVAL)
            self._proto = 0 if proto == -1 else proto

        @property
        def family(self) -> int:
            return AF_HYPERV

        @property
        def proto(self) -> int:
            return self._proto

        def _inode(self) -> int:
            return os.fstat(super().fileno()).st_ino

        def _endpoint(self) -> Endpoint:
            if super().fileno() < 0:
                raise winerror(WSAENOTSOCK)
            return machine.endpoints[self._inode()]

        def _parse(self, address: Any, caller: str) -> Pair:
            """getsockaddrarg."""
            if self._proto != HV_PROTOCOL_RAW:
                raise OSError(f"{caller}(): unsupported AF_HYPERV protocol: {self._proto}")
            if not isinstance(address, tuple):
                raise TypeError(f"{caller}(): AF_HYPERV address must be tuple, not {type(address).__name__}")
            if len(address) != 2 or not all(isinstance(half, str) for half in address):
                raise TypeError("AF_HYPERV address must be a str tuple (vm_id, service_id)")
            for half, name in zip(address, ("vm_id", "service_id"), strict=True):
                if not _UUID.match(half):
                    raise ValueError(f"{caller}(): AF_HYPERV address {name} is not a valid UUID string")
            return Pair(*(half.lower() for half in address))

        def bind(self, address: Any, /) -> None:
            wanted = self._parse(address, "bind")
            endpoint = self._endpoint()
            if endpoint.bound or endpoint.peer is not None:
                raise winerror(WSAEINVAL)
            if wanted.vm_id == HV_GUID_PARENT and not partition:
                raise winerror(WSAEADDRNOTAVAIL)
            taken = [one for one in machine.all() if one.bound and one.partition == partition]
            if any(one.own == wanted for one in taken):
                raise winerror(WSAEADDRINUSE)
            loopback = wanted.vm_id == HV_GUID_LOOPBACK
            if not partition and not loopback and wanted.service_id not in machine.registered:
                raise winerror(WSAEACCES)
            endpoint.own, endpoint.bound, endpoint.path = wanted, True, machine.path()

        def listen(self, backlog: int = 128, /) -> None:
            endpoint = self._endpoint()
            if not endpoint.bound:
                raise winerror(WSAEINVAL)
            if not endpoint.listening:
                super().bind(endpoint.path)
            super().listen(backlog)
            endpoint.listening = True

        def _accept(self) -> tuple[int, tuple[str, str]]:
            endpoint = self._endpoint()
            if not endpoint.listening:
                raise winerror(WSAEINVAL)
            try:
                descriptor, path = super()._accept()  # type: ignore[misc]
            except BlockingIOError:
                raise winerror(WSAEWOULDBLOCK) from None
            except TimeoutError:
                raise
            except OSError as error:
                raise winerror(WSAEINTR if error.errno == errno.EINVAL else WSAENOTSOCK) from None
            connector = next(one for one in machine.all() if one.path == path)
            assert connector.own is not None
            seen = machine.target(connector.partition, _require(connector.peer))[1]
            assert endpoint.own is not None
            own_id = HV_GUID_CHILDREN if seen == HV_GUID_LOOPBACK else seen
            arbitrary = f"{ServiceId(connector.own.service_id).data1 + 1 & 0xFFFFFFFF:08x}"
            own = Pair(own_id, arbitrary + endpoint.own.service_id[8:])
            peer = Pair(seen, connector.own.service_id)
            inode = os.fstat(descriptor).st_ino
            machine.endpoints[inode] = Endpoint(own=own, peer=peer, partition=partition)
            return descriptor, peer

        def connect(self, address: Any, /) -> None:
            wanted = self._parse(address, "connect")
            endpoint = self._endpoint()
            if endpoint.peer is not None:
                raise winerror(WSAEISCONN)
            where, seen, here = machine.target(partition, wanted)
            found = machine.listener(where, seen, wanted.service_id)
            if found is None and where in machine.silent:
                raise self._unanswered(endpoint)
            if found is None:
                raise winerror(WSAECONNREFUSED)
            if not endpoint.path:
                endpoint.path = machine.path()
            with contextlib.suppress(OSError):  # bound by an earlier try
                super().bind(endpoint.path)
            service_id = str(ServiceId.new()) if endpoint.own is None else endpoint.own.service_id
            endpoint.own, endpoint.peer = Pair(here, service_id), wanted
            try:
                super().connect(found.path)
            except BlockingIOError:
                endpoint.peer = None
                raise winerror(WSAETIMEDOUT) from None

        def _unanswered(self, endpoint: Endpoint) -> OSError:
            timeout, limit = super().gettimeout(), endpoint.options.get(1, 2000) / 1000
            if timeout == 0:
                return winerror(WSAEWOULDBLOCK)
            if endpoint.closed.wait(limit if timeout is None else min(limit, timeout)):
                return winerror(WSAEINTR)
            return winerror(WSAETIMEDOUT) if timeout is None or limit < timeout else TimeoutError("timed out")

        def connect_ex(self, address: Any, /) -> int:
            try:
                self.connect(address)
            except OSError as error:
                return int(error.winerror)  # type: ignore[attr-defined]
            return 0

        def getsockname(self) -> Any:
            if super().fileno() >= 0 and self._inode() not in machine.endpoints:
                return super().getsockname()  # a handle of another family
            own = self._endpoint().own
            if own is None:
                raise winerror(WSAEINVAL)
            return tuple(own)

        def getpeername(self) -> Any:
            peer = self._endpoint().peer
            if peer is None:
                raise winerror(WSAENOTCONN)
            return tuple(peer)

        def shutdown(self, how: int, /) -> None:
            if self._endpoint().peer is None:
                raise winerror(WSAENOTCONN)
            super().shutdown(how)

        def setsockopt(self, level: int, optname: int, value: Any, *length: int) -> None:
            endpoint = self._endpoint()
            if level != HV_PROTOCOL_RAW:
                return super().setsockopt(_stdlib.SOL_SOCKET, _TO_LINUX[optname], value, *length)
            data = struct.pack("@i", value) if isinstance(value, int) else bytes(value)
            if optname not in (1, 2, 4, 8):
                raise winerror(WSAENOPROTOOPT)
            if len(data) != 4 or (optname == 1 and struct.unpack("<I", data)[0] > 300000):
                raise winerror(WSAEINVAL)
            endpoint.options[optname] = struct.unpack("<I", data)[0]
            return None

        def getsockopt(self, level: int, optname: int, *length: int) -> Any:
            self._endpoint()
            if level == HV_PROTOCOL_RAW:  # nobody says that it can be read
                raise winerror(WSAENOPROTOOPT)
            return super().getsockopt(_stdlib.SOL_SOCKET, _TO_LINUX[optname], *length)

        def close(self) -> None:
            """As the C class: the object has forgotten the handle before closesocket ends what waits for it."""
            if super().fileno() < 0:
                return
            endpoint = self._endpoint()
            listening, endpoint.listening, endpoint.bound = endpoint.listening, False, False
            with contextlib.closing(_socket.socket(fileno=super().detach())) as plain:
                if listening:
                    plain.shutdown(_stdlib.SHUT_RDWR)
            endpoint.closed.set()

    return socket


def _require(pair: Pair | None) -> Pair:
    assert pair is not None
    return pair


def socket_module(machine: Machine, partition: str) -> ModuleType:
    """Lib/socket.py of this Python over the fake `_socket`."""
    c_module = ModuleType("_socket")
    kept = {name: value for name, value in vars(_socket).items() if name not in ONLY_ON_LINUX}
    vars(c_module).update({**kept, **CONSTANTS, "socket": c_socket(machine, partition)})
    vars(c_module)["SocketType"] = vars(c_module)["socket"]
    made = ModuleType("socket")
    with _modules({"_socket": c_module, "socket": made}):
        assert _stdlib.__file__ is not None
        with open(_stdlib.__file__, encoding="utf-8") as file:
            exec(compile(file.read(), _stdlib.__file__, "exec"), vars(made))
    return made


@dataclass(frozen=True)
class Windows:
    """hvsock's modules of the transport as they are on Windows, for programs of one partition.

    Attributes:
        stdlib: the socket module.
        socket: the module of the class.
        helpers: that of create_connection and create_server.
        aio: that of asyncio.
    """

    stdlib: Any
    socket: Any
    helpers: Any
    aio: Any


PACKAGE: Final = "hvsock.sockets.hyperv"
MODULES: Final = ("socket", "helpers", "aio")


def windows(machine: Machine, partition: str = "") -> Windows:
    """The modules for programs of the host, or of the VM with that id."""
    stdlib = socket_module(machine, partition)
    before = dict(sys.modules)
    ours = [name for name in before if name.startswith(PACKAGE)]
    for name in ours:
        del sys.modules[name]
    try:
        with _modules({"socket": stdlib}):
            found = [importlib.import_module(f"{PACKAGE}.{name}") for name in MODULES]
    finally:
        new = set(sys.modules) - set(before)
        for name in {name for name in sys.modules if name.startswith(PACKAGE)} | new:
            del sys.modules[name]
        sys.modules.update({name: before[name] for name in ours})
    assert all(name.startswith(PACKAGE) for name in new), f"import it above, lest it has got the fake: {new}"
    return Windows(stdlib, *found)


@contextlib.contextmanager
def _modules(new: dict[str, ModuleType]) -> Iterator[None]:
    """Those in `sys.modules`, for a while."""
    before = {name: sys.modules[name] for name in new}
    sys.modules.update(new)
    try:
        yield
    finally:
        sys.modules.update(before)
