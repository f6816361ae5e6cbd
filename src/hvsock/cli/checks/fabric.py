"""Checks of the fabric: its folder, its broker, its registry."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import Final

from hvsock.fabric import paths
from hvsock.transport import Transport

from .check import Answer, Group, asks, no, usable, yes


@asks("Is this a system with a fabric?")
def _system() -> Answer:
    if sys.platform == "linux":
        return yes("yes: Linux")
    return no(f"no: {sys.platform}", "run the broker on Linux; the registry works here too")


@asks("Can descriptors be passed between processes?")
def _descriptor_passing() -> Answer:
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
        cure = "a security module or sandbox forbids it (SCM_RIGHTS); allow it for this user"
        return no("no: they are dropped on the way", cure)
    return yes("yes: over AF_UNIX")


@asks("Does a folder with a path of any length work?")
def _long_paths() -> Answer:
    path = f"{paths.partition_folder()}/{paths.SEQPACKET_SOCKET}"
    length = len(os.fsencode(path))
    if length <= paths.MAX_SUN_PATH_BYTES:
        return yes(f"yes: {length} bytes, and a socket's path holds {paths.MAX_SUN_PATH_BYTES}")
    if os.path.isdir("/proc/self/fd"):
        return yes(f"yes: {length} bytes, reached through /proc/self/fd")
    return no(f"no: {length} bytes, and /proc is not there", "mount /proc")


@asks("Is there a fabric?")
def _folder() -> Answer:
    folder = paths.fabric_folder()
    how = paths.FOLDER_VARIABLE if os.environ.get(paths.FOLDER_VARIABLE) else "the default"
    if os.path.isdir(folder):
        return yes(f"yes: {folder} ({how})")
    if os.path.lexists(folder):
        return no(f"no: {folder} is no folder ({how})", f"move it away, or set {paths.FOLDER_VARIABLE}")
    return no(
        f"no: there is no folder {folder} ({how})", f"start it with: hvsock up; or set {paths.FOLDER_VARIABLE}"
    )


@asks("Are its folders closed to others?")
def _modes() -> Answer:
    folder = paths.fabric_folder()
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
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            mode = stat.S_IMODE(os.stat(path).st_mode)
            seen += 1
            if mode & forbidden:
                cure = f"chmod {mode & ~forbidden:o} {path}, and see who put what there"
                return no(f"no: {path} has mode {mode:o}", cure)
    if not seen:
        return yes("there is none that this process may look at")
    return yes(f"yes: {seen} looked at")


def _closed(folder: str) -> Answer:
    return no(f"no: this user may not enter {folder}", paths.LET_IN)


@asks("Does a broker answer?", cure="start one with: hvsock up")
def _broker() -> Answer:
    from hvsock.fabric import client

    folder = paths.partition_folder()
    if not paths.may_enter(folder):
        return _closed(folder)
    found = client.call(folder, "ping")
    return yes(f"yes: process {found['pid']}")


@asks("Which partition does this process speak for?")
def _partition() -> Answer:
    folder = paths.partition_folder()
    if not paths.may_enter(folder):
        return _closed(folder)
    how = paths.PARTITION_VARIABLE if os.environ.get(paths.PARTITION_VARIABLE) else "the default"
    if not os.path.isdir(folder):
        cure = f"unset {paths.PARTITION_VARIABLE}, or see: hvsock partition list"
        return no(f"none: there is no folder {folder} ({how})", cure)
    if paths.speaks_for_host(paths.fabric_folder()):
        return yes(f"the host ({how})")
    return yes(f"another than the host: {folder} ({how})")


@asks("Can the registry be read?", cure="start the fabric with: hvsock up; or register a first service")
def _registry() -> Answer:
    if sys.platform == "win32":
        raise AssertionError("the fabric needs Linux")
    from hvsock.cli.names import open_registry

    if not paths.may_enter(folder := paths.fabric_folder()):
        return _closed(folder)
    with open_registry() as registry:
        number = len(registry.entries())
        refusal = registry.read_only_because
    may = "and changed" if refusal is None else f"but not changed: {refusal}"
    return yes(f"yes, {may}; {number} services")


GROUP: Final = Group(
    Transport.FABRIC,
    (_system, usable(Transport.FABRIC), _descriptor_passing, _long_paths, _folder, _modes),
    when_chosen=(_broker, _partition, _registry),
)
