"""What the kernel's errors mean to a Hyper-V socket over AF_VSOCK, with texts that say what to do."""

from __future__ import annotations

import errno
import os
import sys

from hvsock.addresses import Address
from hvsock.constants import VSOCK_CID_HOST, VSOCK_CID_LOCAL
from hvsock.errors import HvsockError
from hvsock.fabric.vsocklink import NO_DEVICE
from hvsock.machines import known

if sys.platform != "linux":
    raise ImportError("AF_VSOCK is in Linux guests")

_NO_LOOPBACK = "this kernel has no AF_VSOCK loopback: load the module vsock_loopback"


def of_creation(error: OSError) -> OSError:
    """Why there is no socket."""
    if error.errno == errno.EAFNOSUPPORT:
        return OSError(errno.EAFNOSUPPORT, "this kernel has no AF_VSOCK: load the module vsock")
    return error


def of_connect(code: int, cid: int) -> OSError:
    """Why a connect to `cid` failed, of which the kernel says `code`.

    Linux gives the answer "nothing listens" as a reset.
    """
    if code in (errno.ECONNRESET, errno.ECONNREFUSED):
        return OSError(errno.ECONNREFUSED, "nothing listens there, or its host does not let this machine in")
    if code == errno.ENODEV and cid > VSOCK_CID_HOST and _on_a_host():
        text = f"no VM with the context id {cid} runs on this host, or its module vhost_vsock is not loaded"
        return OSError(errno.EHOSTUNREACH, text)
    if code == errno.ENODEV:
        return OSError(errno.ENETUNREACH, _NO_LOOPBACK if cid == VSOCK_CID_LOCAL else NO_DEVICE)
    if code == errno.ESOCKTNOSUPPORT:
        text = f"there is no SOCK_SEQPACKET on the way: {_NO_LOOPBACK if cid == VSOCK_CID_LOCAL else NO_DEVICE}"
        return OSError(code, f"{text}, or one without that feature")
    if code == errno.ETIMEDOUT:
        return OSError(code, "there was no answer within HVSOCKET_CONNECT_TIMEOUT")
    return OSError(code, os.strerror(code))


def of_bind(error: OSError, address: Address) -> OSError:
    """Why a bind failed; `address` is what it was for."""
    port = f"the AF_VSOCK port of {address.service_id}"
    if error.errno == errno.EADDRINUSE:
        return OSError(errno.EADDRINUSE, f"{port} is bound already, to whatever partitions and socket type")
    if error.errno == errno.EACCES:
        return OSError(errno.EACCES, f"{port} is below 1024, which takes root or CAP_NET_BIND_SERVICE")
    if error.errno == errno.EADDRNOTAVAIL:
        return OSError(errno.EADDRNOTAVAIL, _NO_LOOPBACK)
    return error


def _on_a_host() -> bool:
    try:
        return known.is_host()
    except HvsockError:  # it cannot be read, so it does not say so
        return False
