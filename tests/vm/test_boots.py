"""Debian's kernels start with the default guest, on one and two processors, and keep their sockets."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

import hvsock
from hvsock.addresses import ServiceId
from hvsock.constants import GUEST_ECHO_PORT
from hvsock.fabric.embedded import EmbeddedFabric

assert sys.platform == "linux"

from hvsock.fabric import client
from hvsock.vm import control, launch
from hvsock.vm.image import Image
from hvsock.vm.overlay import overlay
from hvsock.vm.qemu import INITRD, Hardware
from hvsock.vm.runs import Run, State
from tests.support import SOAK
from tests.vm.support import (
    PATIENCE,
    console_log,
    default_guest,
    guest_image,
    needs_qemu,
    started,
    wait_for_line,
    wait_until,
)

pytestmark = needs_qemu

EACH = [("6.1", 1), ("6.1", 2), ("6.12", 1), ("6.12", 2)]
LOOK = """
cat /etc/brought
echo "kernel $(uname -r), $(nproc) processors, host name $(hostname), transport $HVSOCK_TRANSPORT"
echo "modules:" $(lsmod | cut -d' ' -f1)
python3 -c 'import ctypes, hvsock, lzma, rich, sqlite3, ssl; print("python", hvsock.__cached__)'
modprobe virtio_net && modprobe virtio_console && echo "other modules"
echo done
"""


@pytest.mark.parametrize(("series", "cpus"), EACH if SOAK else [("6.1", 2), ("6.12", 1)])
def test_a_guest_with_a_program_of_ones_own(series: str, cpus: int, tmp_path: Path) -> None:
    made = guest_image(series)
    brought = tmp_path / "overlay" / "etc"
    brought.mkdir(parents=True)
    (brought / "brought").write_text("brought along\n")
    run = Run(str(tmp_path), "web01")
    hardware = Hardware(cpus=cpus)
    archive = overlay(str(brought.parent), LOOK)
    with started(run, default_guest("web01", made, hardware), made=made, overlay=archive):
        found = control.ask(run, "wait", seconds=PATIENCE)
        assert (found["ready"], found["cpus"], found["kernel"]) == (True, cpus, series)
        assert not os.path.exists(run.path(INITRD))
        said = wait_for_line(run, "\ndone")
        assert "brought along" in said
        version = re.search(r"kernel (\S+), (\d) processors, host name web01, transport vsock", said)
        assert version is not None
        assert version[1].startswith(f"{series}.")
        assert version[2] == str(cpus)
        assert {"vsock", "vsock_loopback", "vmw_vsock_virtio_transport"} <= set(said.split())
        assert "python /usr/lib/python3/dist-packages/hvsock/__pycache__/" in said
        assert "other modules" in said
        assert control.ask(run, "stop", seconds=PATIENCE)["reason"] == "stopped"
        run.wait_for_end()
    assert "Power down" in console_log(run)


def test_pause_reset_and_a_killed_device(hvsock_fabric: EmbeddedFabric, guest: Image) -> None:
    partition = hvsock_fabric.create_partition("web01")
    service = hvsock_fabric.register("guest echo", ServiceId.from_port(GUEST_ECHO_PORT))
    cid = client.call(hvsock_fabric.host.folder, "resolve", vm="web01", service=None)["cid"]
    run = Run(hvsock_fabric.folder, "web01")
    settings = default_guest("web01", guest, vm_id=str(partition.id), device=launch.device_command("web01", cid))

    def echo(text: bytes) -> None:
        with hvsock.create_connection((partition.id, service.id), timeout=PATIENCE, retry=True) as connection:
            connection.sendall(text)
            connection.shutdown(hvsock.SHUT_WR)
            assert connection.makefile("rb").read() == text

    with started(run, settings, made=guest):
        control.ask(run, "wait", seconds=PATIENCE)
        echo(b"hello")
        before = control.ask(run, "pause")
        os.kill(before["device_pid"], signal.SIGKILL)
        wait_until(lambda: run.record().device_pid == 0)
        assert control.ask(run, "resume")["state"] == "running"
        wait_until(lambda: run.record().device_restarts == 1)
        after = run.record()
        assert (after.qemu_pid, after.reason) == (before["qemu_pid"], "")
        assert after.device_pid not in (0, before["device_pid"])
        echo(b"hello again")
        control.ask(run, "reset")
        os.kill(run.record().device_pid, signal.SIGKILL)  # while the guest cannot let go of its device yet
        wait_for_line(run, "hvsock guest ready", 2)
        echo(b"and again")
        wait_until(lambda: run.record().device_restarts == 2)
        assert (run.record().state, run.record().reason) == (State.RUNNING, "")


def test_a_device_that_ends_again_and_again(hvsock_fabric: EmbeddedFabric, guest: Image) -> None:
    """The guest goes on without sockets, and there is a word about it."""
    partition = hvsock_fabric.create_partition("web01")
    run = Run(hvsock_fabric.folder, "web01")
    cid = client.call(hvsock_fabric.host.folder, "resolve", vm="web01", service=None)["cid"]
    script = 'test ! -e ended && touch ended && exec "$@"; exit 3'
    device = ("/bin/sh", "-c", script, "sh", *launch.device_command("web01", cid))
    settings = default_guest("web01", guest, vm_id=str(partition.id), device=device)
    with started(run, settings, made=guest, overlay=overlay(command="sleep 9999")):
        control.ask(run, "wait", seconds=PATIENCE)
        os.kill(run.record().device_pid, signal.SIGKILL)
        wait_until(lambda: "in a row" in run.record().reason)
        record = run.record()
        assert record.reason.startswith("without sockets: the vsock device cannot be plugged in again")
        assert "ended with code 3" in record.reason
        assert (record.state, record.device_pid, record.device_restarts) == (State.RUNNING, 0, 0)
