"""QEMU's command line, and where QEMU is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvsock.errors import NotFoundError
from hvsock.vm import qemu
from hvsock.vm.qemu import Hardware


def options(hardware: Hardware, accelerator: str = "tcg", chardev: str | None = None) -> list[tuple[str, str]]:
    """The options of a command line with their values; "" where one has none."""
    program, *words = qemu.command_line("/bin/qemu", "web01", accelerator, hardware, chardev=chardev)
    assert program == "/bin/qemu"
    found = []
    while words:
        option = words.pop(0)
        assert option.startswith("-")
        found.append((option, words.pop(0) if words and not words[0].startswith("-") else ""))
    return found


def test_what_every_vm_has() -> None:
    found = options(Hardware(memory=768, cpus=3), "kvm")
    assert {("-accel", "kvm"), ("-cpu", "max"), ("-smp", "3"), ("-m", "768M"), ("-S", "")} <= set(found)
    assert ("-object", "memory-backend-memfd,id=mem,size=768M,share=on") in found
    assert ("-mon", "chardev=qmp,mode=control") in found
    assert not {"-kernel", "-initrd", "-append", "-drive", "-device"} & {option for option, _ in found}


def test_a_kernel_of_ones_own() -> None:
    found = dict(options(Hardware(kernel="/k", initrd="/i", append=("console=ttyS0", "quiet"))))
    assert (found["-kernel"], found["-initrd"], found["-append"]) == ("/k", "/i", "console=ttyS0 quiet")
    assert "-initrd" not in dict(options(Hardware(kernel="/k")))


@pytest.mark.parametrize(
    ("disk", "value"),
    [
        ("/d/a.qcow2", "file=/d/a.qcow2,if=virtio,format=qcow2"),
        ("/d/a.img", "file=/d/a.img,if=virtio,format=raw"),
        ("/d/a,b", "file=/d/a,,b,if=virtio,format=raw"),
    ],
)
def test_a_disk(disk: str, value: str) -> None:
    assert ("-drive", value) in options(Hardware(disk=disk))


def test_data_disks_come_after_the_disk_that_is_booted() -> None:
    found = options(Hardware(disk="/d/own.qcow2", data_disks=("/d/a.img", "/d/b.qcow2")))
    assert [value for option, value in found if option == "-drive"] == [
        "file=/d/own.qcow2,if=virtio,format=qcow2",
        "file=/d/a.img,if=virtio,format=raw",
        "file=/d/b.qcow2,if=virtio,format=qcow2",
    ]


def test_the_vsock_device_and_more_options() -> None:
    found = options(Hardware(options=("-nic", "user")), chardev="vsock-1")
    assert ("-chardev", "socket,id=vsock-1,path=device") in found
    assert ("-device", "vhost-user-vsock-pci,id=vsock,chardev=vsock-1") in found
    assert found[-1] == ("-nic", "user")


def test_paths_of_sockets_are_short() -> None:
    """They are in the working folder, so that a run folder may be anywhere."""
    command = qemu.command_line("/bin/qemu", "web01", "tcg", Hardware(), chardev="vsock-0")
    found = [word.partition("path=")[2].partition(",")[0] for word in command if "path=" in word]
    assert found == [qemu.QMP_SOCKET, qemu.CONSOLE_SOCKET, qemu.DEVICE_SOCKET]


def test_find(tmp_path: Path) -> None:
    program = tmp_path / qemu.PROGRAM
    with pytest.raises(NotFoundError, match="apt-get install"):
        qemu.find({"PATH": str(tmp_path)})
    program.touch(mode=0o755)
    assert qemu.find({"PATH": str(tmp_path)}) == str(program)
    with pytest.raises(NotFoundError, match=r"other-qemu is not installed.*; or unset HVSOCK_QEMU"):
        qemu.find({"PATH": str(tmp_path), "HVSOCK_QEMU": "other-qemu"})
    other = tmp_path / "other-qemu"
    other.touch(mode=0o755)
    assert qemu.find({"PATH": os.defpath, "HVSOCK_QEMU": str(other)}) == str(other)
