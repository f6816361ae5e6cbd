"""What Debian gives the guest: busybox, Python with its libraries, a kernel and its modules."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from hvsock.errors import StateError

from . import cpio, modules
from .cpio import Entry
from .debian import Archive, Package

if sys.platform != "linux":
    raise ImportError("the guest image is made by apt and dpkg")

PYTHON: Final = "python3.11"
PACKAGES: Final = (
    *("busybox-static", f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib"),
    *("libc6", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1"),
    *("libgcc-s1", "libstdc++6", "base-files"),
)
"""Busybox, Python with the libraries that its modules and packages load, and the system's names."""
KERNELS: Final = {"6.1": "linux-image-cloud-amd64", "6.12": "linux-image-6.12-cloud-amd64"}
"""The packages that need the newest kernel of a series."""
DEFAULT_KERNEL: Final = "6.12"
LOADED_MODULES: Final = (
    "vmw_vsock_virtio_transport",
    "vsock_loopback",
    "vsock_diag",
    "virtio_pci",
    "button",
    "evdev",
)
"""Modules that are loaded when the guest starts: its sockets, and the button that ends it."""
OTHER_MODULES: Final = ("virtio_net", "virtio_console", "virtio_blk", "nbd", "vhost_vsock", "kvm_amd")
"""Modules that are there for modprobe: other ways to talk to a host, to compare with; disks; and what makes
the guest a host itself. The processor that QEMU emulates is an AMD, and has what kvm_amd needs."""

