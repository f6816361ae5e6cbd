"""Real VMs for tests: the default guest, and a fast one that only has firmware."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

import pytest

from hvsock.errors import HvsockError

assert sys.platform == "linux"

from hvsock.vm import control, image, launch, qemu
from hvsock.vm.guest import READY_LINE
from hvsock.vm.image import Image
from hvsock.vm.qemu import Hardware
from hvsock.vm.runs import Run, Settings
from tests import waiting

PATIENCE: Final = 120.0
"""Seconds that anything may take here; an emulated guest is up in six where it has a processor to itself."""

needs_qemu = pytest.mark.skipif(
    shutil.which(qemu.PROGRAM) is None, reason=f"QEMU is not installed; as root: {qemu.INSTALL}"
)
"""Skips a test where there is no QEMU, and says what to do about it."""


def guest_image(series: str = "6.12") -> Image:
    """The default guest, which is made once; the test is skipped where that cannot be."""
    try:
        return image.ensure(series)
    except HvsockError as error:
        pytest.skip(f"there is no guest image: {error}")


def settings_of(name: str, hardware: Hardware, **changes: Any) -> Settings:
    """Settings of a VM without a vsock device, emulated, of which nobody knows when it is up."""
    made = Settings(name, "", 3, "tcg", qemu.find(), hardware, (), "", "none")
    return replace(made, **changes)


def default_guest(
    name: str,
    made: Image,
    hardware: Hardware = Hardware(),  # noqa: B008
    *,
    agent: bool = False,
    **changes: Any,
) -> Settings:
    """Settings of a VM with the default guest; with its agent, which takes some seconds, if asked."""
    words = (*qemu.PARAMETERS, f"hvsock.name={name}", f"hvsock.agent={agent:d}", *hardware.append)
    hardware = replace(hardware, kernel=made.kernel, initrd=qemu.INITRD, append=words)
    return settings_of(name, hardware, marker=READY_LINE, kernel=made.series, **changes)


@contextlib.contextmanager
def started(
    run: Run, settings: Settings, *, made: Image | None = None, overlay: Iterable[bytes] = ()
) -> Iterator[Run]:
    """A VM that runs; at the end it is switched off, if it runs still."""
    launch.start(run, settings, image=made, overlay=overlay)
    try:
        yield run
    finally:
        with contextlib.suppress(HvsockError):
            control.ask(run, "kill")
        run.wait_for_end()


wait_until = functools.partial(waiting.wait_until, seconds=PATIENCE)
"""Wait for something that is about to happen; there is more patience with a VM."""


def console_log(run: Run) -> str:
    """What the guest wrote to its console."""
    with open(os.path.join(run.folder, qemu.CONSOLE_LOG), encoding="utf-8", errors="replace") as file:
        return file.read()


def wait_for_line(run: Run, text: str, count: int = 1, seconds: float = PATIENCE) -> str:
    """Wait until the guest has written `text` to its console so many times; returns all that it wrote."""
    wait_until(lambda: console_log(run).count(text) >= count, seconds=seconds)
    return console_log(run)
