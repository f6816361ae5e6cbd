"""The acts upon a machine that is the partition's own, as a VM's is: what its init is asked, or the kernel.

Nothing here may run for a partition that is a folder of somebody else's machine.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol

from hvsock.errors import HvsockError, RefusedError, StateError

from .interface import Action

if sys.platform != "linux":
    raise ImportError("guests run Linux")

SYNC_SECONDS: Final = 30.0
"""How long a forced act waits until what is in memory is on the disks; a disk may be gone."""
COMMAND_SECONDS: Final = 30.0
"""How long init's own command may take to pass the request on."""
POWER_STATES: Final = "/sys/power/state"
SWAPS: Final = "/proc/swaps"
IN_MEMORY: Final = "/dev/zram"
"""How the names of swaps begin that are in memory, and keep nothing when the machine is off."""
MAX_SWAPS_BYTES: Final = 65536
"""How much of the list of swaps is read; a line has some 80, and the kernel has 32 swaps at most."""
SYSTEMD_RUNS: Final = "/run/systemd/system"
"""There is such a folder where systemd is init (sd_booted(3))."""

REBOOT_COMMANDS: Final = {Action.SHUTDOWN: 0x4321_FEDC, Action.REBOOT: 0x0123_4567}
"""LINUX_REBOOT_CMD_POWER_OFF and LINUX_REBOOT_CMD_RESTART of linux/reboot.h."""
BUSYBOX_SIGNALS: Final = {Action.SHUTDOWN: signal.SIGUSR2, Action.REBOOT: signal.SIGTERM}
"""What busybox's init takes them for."""
_WORDS: Final = {Action.SHUTDOWN: "poweroff", Action.REBOOT: "reboot", Action.HIBERNATE: "hibernate"}


class Init(StrEnum):
    """What runs as the first process."""

    SYSTEMD = "systemd"
    BUSYBOX = "busybox"
    OTHER = "other"


class System(Protocol):
    """What an act needs of the machine."""

    def is_root(self) -> bool:
        """Whether this process may do it."""

    def init(self) -> Init:
        """What runs as the first process."""

    def power_states(self) -> list[str]:
        """The kernel's sleep states."""

    def swaps(self) -> list[str]:
        """The files and devices that are swapped to."""

    def find(self, command: str) -> str | None:
        """The path of a command."""

    def sync(self) -> None:
        """Write to the disks what is in memory."""

    def run(self, command: Sequence[str]) -> None:
        """Run a command to its end."""

    def signal_init(self, number: signal.Signals) -> None:
        """Send a signal to the first process."""

    def reboot(self, command: int) -> None:
        """Ask the kernel, which does it at once."""

    def sleep(self, state: str) -> None:
        """Put the machine to sleep; returns when it is awake again."""


class Machine:
    """The machine that the agent runs on, and is the partition's own.

    Args:
        system: how it is reached.
    """

    def __init__(self, system: System) -> None:
        self._system = system

    def check(self, action: Action) -> None:
        """Refuse what cannot be done here at all.

        Raises:
            RefusedError: it cannot.
        """
        if not self._system.is_root():
            raise RefusedError(f"{action.word} needs root, and the guest's agent runs as another user")
        if action is not Action.HIBERNATE:
            return
        if "disk" not in self._system.power_states():
            raise RefusedError(f"this guest cannot hibernate: its kernel has no 'disk' in {POWER_STATES}")
        if all(one.startswith(IN_MEMORY) for one in self._system.swaps()):
            # the kernel would notice only when it has stopped everything for seconds
            raise RefusedError(
                "this guest cannot hibernate: it has no swap on a disk to keep its memory in (swapon)"
            )

    def act(self, action: Action, reason: str, force: bool) -> None:
        """Do it. Where it is init that does it, this returns when init was asked.

        Args:
            action: what.
            reason: why, for init's log.
            force: by the kernel alone: no program is asked to end first, and disks are only written to.

        Raises:
            OSError, HvsockError: it could not be done.
        """
        if force:
            waiting = threading.Thread(target=self._system.sync, daemon=True)
            waiting.start()
            waiting.join(SYNC_SECONDS)
        else:
            self._system.sync()
        init = self._system.init()
        if init is Init.SYSTEMD and not force:
            self._system.run(["systemctl", f"--message={reason}", "--no-block", _WORDS[action]])
        elif action is Action.HIBERNATE:
            self._system.sleep("disk")
        elif force:
            self._system.reboot(REBOOT_COMMANDS[action])
        elif init is Init.BUSYBOX:
            self._system.signal_init(BUSYBOX_SIGNALS[action])
        else:
            command = self._system.find(_WORDS[action])
            if command is None:
                raise StateError(
                    f"init is neither systemd nor busybox, and there is no {_WORDS[action]}; use force"
                )
            self._system.run([command])


class Linux:
    """The machine under this process; see :class:`System`."""

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def init(self) -> Init:
        if os.path.isdir(SYSTEMD_RUNS):
            return Init.SYSTEMD
        program = os.path.basename(os.readlink("/proc/1/exe"))
        return Init.BUSYBOX if program.startswith("busybox") else Init.OTHER

    def power_states(self) -> list[str]:
        try:
            with open(POWER_STATES, encoding="ascii") as file:
                return file.read(4096).split()
        except OSError:
            return []

    def swaps(self) -> list[str]:
        try:
            with open(SWAPS, encoding="utf-8", errors="replace") as file:
                lines = file.read(MAX_SWAPS_BYTES).splitlines()
        except OSError:
            return []
        return [line.split()[0] for line in lines[1:] if line.strip()]  # the first names the columns

    def find(self, command: str) -> str | None:
        return shutil.which(command, path="/usr/sbin:/usr/bin:/sbin:/bin")

    def sync(self) -> None:
        os.sync()

    def run(self, command: Sequence[str]) -> None:
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_SECONDS,
                check=True,
                text=True,
            )
        except subprocess.CalledProcessError as error:
            said = " ".join(error.stderr.split()) or f"it ended with {error.returncode}"
            raise HvsockError(f"{command[0]} {command[-1]}: {said}") from None
        except subprocess.TimeoutExpired:
            raise HvsockError(f"{command[0]} {command[-1]} did not end within {COMMAND_SECONDS:g} s") from None

    def signal_init(self, number: signal.Signals) -> None:
        os.kill(1, number)

    def reboot(self, command: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.reboot(ctypes.c_int(command)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def sleep(self, state: str) -> None:
        with open(POWER_STATES, "w", encoding="ascii") as file:
            file.write(state)
