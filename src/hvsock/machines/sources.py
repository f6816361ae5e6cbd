"""Who is asked which VM has which context id, on a host of kernel vsock."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from hvsock.config.settings import Guests, Settings, Vm
from hvsock.errors import NotReadyError, ProtocolError, UsageError

from . import libvirt, qemu

if sys.platform != "linux":
    raise ImportError("hosts of kernel vsock run Linux")

VIRSH: Final = "virsh"
VIRSH_SECONDS: Final = 10.0
"""How long one call of virsh may take; it takes some 20 ms."""
LIBVIRT_SECONDS: Final = 30.0
"""How long all calls of virsh together may take: whoever asks waits for them, and a thousand domains take 20 s."""
PROCESSES: Final = "/proc"


def guests(settings: Settings) -> tuple[Vm, ...]:
    """The VMs that run, as :attr:`Settings.guests` says, without those that two say they are.

    Raises:
        NotReadyError: they cannot be asked for.
        ProtocolError: the answer is none.
        UsageError: a user of the configuration is none.
    """
    if settings.guests is Guests.LIBVIRT:
        return unambiguous(of_libvirt(settings.libvirt))
    if settings.guests is Guests.QEMU:
        return unambiguous(of_processes(_owners(settings)))
    return ()


def unambiguous(vms: Iterable[Vm]) -> tuple[Vm, ...]:
    """Those of which no other has the VmId or the context id: where two claim one, neither is believed."""
    found = tuple(vms)
    ids, cids = Counter(vm.id for vm in found), Counter(vm.cid for vm in found)
    return tuple(vm for vm in found if ids[vm.id] == 1 and cids[vm.cid] == 1)


def of_libvirt(uri: str) -> Iterator[Vm]:
    """The domains that run and have a vsock device, by virsh, which has to be able to read them.

    Raises:
        NotReadyError: virsh is not there, fails, or takes too long.
        ProtocolError: what it prints is no answer.
    """
    deadline = time.monotonic() + LIBVIRT_SECONDS
    for uuid in libvirt.parse_list(_virsh(uri, deadline, "list", "--uuid")):
        try:
            text = _virsh(uri, deadline, "dumpxml", uuid)
        except _VirshError:  # it ended meanwhile
            continue
        vm = libvirt.parse_domain(text)
        if vm is not None:
            yield vm


class _VirshError(NotReadyError):
    """It ended, and with an error."""


def _virsh(uri: str, deadline: float, *arguments: str) -> str:
    command = [VIRSH, "--readonly", "--quiet", "--connect", uri, *arguments]
    left = deadline - time.monotonic()
    if left <= 0:
        raise NotReadyError(f"virsh did not tell of all VMs of {uri} within {LIBVIRT_SECONDS:g} s")
    seconds = min(VIRSH_SECONDS, left)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError:
        raise NotReadyError(
            "libvirt's VMs are asked for by virsh, which is not installed: apt-get install libvirt-clients"
        ) from None
    except OSError as error:
        raise NotReadyError(
            f"libvirt's VMs are asked for by virsh, which cannot be run: {error.strerror}"
        ) from None
    except subprocess.TimeoutExpired:
        raise NotReadyError(f"virsh {arguments[0]} did not end within {seconds:.3g} s") from None
    if done.returncode:
        why = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it says nothing"]
        raise _VirshError(f"virsh {arguments[0]} failed at {uri}: {why[0].removeprefix('error: ')}")
    try:
        return done.stdout.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(f"virsh {arguments[0]} printed what is not UTF-8") from None


def of_processes(owners: frozenset[int], folder: str = PROCESSES) -> Iterator[Vm]:
    """The QEMUs that run and have a vhost-vsock device, of these users: anybody may call a program so.

    Each of a process's user ids has to be theirs. Its folder's owner is the effective one alone, which is root
    for a set-user-ID program, and who starts that chooses its command line.

    Args:
        owners: the users' ids.
        folder: where the kernel shows its processes.

    Raises:
        NotReadyError: it cannot be read.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        text = f"QEMUs are looked for in {folder}, which cannot be read: {error.strerror}"
        raise NotReadyError(text) from None
    for name in names:
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            path = os.path.join(folder, name)
            with open(os.path.join(path, "status"), "rb") as file:
                uids = qemu.parse_uids(file.read(qemu.MAX_STATUS_BYTES))
            if not uids or not uids <= owners:
                continue
            with open(os.path.join(path, "cmdline"), "rb") as file:
                vm = qemu.parse_command_line(file.read(qemu.MAX_COMMAND_LINE_BYTES + 1))
            if vm is not None:
                yield vm


def _owners(settings: Settings) -> frozenset[int]:
    import pwd

    found = {0, os.geteuid()}
    for user in settings.qemu_users:
        try:
            found.add(int(user) if user.isascii() and user.isdecimal() else pwd.getpwnam(user).pw_uid)
        except KeyError:
            raise UsageError(f"{settings.where}.qemu_users: there is no user {user!r} on this machine") from None
    return frozenset(found)
