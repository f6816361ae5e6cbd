"""Real guests under QEMU, each with one of the vsock devices, a user-mode network and virtio-serial ports.

One guest cannot have two vsock devices, so there are two guests of the same image, and measurements take turns
between them; who is not measured sleeps.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Final

from qemu.qmp.legacy import QEMUMonitorProtocol

from hvsock.vm import image, kvm, qemu
from hvsock.vm.overlay import overlay

from .devices import CLOSE_PORT, DATA_PORT, OURS, SERVE_PORT, RunningDevice, our_device, their_device
from .hosting import command
from .processes import Agent, Party, running, wait_until
from .programs import compiled
from .subjects import DEVICE, GUEST, Subject, closing_side, host_side

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

USER_NETWORK: Final = "user-mode network"
VIRTIO_SERIAL: Final = "virtio-serial"
MEMORY_MIB: Final = 384
_CHARDEV: Final = "vsock"
_ORDERS: Final = "orders"
_DATA: Final = "data"
"""The virtio-serial ports: for orders to the guest's program, and to be measured."""
_START: Final = f"""#!/bin/sh
modprobe -a virtio_net virtio_console
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
for port in /sys/class/virtio-ports/*; do
    case $(cat $port/name) in
        {_ORDERS}) orders=/dev/${{port##*/}} ;;
        {_DATA}) data=/dev/${{port##*/}} ;;
    esac
done
exec /usr/bin/bench-guest $orders $data {SERVE_PORT}
"""
"""What runs in the guest; the addresses are those of QEMU's user-mode network."""


@contextlib.contextmanager
def guests(vhost_device: str, series: str, accelerator: str) -> Iterator[tuple[str, list[Subject]]]:
    """The accelerator, and all ways that are measured: hvsock's device first.

    Args:
        vhost_device: the program vhost-device-vsock.
        series: of the guests' kernel, like "6.12".
        accelerator: "auto", "kvm" or "tcg".

    Raises:
        HvsockError: something is not installed, or does not start.
    """
    host, inside = compiled("host"), compiled("guest")
    program = qemu.find()
    made = image.ensure(series, progress=lambda text: print(text, file=sys.stderr))
    if accelerator == "auto":
        accelerator = kvm.choose(program, made.kernel).accelerator
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hvsock-bench-"))
        _write_initrd(made, inside, folder)
        subjects: list[Subject] = []
        for name in ("ours", "theirs"):
            own = os.path.join(folder, name)
            os.mkdir(own)
            ours = name == "ours"
            device = our_device(stack, own, host) if ours else their_device(stack, own, host, vhost_device)
            subjects += _boot(stack, folder, own, (program, accelerator, made.kernel), device, host)
        yield accelerator, subjects


def _write_initrd(made: image.Image, inside: str, folder: str) -> None:
    """The initramfs of both guests, with the guest's program in it."""
    tree = os.path.join(folder, "overlay")
    for path in ("usr/bin", "etc/hvsock"):
        os.makedirs(os.path.join(tree, path))
    shutil.copy(inside, os.path.join(tree, "usr/bin/bench-guest"))
    start = os.path.join(tree, "etc/hvsock/start")
    with open(start, "w", encoding="ascii") as file:
        file.write(_START)
    made.write_initrd(os.path.join(folder, qemu.INITRD), overlay(tree))


def _boot(
    stack: contextlib.ExitStack,
    folder: str,
    own: str,
    machine: tuple[str, str, str],
    device: RunningDevice,
    host: str,
) -> list[Subject]:
    """A guest with `device`, in the folder `own`: what is measured in it.

    `machine` is QEMU, its accelerator and the guest's kernel.
    """
    program, accelerator, kernel = machine
    forwarded = _free_port()
    network = f"user,id=net,hostfwd=tcp:127.0.0.1:{forwarded}-:{SERVE_PORT}"
    options = ["-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-serial-pci"]
    for name in (_ORDERS, _DATA):
        options += ["-chardev", f"socket,id={name},path={name},server=on,wait=off"]
        options += ["-device", f"virtserialport,chardev={name},name={name}"]
    hardware = qemu.Hardware(
        memory=MEMORY_MIB,
        kernel=kernel,
        initrd=os.path.join(folder, qemu.INITRD),
        append=qemu.PARAMETERS,
        options=tuple(options),
    )
    words = qemu.command_line(program, device.name, accelerator, hardware, chardev=_CHARDEV)
    process = stack.enter_context(running(words, cwd=own))
    wait_until(lambda: os.path.exists(os.path.join(own, qemu.QMP_SOCKET)), "QEMU", process)
    processors = _go(stack, os.path.join(own, qemu.QMP_SOCKET))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.path.join(own, _ORDERS))
    orders = Agent(sock)
    stack.callback(orders.close)
    orders.answer()

    in_guest = Party(GUEST, (process.pid,), threads=lambda thread: thread in processors)
    beside = (process.pid,), lambda thread: thread not in processors
    parties = (in_guest, Party("QEMU", *beside), *device.parties)
    vsock = Subject(device.name, orders, "vsock", DATA_PORT, CLOSE_PORT, parties, device.connecting)
    if device.name != OURS:
        return [vsock, *_others(stack, own, orders, forwarded, host, (in_guest, Party(DEVICE, *beside)))]
    return [vsock]


def _others(
    stack: contextlib.ExitStack,
    own: str,
    orders: Agent,
    forwarded: int,
    host: str,
    parties: tuple[Party, Party],
) -> list[Subject]:
    """The ways of the same guest that take no vsock device: QEMU is the device."""
    data_port, serving = host_side(stack, "tcp", host)
    close_port, closing = closing_side(stack, "tcp")
    _, serial = host_side(stack, "serial", host, where=os.path.join(own, _DATA))
    return [
        Subject(
            USER_NETWORK,
            orders,
            "tcp",
            data_port,
            close_port,
            (*parties, Party("host program", (*serving, *closing))),
            command("connect", "tcp", port=forwarded),
        ),
        Subject(VIRTIO_SERIAL, orders, "serial", 0, 0, (*parties, Party("host program", serial)), None),
    ]


def _go(stack: contextlib.ExitStack, path: str) -> frozenset[int]:
    """Let a guest go that QEMU holds; the threads of its processors."""
    monitor = QEMUMonitorProtocol(path)
    monitor.connect()
    stack.callback(monitor.close)
    processors = monitor.cmd("query-cpus-fast")
    assert isinstance(processors, list), "QMP answers in lists"
    monitor.cmd("cont")
    return frozenset(int(one["thread-id"]) for one in processors)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
