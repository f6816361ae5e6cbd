"""What `hvsock doctor` looks at on the machine; every check runs, whatever the one before found."""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import sys
from collections.abc import Callable
from typing import Final, NamedTuple

from hvsock import transport
from hvsock.errors import HvsockError
from hvsock.fabric import paths
from hvsock.transport import Transport

MIN_DESCRIPTORS: Final = 1024
"""Fewest descriptors that a process should be allowed: one for each of its connections."""
MIN_QUEUE: Final = 128
"""Shortest queue of new connections that a listener should be allowed, which is its default."""


class Check(NamedTuple):
    """One check.

    Attributes:
        question: what was asked.
        found: the answer.
        ok: whether that is as it should be.
        cure: what to do about it; None where nothing is to be done.
    """

    question: str
    found: str
    ok: bool = True
    cure: str | None = None


def examine() -> list[Check]:
    """All checks of the environment, in the order in which one builds on the other."""
    checks: list[Callable[[], Check]] = [
        _system,
        _descriptor_passing,
        _long_paths,
        _descriptor_limit,
        _queue_limit,
        _folder,
        _modes,
        _broker,
        _partition,
        _registry,
    ]
    if transport.chosen() is Transport.VSOCK:
        checks = [_system, _vsock, _descriptor_limit, _queue_limit, _host]
    found = []
    for check in checks:
        try:
            found.append(check())
        except (HvsockError, OSError, ImportError) as error:
            question = (check.__doc__ or check.__name__).splitlines()[0]
            found.append(Check(question, f"no: {error}", ok=False, cure=_CURES.get(check.__name__)))
    return found


def _system() -> Check:
    """Is this a system with a fabric?"""
    question, found = "Is this a system with a fabric?", f"{platform.system()} {platform.release()}"
    if sys.platform == "linux":
        return Check(question, f"yes: {found}")
    return Check(question, f"no: {found}", ok=False, cure="run the broker on Linux; the registry works here too")


def _vsock() -> Check:
    """Does the kernel speak AF_VSOCK?"""
    from hvsock.sockets.chosen import socket

    socket().close()
    return Check("Does the kernel speak AF_VSOCK?", f"yes, and {transport.TRANSPORT_VARIABLE} chooses it")


def _host() -> Check:
    """Does the host's broker answer?"""
    from hvsock.fabric import client

    client.call(paths.partition_folder(), "ping")
    return Check("Does the host's broker answer?", "yes")


def _descriptor_passing() -> Check:
    """Can descriptors be passed between processes?"""
    import socket

    if sys.platform == "win32":
        raise ImportError("AF_UNIX sockets pass none here")
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with left, right:
        socket.send_fds(left, [b"."], [left.fileno()])
        _, descriptors, _, _ = socket.recv_fds(right, 1, 1)
    for descriptor in descriptors:
        os.close(descriptor)
    if not descriptors:
        return Check(
            "Can descriptors be passed between processes?",
            "no: they are dropped on the way",
            ok=False,
            cure="a security module or sandbox forbids it (SCM_RIGHTS); allow it for this user",
        )
    return Check("Can descriptors be passed between processes?", "yes: over AF_UNIX")


def _long_paths() -> Check:
    """Does a folder with a path of any length work?"""
    path = f"{paths.partition_folder()}/{paths.SEQPACKET_SOCKET}"
    length = len(os.fsencode(path))
    question = "Does a folder with a path of any length work?"
    if length <= paths.MAX_SUN_PATH_BYTES:
        return Check(question, f"yes: {length} bytes, and a socket's path holds {paths.MAX_SUN_PATH_BYTES}")
    if os.path.isdir("/proc/self/fd"):
        return Check(question, f"yes: {length} bytes, reached through /proc/self/fd")
    return Check(question, f"no: {length} bytes, and /proc is not there", ok=False, cure="mount /proc")


