"""How programs in a guest tell their state: a file for each, in the agent's state folder.

A file counts for as long as its program lives, or as its lease lasts. A program holds a lock on its file, which
ends with the program however that ends; who cannot stay takes a lease instead, which ends by itself and with the
guest's boot. The worst state of all is the guest's, as with IVmApplicationHealthMonitor of the original.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import time
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from hvsock.errors import BusyError, UsageError

if sys.platform == "win32":
    raise ImportError("programs tell their state in guests with flock")

import fcntl

FOLDER: Final = "applications"
"""The folder of the files, in the agent's state folder."""
MAX_PROGRAMS: Final = 256
"""Most programs that tell a state at once; each is a file that is read with every beat."""
MAX_LEASE_SECONDS: Final = 7 * 86_400.0
"""Longest lease: a state that nobody renewed for a week says nothing."""
_MAX_FILE_BYTES: Final = 128
"""What is read of a file; there is one line of some 60 bytes."""
_LOCK_TRIES: Final = 25
_LOCK_PAUSE_SECONDS: Final = 0.02
"""A reader holds a lock for microseconds; whoever has one for half a second is another program."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_LINE: Final = re.compile(rb"([0-3]) ([0-9]{1,18}) ([0-9a-f-]{1,40})\n")


class ApplicationState(IntEnum):
    """The state of a guest's programs, with the numbers of the original."""

    UNKNOWN = 0
    """No program told any."""
    HEALTHY = 1
    """All that told are well."""
    CRITICAL = 2
    """One needs help."""
    STOPPED = 3
    """One has stopped doing its work, and none needs help."""


_WORSE: Final = (
    *(ApplicationState.UNKNOWN, ApplicationState.HEALTHY, ApplicationState.STOPPED),
    ApplicationState.CRITICAL,
)
"""From the best to the worst: what needs help is told whatever else there is."""


def worst_of(states: list[ApplicationState]) -> ApplicationState:
    """The worst of `states`; UNKNOWN where there is none."""
    return max(states, key=_WORSE.index, default=ApplicationState.UNKNOWN)


class _Told(NamedTuple):
    """What a file says: a state, and the second since boot up to which it counts without a lock."""

    state: ApplicationState
    until: int
    boot: str

    def line(self) -> bytes:
        return f"{self.state.value} {self.until:d} {self.boot}\n".encode()

    @property
    def has_lease(self) -> bool:
        return self.boot == _boot() and _since_boot() < self.until


class Applications:
    """What the programs of a guest told.

    Args:
        state_folder: the agent's.
    """

    def __init__(self, state_folder: str) -> None:
        self._folder = os.path.join(state_folder, FOLDER)

    def worst(self) -> ApplicationState:
        """The worst state of all programs."""
        return worst_of(list(self.all().values()))

    def all(self) -> dict[str, ApplicationState]:
        """The states by the programs' names; files that do not count any more are removed."""
        found = {}
        for name in _names(self._folder):
            with contextlib.suppress(OSError):
                if (state := self._read(os.path.join(self._folder, name))) is not None:
                    found[name] = state
        return found

    @staticmethod
    def _read(path: str) -> ApplicationState | None:
        with _opened(path, os.O_RDONLY) as descriptor:
            told = _told(os.pread(descriptor, _MAX_FILE_BYTES, 0))
            if told is not None and told.has_lease:
                return told.state
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # its program lives
                return ApplicationState.UNKNOWN if told is None else told.state
            if _is(descriptor, path):
                os.unlink(path)
            return None


class Teller:
    """One program's state, from :func:`telling`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell(self, state: ApplicationState) -> None:
        """Say how the program is, from now on."""
        os.pwrite(self._descriptor, _Told(state, 0, _boot()).line(), 0)


@contextlib.contextmanager
def telling(name: str, state_folder: str, state: ApplicationState = ApplicationState.HEALTHY) -> Iterator[Teller]:
    """Tell a program's state for as long as the context lasts, or the process lives.

    Args:
        name: the program's; letters, digits, dots, dashes, underscores, at most 64.
        state_folder: the agent's state folder, see :func:`hvsock.services.agenthood.default_state_folder`.
        state: how it is to begin with.

    Raises:
        UsageError: no program can be called so.
        BusyError: another program tells by that name, or too many do.
        OSError: the folder is not this user's.
    """
    path = _path_for(name, state_folder)
    descriptor = _locked(path)
    try:
        os.ftruncate(descriptor, 0)
        teller = Teller(descriptor)
        teller.tell(state)
        yield teller
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(descriptor)


def tell_for(name: str, state_folder: str, state: ApplicationState, seconds: float) -> None:
    """Tell a program's state for some time, for one that does not stay; telling again renews it.

    Args:
        name: the program's, as for :func:`telling`.
        state_folder: the agent's state folder.
        state: how it is; UNKNOWN takes back what was told.
        seconds: how long that counts; it ends with the guest's boot in any case.

    Raises:
        UsageError: no program can be called so, or the time is too long.
        BusyError: another program that lives tells by that name, or too many do.
        OSError: the folder is not this user's.
    """
    if not 0 < seconds <= MAX_LEASE_SECONDS:
        raise UsageError(f"a state can be told for up to {MAX_LEASE_SECONDS:g} s, not for {seconds:g}")
    path = _path_for(name, state_folder)
    descriptor = _locked(path)
    try:
        if state is ApplicationState.UNKNOWN:
            os.unlink(path)
            return
        line = _Told(state, int(_since_boot() + seconds) + 1, _boot()).line()
        os.pwrite(descriptor, line, 0)
        os.ftruncate(descriptor, len(line))
    finally:
        os.close(descriptor)


def _path_for(name: str, state_folder: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"no program tells as {name!r}: letters, digits, dots, dashes, underscores, at most 64")
    folder = os.path.join(state_folder, FOLDER)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    names = _names(folder)
    if name not in names and len(names) >= MAX_PROGRAMS:
        raise BusyError(f"{MAX_PROGRAMS} programs tell their state, and more cannot")
    return os.path.join(folder, name)


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(one.name for one in entries if _NAME.fullmatch(one.name))[:MAX_PROGRAMS]
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(path: str) -> int:
    """A descriptor of the file with its lock, which no reader removes then.

    Raises:
        BusyError: another program has it.
    """
    for _ in range(_LOCK_TRIES):
        with _opened(path, os.O_RDWR | os.O_CREAT) as descriptor, contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(descriptor, path):
                # the lock is the open file's, which both descriptors are
                return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
        time.sleep(_LOCK_PAUSE_SECONDS)
    raise BusyError(f"another program tells its state as {os.path.basename(path)!r}; choose another name")


def _is(descriptor: int, path: str) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _told(data: bytes) -> _Told | None:
    found = _LINE.fullmatch(data)
    if found is None:
        return None
    return _Told(ApplicationState(int(found[1])), int(found[2]), found[3].decode())


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@functools.cache
def _boot() -> str:
    """What tells this boot from others."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
