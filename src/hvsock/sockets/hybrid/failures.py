"""What the errors of paths and handshakes mean to a Hyper-V socket."""

from __future__ import annotations

import errno

from hvsock.addresses import VmId, describe_vm_id
from hvsock.config.settings import Vm
from hvsock.errors import BusyError, HvsockError, ProtocolError, StateError, UsageError


def of_connect(error: BaseException) -> OSError:
    """`error` of a handshake, or of what comes before it, as an error of a connect."""
    if isinstance(error, FileNotFoundError):  # a VMM makes its path when it starts
        return OSError(errno.EHOSTUNREACH, error.strerror)
    if isinstance(error, OSError):
        return error
    if isinstance(error, ProtocolError):
        return OSError(errno.EPROTO, str(error))
    if isinstance(error, UsageError):
        return OSError(errno.EADDRNOTAVAIL, str(error))
    return OSError(errno.EHOSTUNREACH, str(error))


def of_bind(error: BaseException) -> OSError:
    """`error` of making a listener, as an error of a bind."""
    if isinstance(error, OSError):
        where = "" if error.filename is None else f": {error.filename}"
        return OSError(error.errno or errno.EIO, f"{error.strerror}{where}")
    if isinstance(error, (BusyError, StateError)):
        return OSError(errno.EADDRINUSE, str(error))
    return OSError(errno.EADDRNOTAVAIL, str(error))


def no_destination(vm_id: VmId) -> OSError:
    """A word that stands for no VM was to be connected to."""
    text = f"{describe_vm_id(vm_id)} is no VM with a hybrid socket; connect to one by its name or VmId"
    return OSError(errno.EADDRNOTAVAIL, text)


def unknown(vm_id: VmId, hint: str) -> OSError:
    """No VM has that id."""
    return OSError(errno.EHOSTUNREACH, f"no VM has the id {vm_id}; {hint}")


def no_path(vm: Vm, hint: str) -> OSError:
    """That VM is known, and where its VMM's socket is, is not."""
    return OSError(errno.EHOSTUNREACH, f"the VM {vm.name!r} has no path, which hybrid sockets need; {hint}")


def no_binding(vm_id: VmId) -> OSError:
    """A word from which nothing connects to a hybrid socket was to be bound to."""
    text = f"nothing connects from {describe_vm_id(vm_id)} to a hybrid socket; bind to children, any or one VM"
    return OSError(errno.EADDRNOTAVAIL, text)


def no_vms(hint: str) -> OSError:
    """There is no VM that could connect."""
    return OSError(errno.EADDRNOTAVAIL, f"no VM with a path is known that could connect; {hint}")


def is_own(error: BaseException) -> bool:
    """Whether an error is one that these functions take."""
    return isinstance(error, (OSError, HvsockError))
