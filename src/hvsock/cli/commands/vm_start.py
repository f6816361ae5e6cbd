"""`hvsock vm start`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any, Final

import click

from hvsock.cli.outcome import say
from hvsock.cli.output import json_option
from hvsock.errors import DuplicateError, NotFoundError, UsageError
from hvsock.fabric import client, paths
from hvsock.vm import control, image, kvm, launch, qemu
from hvsock.vm.guest import READY_LINE
from hvsock.vm.overlay import overlay as packed
from hvsock.vm.qemu import MAX_CPUS, MAX_DATA_DISKS, MIN_MEMORY, Hardware
from hvsock.vm.runs import Settings
from hvsock.vm.userland import DEFAULT_KERNEL, KERNELS

from .vm import complete_vms, conclude, run_of
from .vm_image import image_progress

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

WAIT_SECONDS: Final = 120.0
"""How long --wait waits: a guest is up in some seconds, also where it is emulated and the machine is busy."""


@click.command()
@click.argument("name", shell_complete=complete_vms)
@click.option(
    "--memory", metavar="MIB", type=click.IntRange(MIN_MEMORY), default=512, show_default=True, help="Its memory."
)
@click.option("--cpus", type=click.IntRange(1, MAX_CPUS), default=1, show_default=True, help="Its processors.")
@click.option(
    "--kernel",
    metavar="SERIES|FILE",
    help=f"The default guest with a kernel of that series ({', '.join(KERNELS)}), or a kernel of your own.",
)
@click.option("--initrd", metavar="FILE", help="The initramfs of a kernel of your own.")
@click.option("--disk", metavar="FILE", help="A disk: raw, or qcow2 by its ending; without --kernel it is booted.")
@click.option(
    "--data-disk",
    "data_disks",
    metavar="FILE",
    multiple=True,
    help="A disk that is not booted, raw, or qcow2 by its ending; /dev/vda in the default guest; may be repeated.",
)
@click.option("--append", metavar="WORDS", default="", help="More parameters for the kernel.")
@click.option(
    "--accel",
    type=click.Choice(("auto", "kvm", "tcg")),
    default="auto",
    show_default=True,
    help="KVM, or tcg: emulation in software; auto tries KVM first.",
)
@click.option("--group", metavar="GROUP", help="Members of one group reach each other by VmId and CID.")
@click.option("--overlay", metavar="FOLDER", help="What is in it goes over the default guest's files.")
@click.option("--run", "command", metavar="COMMAND", help="Run in the default guest in place of its program.")
@click.option(
    "--qemu", "options", metavar="OPTION", multiple=True, help="One more word for QEMU; may be repeated."
)
@click.option("--wait", is_flag=True, help="Wait until the default guest is up.")
@click.option("--foreground", is_flag=True, help="Stay, and end with the VM; for service managers.")
@json_option
def start(
    name: str,
    memory: int,
    cpus: int,
    kernel: str | None,
    initrd: str | None,
    disk: str | None,
    data_disks: tuple[str, ...],
    append: str,
    accel: str,
    group: str | None,
    overlay: str | None,
    command: str | None,
    options: tuple[str, ...],
    wait: bool,
    foreground: bool,
    as_json: bool,
) -> None:
    """Start the VM NAME, which is the partition of that name; it is made if it is not there."""
    run = run_of(name)
    program = qemu.find()
    hardware = Hardware(
        memory,
        cpus,
        _file(kernel) if kernel not in KERNELS else None,
        _file(initrd),
        tuple(append.split()),
        _file(disk),
        tuple(full for one in data_disks if (full := _file(one))),
        options,
    )
    own = hardware.kernel is not None or (disk is not None and kernel is None)
    _check(own, hardware, overlay is not None or command is not None, wait and foreground)
    partition = _partition(name, group)
    made = None
    if not own:
        archive = packed(overlay, command)
        with image_progress() as progress:
            made = image.ensure(kernel or DEFAULT_KERNEL, progress=progress)
        words = (*qemu.PARAMETERS, f"hvsock.name={name}", *hardware.append)
        hardware = replace(hardware, kernel=made.kernel, initrd=qemu.INITRD, append=words)
    verdict = kvm.choose(program, None if made is None else made.kernel) if accel == "auto" else kvm.Verdict(accel)
    if verdict.reason:
        say(f"no KVM, the processor is emulated in software: {verdict.reason}")
    settings = Settings(
        name,
        partition["id"],
        partition["cid"],
        verdict.accelerator,
        program,
        hardware,
        launch.device_command(name, partition["cid"]),
        "" if made is None else READY_LINE,
        made.series if made is not None else os.path.basename(hardware.kernel or hardware.disk or ""),
    )
    launch.start(run, settings, image=made, overlay=() if made is None else archive, foreground=foreground)
    found = control.ask(run, "wait", seconds=WAIT_SECONDS) if wait else run.record()
    conclude(found, as_json)


def _file(path: str | None) -> str | None:
    """The full path of a file.

    Raises:
        NotFoundError: there is none.
    """
    if path is None:
        return None
    if not os.path.exists(path):
        raise NotFoundError(f"there is no file {path}")
    return os.path.abspath(path)


def _check(own: bool, hardware: Hardware, changes: bool, both: bool) -> None:
    if hardware.initrd is not None and hardware.kernel is None:
        raise UsageError("--initrd goes with a --kernel of your own")
    if own and changes:
        raise UsageError("--overlay and --run change the default guest, and this is one of your own")
    if len(hardware.data_disks) > MAX_DATA_DISKS:
        raise UsageError(f"a VM has {MAX_DATA_DISKS} data disks at most, and these are {len(hardware.data_disks)}")
    if both:
        raise UsageError("--foreground waits for the VM's end, so it cannot wait until the guest is up")


def _partition(name: str, group: str | None) -> dict[str, Any]:
    """The VM's partition, made if it is not there.

    Raises:
        UsageError: the partition of that name is no VM's, or in another group.
    """
    folder = paths.partition_folder()
    try:
        found: dict[str, Any] = client.call(folder, "partition.create", name=name, kind="vm", group=group)
        return found
    except DuplicateError:
        pass
    for found in client.call(folder, "partition.list"):
        if found["name"].casefold() == name.casefold():
            if found["kind"] != "vm":
                raise UsageError(f"the partition {found['name']} is a {found['kind']}, and no VM")
            if group is not None and found["group"] != group:
                raise UsageError(f"the partition {found['name']} is in group {found['group'] or '(none)'}")
            return found
    raise NotFoundError(f"the partition {name} was removed meanwhile")
