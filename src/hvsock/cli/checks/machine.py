"""Checks of what every transport needs of the machine."""

from __future__ import annotations

import os
import platform
import sys
from typing import Final

from hvsock import transport
from hvsock.config import files

from .check import Answer, Group, asks, no, yes

MIN_DESCRIPTORS: Final = 1024
"""Fewest descriptors that a process should be allowed: one for each of its connections."""
MIN_QUEUE: Final = 128
"""Shortest queue of new connections that a listener should be allowed, which is its default."""


@asks("Which system and Python is this?")
def _system() -> Answer:
    found = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    if sys.platform in ("linux", "win32"):
        return yes(found)
    return no(found, "hvsock needs Linux or Windows; the registry works here too")


@asks("May this process have enough descriptors?")
def _descriptor_limit() -> Answer:
    if sys.platform == "win32":
        return yes("yes: Windows has no such limit")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    shown = ", at most ".join("unlimited" if value == endless else str(value) for value in (soft, hard))
    if soft != endless and soft < MIN_DESCRIPTORS:
        return no(f"no: {shown}", f"ulimit -n {MIN_DESCRIPTORS}, or LimitNOFILE= of the service")
    return yes(f"yes: {shown}")


@asks("May enough connections queue at a listener?")
def _queue_limit() -> Answer:
    if sys.platform == "win32":
        return yes("yes: Windows has no such limit")
    with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
        length = int(file.read())
    if length < MIN_QUEUE:
        return no(f"no: {length}", f"sysctl net.core.somaxconn={MIN_QUEUE}")
    return yes(f"yes: {length}")


@asks(
    "Can the configuration be used?", cure=f"correct it; or go without, with {files.CONFIG_VARIABLE}={os.devnull}"
)
def _configuration() -> Answer:
    where = files.settings().where
    return yes(f"yes: {where}" if where else "yes: there is none, and none is needed")


@asks("Is a transport chosen?", cure=f"correct it, or set {transport.TRANSPORT_VARIABLE}")
def _transport() -> Answer:
    return yes(f"yes: {transport.chosen()}")


GROUP: Final = Group(
    "this machine",
    (_system, _descriptor_limit, _queue_limit, _configuration, _transport),
    always_needed=True,
)
