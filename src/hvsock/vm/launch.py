"""Starting a VM: its folder, its initramfs, its supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from typing import NoReturn

from hvsock.errors import StateError

from .image import Image
from .qemu import DEVICE_SOCKET, INITRD, REPORT_SOCKET
from .runs import SUPERVISOR_LOG, Run, Settings, write_settings

if sys.platform != "linux":
    raise ImportError("VMs need Linux")


def device_command(name: str, cid: int) -> tuple[str, ...]:
    """The command that runs the vsock device's process of a VM, in the VM's folder."""
    return (
        *(sys.executable, "-P", "-m", "hvsock", "device"),
        *("--socket-path", DEVICE_SOCKET, "--report-path", REPORT_SOCKET, "--vm", name, "--cid", str(cid)),
    )


def start(
    run: Run,
    settings: Settings,
    *,
    image: Image | None = None,
    overlay: Iterable[bytes] = (),
    foreground: bool = False,
) -> None:
    """Start a VM; returns when it runs, and in the foreground never.

    Args:
        run: the VM's folder.
        settings: what it is started with.
        image: the default guest, whose initramfs is written for it; None for a guest of its own.
        overlay: the pieces of an archive that goes over it.
        foreground: this process becomes the VM's supervisor.

    Raises:
        StateError: it runs already, or does not start.
    """
    lock = run.take()
    try:
        if image is not None:
            image.write_initrd(run.path(INITRD), overlay)
        write_settings(run, settings)
        if foreground:
            _supervise_here(run, lock)
        else:
            _supervise_apart(run, lock)
    finally:
        os.close(lock)


def _supervise_apart(run: Run, lock: int) -> None:
    told, tell = os.pipe()
    with open(told, "rb") as pipe:
        try:
            with open(run.path(SUPERVISOR_LOG), "ab") as log:
                subprocess.run(
                    _supervisor(str(tell)),
                    cwd=run.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(tell, lock),
                    start_new_session=True,
                    check=True,
                )
        finally:
            os.close(tell)
        word = pipe.readline().decode()
    if word != "\n":
        raise StateError(
            f"the VM {run.name!r} does not start: {word.strip() or 'see ' + run.path(SUPERVISOR_LOG)}"
        )


def _supervise_here(run: Run, lock: int) -> NoReturn:
    os.set_inheritable(lock, True)
    os.chdir(run.folder)
    command = _supervisor()
    os.execv(command[0], command)


def _supervisor(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "hvsock.vm.supervisor", *arguments]