def _descriptor_limit() -> Check:
    """May this process have enough descriptors?"""
    import resource

    if sys.platform == "win32":
        raise ImportError("there is no such limit here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    shown = ", at most ".join("unlimited" if value == endless else str(value) for value in (soft, hard))
    if soft != endless and soft < MIN_DESCRIPTORS:
        cure = f"ulimit -n {MIN_DESCRIPTORS}, or LimitNOFILE= of the service"
        return Check("May this process have enough descriptors?", f"no: {shown}", ok=False, cure=cure)
    return Check("May this process have enough descriptors?", f"yes: {shown}")


def _queue_limit() -> Check:
    """May enough connections queue at a listener?"""
    with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
        length = int(file.read())
    if length < MIN_QUEUE:
        cure = f"sysctl net.core.somaxconn={MIN_QUEUE}"
        return Check("May enough connections queue at a listener?", f"no: {length}", ok=False, cure=cure)
    return Check("May enough connections queue at a listener?", f"yes: {length}")


def _folder() -> Check:
    """Is there a fabric?"""
    folder = paths.fabric_folder()
    how = paths.FOLDER_VARIABLE if os.environ.get(paths.FOLDER_VARIABLE) else "the default"
    if os.path.isdir(folder):
        return Check("Is there a fabric?", f"yes: {folder} ({how})")
    cure = f"start it with: hvsock up; or set {paths.FOLDER_VARIABLE}"
    return Check("Is there a fabric?", f"no: there is no folder {folder} ({how})", ok=False, cure=cure)


def _modes() -> Check:
    """Are its folders closed to others?"""
    folder = paths.fabric_folder()
    question = "Are its folders closed to others?"
    writable = stat.S_IWOTH
    wanted = {
        ".": writable | stat.S_IWGRP,
        "registry": writable,
        "partitions": writable | stat.S_IWGRP,
        "partitions/host": writable | stat.S_IWGRP,
        "listeners": 0o077,
        "state": 0o077,
    }
    seen = 0
    for name, forbidden in wanted.items():
        path = os.path.normpath(os.path.join(folder, name))
        with contextlib.suppress(FileNotFoundError, PermissionError):
            mode = stat.S_IMODE(os.stat(path).st_mode)
            seen += 1
            if mode & forbidden:
                cure = f"chmod {mode & ~forbidden:o} {path}, and see who put what there"
                return Check(question, f"no: {path} has mode {mode:o}", ok=False, cure=cure)
    if not seen:
        return Check(question, "there is none that this process may look at")
    return Check(question, f"yes: {seen} looked at")


def _broker() -> Check:
    """Does a broker answer?"""
    from hvsock.fabric import client

    found = client.call(paths.partition_folder(), "ping")
    return Check("Does a broker answer?", f"yes: process {found['pid']}")


def _partition() -> Check:
    """Which partition does this process speak for?"""
    folder = paths.partition_folder()
    question = "Which partition does this process speak for?"
    how = paths.PARTITION_VARIABLE if os.environ.get(paths.PARTITION_VARIABLE) else "the default"
    if not os.path.isdir(folder):
        cure = f"unset {paths.PARTITION_VARIABLE}, or see: hvsock partition list"
        return Check(question, f"none: there is no folder {folder} ({how})", ok=False, cure=cure)
    if not os.access(folder, os.X_OK):
        cure = "its owner lets others in with: hvsock up --shared, or --admin-group"
        return Check(question, f"none: this user may not enter {folder} ({how})", ok=False, cure=cure)
    if paths.speaks_for_host(paths.fabric_folder()):
        return Check(question, f"the host ({how})")
    return Check(question, f"another than the host: {folder} ({how})")


def _registry() -> Check:
    """Can the registry be read?"""
    from hvsock.cli.names import open_registry

    with open_registry() as registry:
        number = len(registry.entries())
        refusal = registry.read_only_because
    may = "and changed" if refusal is None else f"but not changed: {refusal}"
    return Check("Can the registry be read?", f"yes, {may}; {number} services")


_CURES: Final = {
    "_broker": "start one with: hvsock up",
    "_host": "on the host, give this guest a device of hvsock's: hvsock vm start, or hvsock device",
    "_vsock": "load the module vsock and the one of this guest's device",
    "_registry": "start the fabric with: hvsock up; or register a first service",
}
