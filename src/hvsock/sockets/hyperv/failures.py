"""What the errors of Winsock mean to a Hyper-V socket: errno names, and texts that say what to do.

CPython on Windows gives most numbers of Winsock as errno too, where `errno` has the same names for them; what
Win32 says in other numbers comes as EINVAL. So errors go by the number that Windows gave (winerror).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from hvsock.addresses import Address, describe_vm_id

WINSOCK: Final[dict[int, str]] = {
    10004: "EINTR",
    10009: "EBADF",
    10013: "EACCES",
    10014: "EFAULT",
    10022: "EINVAL",
    10024: "EMFILE",
    10035: "EWOULDBLOCK",
    10036: "EINPROGRESS",
    10037: "EALREADY",
    10038: "ENOTSOCK",
    10039: "EDESTADDRREQ",
    10040: "EMSGSIZE",
    10041: "EPROTOTYPE",
    10042: "ENOPROTOOPT",
    10043: "EPROTONOSUPPORT",
    10044: "ESOCKTNOSUPPORT",
    10045: "EOPNOTSUPP",
    10046: "EPFNOSUPPORT",
    10047: "EAFNOSUPPORT",
    10048: "EADDRINUSE",
    10049: "EADDRNOTAVAIL",
    10050: "ENETDOWN",
    10051: "ENETUNREACH",
    10052: "ENETRESET",
    10053: "ECONNABORTED",
    10054: "ECONNRESET",
    10055: "ENOBUFS",
    10056: "EISCONN",
    10057: "ENOTCONN",
    10058: "ESHUTDOWN",
    10060: "ETIMEDOUT",
    10061: "ECONNREFUSED",
    10064: "EHOSTDOWN",
    10065: "EHOSTUNREACH",
}
"""Numbers of Winsock and their errno names (winsock2.h: the name there is the same with WSA before it)."""
WIN32: Final[dict[int, str]] = {
    64: "ECONNRESET",  # ERROR_NETNAME_DELETED
    121: "ETIMEDOUT",  # ERROR_SEM_TIMEOUT
    995: "ECONNABORTED",  # ERROR_OPERATION_ABORTED
    1201: "ENETUNREACH",  # ERROR_CONNECTION_UNAVAIL
    1225: "ECONNREFUSED",  # ERROR_CONNECTION_REFUSED
    1231: "ENETUNREACH",  # ERROR_NETWORK_UNREACHABLE
    1232: "EHOSTUNREACH",  # ERROR_HOST_UNREACHABLE
    1236: "ECONNABORTED",  # ERROR_CONNECTION_ABORTED
    1460: "ETIMEDOUT",  # ERROR_TIMEOUT
}
"""Numbers of Win32 that sockets fail with too, in overlapped calls above all (winerror.h)."""
_NUMBERS: Final = {name: number for number, name in WINSOCK.items()}

_DENIED: Final = (
    "the service is not registered on this host, or its security descriptor does not let this user; "
    "register it as administrator with: hvsock service register NAME --id {service}"
)
_TEXTS: Final = {
    ("socket", "EAFNOSUPPORT"): "this Windows has no AF_HYPERV; it needs Windows 10 1607 or Server 2016, or newer",
    ("bind", "EACCES"): _DENIED,
    ("bind", "EADDRINUSE"): "{service} is bound already",
    ("bind", "EADDRNOTAVAIL"): "{vm} is no address for a listener here; the host has no parent",
    ("bind", "EINVAL"): "the socket is bound or connected already",
    ("listen", "EINVAL"): "bind the socket before it listens; or the service is disabled for that VM",
    ("connect", "EACCES"): _DENIED,
    ("connect", "EADDRNOTAVAIL"): "{vm} is no destination here",
    ("connect", "ECONNREFUSED"): "nothing listens there on {service}",
    ("connect", "EINVAL"): "Windows takes no such connect; the service may be disabled for that VM",
    ("connect", "ENETDOWN"): "the VM is being started or stopped",
    ("connect", "ENETUNREACH"): "there is no VM {vm}, or it does not run",
    ("connect", "ETIMEDOUT"): (
        "there was no answer within HVSOCKET_CONNECT_TIMEOUT; a Linux guest that has no listener does not answer"
    ),
}


def name_of(error: OSError) -> str | None:
    """The errno name of `error`, by the number that Windows gave; None for one without any, as of a time-out."""
    number = getattr(error, "winerror", None) or error.errno or 0
    return WINSOCK.get(number) or WIN32.get(number) or errno.errorcode.get(error.errno or 0)


def of(error: OSError, step: str, address: Address | None = None) -> OSError:
    """`error` as the other transports have it.

    Args:
        error: what CPython raised.
        step: the method that failed; "socket" where there is none yet.
        address: what it was for.

    Returns:
        An error with the errno of that name, the number of Winsock on Windows, and a text that says what to do;
        `error` itself where it has no number.
    """
    name = name_of(error)
    if name is None or (code := getattr(errno, name, None)) is None:
        return error
    if (step, name) == ("connect", "EWOULDBLOCK"):
        name, code = "EINPROGRESS", errno.EINPROGRESS
    text = _TEXTS.get((step, name)) or error.strerror or os.strerror(code)
    if address is not None:
        text = text.format(vm=describe_vm_id(address.vm_id), service=address.service_id)
    return made(code, name, text)


def made(code: int, name: str, text: str) -> OSError:
    """An error with that errno, its name, and the number of Winsock, which is for Windows alone."""
    return OSError(code, text, None, _NUMBERS.get(name))
