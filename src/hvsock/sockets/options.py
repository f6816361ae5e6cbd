"""What AF_HYPERV sockets can be asked for: family, type and protocol, and the options of both levels.

On Linux ``SOL_SOCKET`` and HV_PROTOCOL_RAW are the same number, and so are ``SO_ERROR`` and
HVSOCKET_CONNECTED_SUSPEND: options are told apart by their type.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as _stdlib
import struct
import sys
from collections.abc import Mapping
from typing import Final

from hvsock.config import files
from hvsock.constants import (
    AF_HYPERV,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_DEFAULT,
    HVSOCKET_CONNECT_TIMEOUT_MAX,
    HvsocketOption,
    ProtocolLevel,
)
from hvsock.errors import HvsockError
from hvsock.fabric.messages import Flag

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

TYPES: Final = (int(_stdlib.SOCK_STREAM), int(_stdlib.SOCK_SEQPACKET))
TYPE_FLAGS: Final = int(_stdlib.SOCK_NONBLOCK | _stdlib.SOCK_CLOEXEC)
FLAGS: Final = {
    HvsocketOption.HVSOCKET_CONTAINER_PASSTHRU: Flag.PASSTHRU,
    HvsocketOption.HVSOCKET_CONNECTED_SUSPEND: Flag.CONNECTED_SUSPEND,
    HvsocketOption.HVSOCKET_HIGH_VTL: Flag.HIGH_VTL,
}
"""The options that travel with a connect or a bind."""

_ULONG = struct.Struct("<I")
_INT = struct.Struct("i")
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
_SO_RCVBUFFORCE = 33
FORCED: Final = {_stdlib.SO_SNDBUF: _SO_SNDBUFFORCE, _stdlib.SO_RCVBUF: _SO_RCVBUFFORCE}
_KEPT = (
    _stdlib.SO_REUSEADDR,
    _stdlib.SO_KEEPALIVE,
    _stdlib.SO_LINGER,
    _stdlib.SO_RCVLOWAT,
    _stdlib.SO_RCVTIMEO,
    _stdlib.SO_SNDTIMEO,
    _stdlib.SO_PASSCRED,
    _stdlib.SO_PRIORITY,
)
_LONGEST_OPTION_BYTES = 16  # struct timeval


def checked_type(family: int, type_: int, proto: int) -> int:
    """The type for a new socket, with SOCK_NONBLOCK and SOCK_CLOEXEC where asked for; -1 is the default of each.

    Raises:
        OSError: EAFNOSUPPORT, EPROTOTYPE (as WSAEPROTOTYPE), ESOCKTNOSUPPORT.
    """
    if family not in (AF_HYPERV, -1):
        raise OSError(errno.EAFNOSUPPORT, "hvsock makes AF_HYPERV sockets; others are in the socket module")
    if proto not in (HV_PROTOCOL_RAW, -1):
        raise OSError(errno.EPROTOTYPE, f"unsupported AF_HYPERV protocol: {proto}")
    type_ = _stdlib.SOCK_STREAM if type_ == -1 else type_
    if type_ & ~TYPE_FLAGS not in TYPES:
        raise OSError(errno.ESOCKTNOSUPPORT, "AF_HYPERV has SOCK_STREAM, and here SOCK_SEQPACKET too")
    return type_


def is_hyperv(level: object, optname: object) -> bool:
    """Whether an option is meant for level HV_PROTOCOL_RAW."""
    return isinstance(level, ProtocolLevel) or isinstance(optname, HvsocketOption)


def flags_of(options: Mapping[HvsocketOption, int]) -> Flag:
    """The flags that stand for the options that are set."""
    flags = Flag.NONE
    for option, flag in FLAGS.items():
        if options.get(option):
            flags |= flag
    return flags


def connect_timeout(options: Mapping[HvsocketOption, int], default: int = HVSOCKET_CONNECT_TIMEOUT_DEFAULT) -> int:
    """Milliseconds that a connect may take: as was set, else as the configuration says, else the default.

    Raises:
        OSError: EINVAL: the configuration cannot be used.
    """
    own = options.get(HvsocketOption.HVSOCKET_CONNECT_TIMEOUT)
    if own:
        return own
    try:
        return files.settings().connect_timeout or default
    except HvsockError as error:
        raise OSError(errno.EINVAL, str(error)) from None


def get(options: Mapping[HvsocketOption, int], optname: int, buflen: int | None) -> int | bytes:
    """getsockopt at level HV_PROTOCOL_RAW.

    Raises:
        OSError: ENOPROTOOPT; EINVAL: the configuration cannot be used, which has the default.
    """
    option = _option(optname)
    value = options.get(option)
    if value is None:
        value = connect_timeout({}) if option == HVSOCKET_CONNECT_TIMEOUT else 0
    return value if buflen is None else _ULONG.pack(value)[:buflen]


def checked(optname: int, value: object) -> tuple[HvsocketOption, int]:
    """The option and the value of a setsockopt at level HV_PROTOCOL_RAW.

    Raises:
        TypeError: `value` is neither an integer nor bytes.
        OSError: ENOPROTOOPT, EINVAL.
    """
    option = _option(optname)
    if isinstance(value, int):
        number = value
    elif isinstance(value, (bytes, bytearray, memoryview)):
        number = _ULONG.unpack(value)[0] if len(value) == _ULONG.size else -1
    else:
        raise TypeError(f"options of HV_PROTOCOL_RAW are integers or bytes, not {type(value).__name__}")
    if not 0 <= number < 1 << 32:
        raise OSError(errno.EINVAL, "options of HV_PROTOCOL_RAW are ULONG: an integer from 0, or its 4 bytes")
    if option == HVSOCKET_CONNECT_TIMEOUT and number > HVSOCKET_CONNECT_TIMEOUT_MAX:
        raise OSError(errno.EINVAL, f"HVSOCKET_CONNECT_TIMEOUT is at most {HVSOCKET_CONNECT_TIMEOUT_MAX} ms")
    return option, number


def _option(optname: int) -> HvsocketOption:
    try:
        return HvsocketOption(optname)
    except ValueError:
        raise OSError(errno.ENOPROTOOPT, f"HV_PROTOCOL_RAW has no option {optname}") from None


def as_asked(value: int, buflen: int | None) -> int | bytes:
    """An int option in the form that getsockopt was asked for."""
    return value if buflen is None else _INT.pack(value)[:buflen]


# -- options of the kernel's socket


def set_buffer(sock: _stdlib.socket, option: int, size: int) -> None:
    """Give SO_SNDBUF or SO_RCVBUF of `sock` the size that getsockopt showed before."""
    set_option = _stdlib.socket.setsockopt
    set_option(sock, _stdlib.SOL_SOCKET, option, size // 2)  # the kernel doubles what it is given
    if _stdlib.socket.getsockopt(sock, _stdlib.SOL_SOCKET, option) != size:
        with contextlib.suppress(PermissionError):  # beyond the limit for users; who got there may again
            set_option(sock, _stdlib.SOL_SOCKET, FORCED[option], size // 2)


def would_be(option: int, value: int) -> int:
    """What getsockopt shows after SO_SNDBUF or SO_SNDBUFFORCE is set to `value`."""
    with _stdlib.socket(_stdlib.AF_UNIX, _stdlib.SOCK_STREAM) as trial:
        trial.setsockopt(_stdlib.SOL_SOCKET, option, value)
        return trial.getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF)


def copy_settings(old: _stdlib.socket, new: _stdlib.socket) -> None:
    """Give `new` the settings of `old` that a program may have made: options and O_NONBLOCK."""
    get_option = _stdlib.socket.getsockopt
    for option in FORCED:
        size = get_option(old, _stdlib.SOL_SOCKET, option)
        if get_option(new, _stdlib.SOL_SOCKET, option) != size:
            set_buffer(new, option, size)
    for option in _KEPT:
        value = get_option(old, _stdlib.SOL_SOCKET, option, _LONGEST_OPTION_BYTES)
        if get_option(new, _stdlib.SOL_SOCKET, option, _LONGEST_OPTION_BYTES) != value:
            _stdlib.socket.setsockopt(new, _stdlib.SOL_SOCKET, option, value)
    os.set_blocking(new.fileno(), os.get_blocking(old.fileno()))