_LIBRARY = f"usr/lib/{PYTHON}"
_LEFT_OUT: Final = (
    *("usr/share", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/audit", "usr/lib/binfmt.d"),
    *("usr/lib/x86_64-linux-gnu/engines-3", "usr/lib/x86_64-linux-gnu/perl", "etc"),
    "lib/x86_64-linux-gnu/libmvec",
    *(f"{_LIBRARY}/{name}" for name in ("test", "pydoc_data", "turtle.py", "lib2to3", "idlelib", "unittest/test")),
    *(f"{_LIBRARY}/{name}" for name in ("sitecustomize.py", "EXTERNALLY-MANAGED", "_sysconfigdata")),
    *(f"{_LIBRARY}/lib-dynload/{name}" for name in ("_test", "_xx", "xx", "_ctypes_test", "nis", "ossaudiodev")),
)
"""Beginnings of the paths of what is not taken over: documentation, tests, locales, what has no libraries here."""
_ROOTFS = os.path.join(os.path.dirname(__file__), "rootfs")
_ROOT_FOLDERS = ("dev", "proc", "sys", "tmp", "run", "root", "mnt", "home/guest", "var/lib/hvsock")


class Userland:
    """Debian's packages, unpacked for as long as an image is made.

    Args:
        root: an empty folder.
        archive: has the packages.
        packages: those of :data:`PACKAGES`.
    """

    def __init__(self, root: str, archive: Archive, packages: Sequence[Package]) -> None:
        archive.unpack(packages, root)
        self._root = root

    def entries(self) -> Iterator[Entry]:
        """Everything of the guest but kernel modules and hvsock, byte-compiled.

        Raises:
            StateError: a program of the guest does not run here.
        """
        for path in _LEFT_OUT:
            head, tail = os.path.split(os.path.join(self._root, path))
            for name in os.listdir(head) if os.path.isdir(head) else ():
                if name.startswith(tail):
                    _remove(os.path.join(head, name))
        self.compile(os.path.join(self._root, _LIBRARY), self._root)
        yield from from_folder(self._root)
        yield from from_folder(_ROOTFS)
        yield from (cpio.folder(name) for name in _ROOT_FOLDERS)
        yield cpio.character_device("dev/console", 5, 1)
        yield cpio.character_device("dev/null", 1, 3)
        yield cpio.link("init", "bin/busybox")
        yield cpio.link("usr/bin/python3", PYTHON)
        yield cpio.link("etc/os-release", "../usr/lib/os-release")
        busybox = os.path.join(self._root, "bin/busybox")
        for path in _output([busybox, "--list-full"]).split():
            if path != "bin/busybox":
                yield cpio.link(path, "/bin/busybox")

    def compile(self, folder: str, root: str) -> None:
        """Byte-compile all below `folder` by the guest's own Python; `root` is what the guest has as /.

        Raises:
            StateError: the guest's Python does not run here, or a module is none.
        """
        library = os.path.join(self._root, "lib/x86_64-linux-gnu")
        more = os.path.join(self._root, "usr/lib/x86_64-linux-gnu")
        loader = os.path.join(library, "ld-linux-x86-64.so.2")
        python = os.path.join(self._root, "usr/bin", PYTHON)
        compiler = ["-S", "-s", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
        _output(
            [loader, "--library-path", f"{library}:{more}", python, *compiler, "-s", root, "-p", "/", folder],
            PYTHONHOME=os.path.join(self._root, "usr"),
            PYTHONHASHSEED="0",
        )


def from_folder(root: str) -> Iterator[Entry]:
    """What is in a folder; files that may be executed or begin with ``#!`` are made executable.

    Raises:
        StateError: there is something that is neither file, folder nor link.
    """
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files) + [one for one in folders if os.path.islink(os.path.join(folder, one))]:
            path = os.path.join(folder, name)
            found, inside = os.lstat(path), os.path.relpath(path, root)
            if stat.S_ISLNK(found.st_mode):
                yield cpio.link(inside, os.readlink(path))
            elif stat.S_ISREG(found.st_mode):
                with open(path, "rb") as file:
                    data = file.read()
                yield cpio.file(inside, data, executable=bool(found.st_mode & 0o111) or data[:2] == b"#!")
            else:
                raise StateError(f"{path} is neither a file, a folder nor a symbolic link")
        if folder != root:
            yield cpio.folder(os.path.relpath(folder, root))


def kernel_file(root: str) -> str:
    """The kernel in the folder where its package is unpacked."""
    (name,) = (name for name in os.listdir(os.path.join(root, "boot")) if name.startswith("vmlinuz-"))
    return os.path.join(root, "boot", name)


def module_entries(root: str) -> Iterator[Entry]:
    """The kernel modules of the guest, with the files for modprobe.

    Args:
        root: where the kernel's package is unpacked.

    Raises:
        StateError: the kernel lacks a module.
    """
    (release,) = os.listdir(os.path.join(root, "lib/modules"))
    source = os.path.join(root, "lib/modules", release)
    paths = {}
    for folder, _, files in os.walk(source):
        for name in files:
            if known := modules.name_of(name):
                paths[known] = os.path.join(folder, name)
    listed = _contents(os.path.join(source, "modules.builtin"))
    built_in = {one for line in listed.decode().splitlines() if (one := modules.name_of(line))}
    found = list(modules.in_order((*LOADED_MODULES, *OTHER_MODULES), paths, built_in, _contents))
    target = f"lib/modules/{release}"
    needs = _closures(found)
    for module in found:
        yield cpio.file(f"{target}/{module.name}.ko", module.data)
    lines = (f"{name}.ko:{''.join(f' {one}.ko' for one in needs[name])}\n" for name in needs)
    yield cpio.file(f"{target}/modules.dep", "".join(lines).encode())
    yield cpio.file(f"{target}/modules.builtin", listed)
    loaded = (name for name in LOADED_MODULES if name not in built_in)
    yield cpio.file("etc/hvsock/modules", f"{' '.join(loaded)}\n".encode())


def _closures(found: Iterable[modules.Module]) -> dict[str, list[str]]:
    """All modules that each needs, in the order in which modprobe takes them: the nearest first."""
    closures: dict[str, list[str]] = {}
    for module in found:
        needed = dict.fromkeys(one for name in module.needs for one in (*closures.get(name, ())[::-1], name))
        closures[module.name] = list(needed)[::-1]
    return closures


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _output(command: Sequence[str], **environment: str) -> str:
    try:
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        what = getattr(error, "stderr", "") or error
        raise StateError(f"a program of the guest does not run here: {what}") from None
