"""The folder of a VM that runs or ran, and who runs it.

::

    $HVSOCK_DIR/vms/NAME/
      lock               held by the VM's supervisor for as long as it lives
      settings.json      what the VM was started with
      vm.json            what there is to tell of it; only the supervisor writes
      control            the supervisor's socket
      device report      the sockets of the device's process: QEMU's, and the one at which its counters are read
      qmp console        QEMU's socket, and that of the guest's serial console
      console.log        what the guest wrote to that console
      supervisor.log     what supervisor, QEMU and device wrote
      initrd             the initramfs, until QEMU has read it

A lock ends with its holder, however that ends; so a folder whose lock is free is of a VM that does not run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from hvsock.errors import NotFoundError, StateError, UsageError

from .qemu import Hardware

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

VMS_FOLDER: Final = "vms"
LOCK: Final = "lock"
SETTINGS: Final = "settings.json"
RECORD: Final = "vm.json"
CONTROL_SOCKET: Final = "control"
SUPERVISOR_LOG: Final = "supervisor.log"
END_SECONDS: Final = 10.0
"""How long a supervisor may take to end after its VM: it ends the device's process, and removes its socket."""
LOOK_SECONDS: Final = 0.01
"""Pause between two looks whether it has."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class State(StrEnum):
    """What a VM does."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a VM is started with.

    Attributes:
        name: the VM's, which is its partition's.
        vm_id: the partition's VmId.
        cid: the guest's CID.
        accelerator: "kvm" or "tcg".
        qemu: the path of QEMU.
        hardware: what the VM has.
        device: the command that runs the vsock device's process; empty for a VM without one.
        marker: the line on the console that says that the guest is up; empty where nobody knows it.
        kernel: what the kernel is called in lists.
    """

    name: str
    vm_id: str
    cid: int
    accelerator: str
    qemu: str
    hardware: Hardware
    device: tuple[str, ...]
    marker: str
    kernel: str


@dataclass(slots=True)
class Record:
    """What there is to tell of a VM.

    Attributes:
        name: the VM's.
        vm_id: its partition's VmId.
        cid: its CID.
        state: what it does.
        reason: why it is stopped, or what is wrong; empty where nothing is.
        ready: whether the guest said that it is up.
        accelerator: "kvm" or "tcg".
        memory: MiB.
        cpus: processors.
        kernel: what its kernel is called.
        started: seconds since 1970.
        pid: the supervisor's process; 0 when it is stopped.
        qemu_pid: QEMU's process; 0 when it does not run.
        device_pid: the device's process; 0 when it does not run.
        device_restarts: how often the device had to be started again.
    """

    name: str
    vm_id: str
    cid: int
    state: State
    accelerator: str
    memory: int
    cpus: int
    kernel: str
    started: float
    reason: str = ""
    ready: bool = False
    pid: int = field(default_factory=os.getpid)
    qemu_pid: int = 0
    device_pid: int = 0
    device_restarts: int = 0

    def to_json(self) -> dict[str, Any]:
        """Itself as JSON takes it."""
        return dataclasses.asdict(self)


class Run:
    """The folder of one VM.

    Args:
        fabric: the fabric's folder.
        name: the VM's.

    Raises:
        UsageError: no VM can be called so.
    """

    def __init__(self, fabric: str, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"no VM can be called {name!r}: letters, digits, dots, dashes, underscores, at most 63"
            )
        self.name = name
        self.folder = os.path.join(fabric, VMS_FOLDER, name)

    def path(self, name: str) -> str:
        """The path of a file in the folder."""
        return os.path.join(self.folder, name)

    def take(self) -> int:
        """Make the folder, empty but for the log of the last run's console; returns the lock, which is held.

        Raises:
            StateError: the VM runs.
        """
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        lock = self._lock()
        try:
            for entry in os.scandir(self.folder):
                if entry.name != LOCK:
                    os.unlink(entry.path)
        except BaseException:
            os.close(lock)
            raise
        return lock

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the VM from being started.

        Raises:
            NotFoundError: it never ran.
            StateError: it runs.
        """
        try:
            lock = self._lock("runs; stop it first")
        except FileNotFoundError:
            raise NotFoundError(f"there is no VM {self.name!r}; see: hvsock vm list") from None
        try:
            yield
        finally:
            os.close(lock)

    def remove(self) -> None:
        """Remove the folder; the caller has the VM stopped."""
        shutil.rmtree(self.folder)

    def runs(self) -> bool:
        """Whether a supervisor holds the lock."""
        try:
            os.close(self._lock())
        except StateError:
            return True
        except FileNotFoundError:
            pass
        return False

    def wait_for_end(self, seconds: float | None = None) -> None:
        """Wait until nobody holds the lock.

        Args:
            seconds: how long; by default END_SECONDS, for a guest that is off already.

        Raises:
            StateError: somebody does for longer.
        """
        patience = END_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + patience
        while self.runs():
            if time.monotonic() > deadline:
                raise StateError(f"the supervisor of {self.name!r} did not end in {patience:g} s")
            time.sleep(LOOK_SECONDS)

    def _lock(self, otherwise: str = "runs already") -> int:
        descriptor = os.open(self.path(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StateError(f"the VM {self.name!r} {otherwise}; see: hvsock vm list") from None
        return descriptor

    def record(self) -> Record:
        """What there is to tell of the VM; it is stopped when nobody holds the lock.

        Raises:
            NotFoundError: it never ran.
        """
        runs = os.path.isdir(self.folder) and self.runs()
        try:
            with open(self.path(RECORD), encoding="utf-8") as file:
                found = Record(**json.load(file))
        except (FileNotFoundError, ValueError, TypeError):
            raise NotFoundError(f"there is no VM {self.name!r}; see: hvsock vm list") from None
        found.state = State(found.state)
        if not runs and found.state is not State.STOPPED:
            found.state, found.reason = State.STOPPED, "its supervisor was killed"
            found.pid = found.qemu_pid = found.device_pid = 0
        return found


def all_runs(fabric: str) -> Iterator[Record]:
    """What there is to tell of all VMs of a fabric, by name."""
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(os.path.join(fabric, VMS_FOLDER))):
            with contextlib.suppress(NotFoundError, UsageError):
                yield Run(fabric, name).record()


def running_names(fabric: str) -> list[str]:
    """The names of the VMs of a fabric that seem to run; one whose supervisor was killed does, too.

    This takes no lock, which a VM that starts would find taken: so it may be asked all the time.
    """
    folder = os.path.join(fabric, VMS_FOLDER)
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [name for name in names if os.path.exists(os.path.join(folder, name, CONTROL_SOCKET))]


def write_json(path: str, value: dict[str, Any]) -> None:
    """Put `value` into the file at `path`, in one step."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
    os.replace(path + ".new", path)


def write_settings(run: Run, settings: Settings) -> None:
    """Write down what a VM is started with; the caller holds the lock."""
    write_json(run.path(SETTINGS), dataclasses.asdict(settings))


def read_settings(folder: str) -> Settings:
    """What was written down in the folder of a VM."""
    with open(os.path.join(folder, SETTINGS), encoding="utf-8") as file:
        value = json.load(file)
    hardware, device = value.pop("hardware"), tuple(value.pop("device"))
    for name in ("append", "data_disks", "options"):
        hardware[name] = tuple(hardware[name])
    return Settings(**value, device=device, hardware=Hardware(**hardware))
