"""What this machine's Linux kernel was built with and has loaded; nothing is loaded or opened to find out."""

from __future__ import annotations

import gzip
import os
import platform
import zlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from .check import Answer, no, yes

MAX_CONFIG_BYTES: Final = 4 << 20
"""Most of a kernel's options that is read; distributions' have 300 KiB."""


class Module(NamedTuple):
    """A part of the kernel that may be a module.

    Attributes:
        name: the module's.
        option: of the kernel's build.
    """

    name: str
    option: str


VSOCK: Final = Module("vsock", "CONFIG_VSOCKETS")
LOOPBACK: Final = Module("vsock_loopback", "CONFIG_VSOCKETS_LOOPBACK")
VIRTIO: Final = Module("vmw_vsock_virtio_transport", "CONFIG_VIRTIO_VSOCKETS")
HYPERV: Final = Module("hv_sock", "CONFIG_HYPERV_VSOCKETS")
VMCI: Final = Module("vmw_vsock_vmci_transport", "CONFIG_VMWARE_VMCI_VSOCKETS")
VHOST: Final = Module("vhost_vsock", "CONFIG_VHOST_VSOCK")
MODULES: Final = (VSOCK, LOOPBACK, VIRTIO, HYPERV, VMCI, VHOST)

OPTIONS: Final = (*(one.option for one in MODULES), "CONFIG_HYPERV", "CONFIG_KVM", "CONFIG_USER_NS", "CONFIG_UNIX")
"""What a bug report tells of the kernel's build."""


def parse_options(text: str) -> dict[str, str]:
    """The options in a kernel's .config: "y", "m" or a value; those that are not set have "n"."""
    found = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            name, _, value = line.partition("=")
            found[name] = value
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            found[line.split()[1]] = "n"
    return found


def config_paths(release: str) -> tuple[str, ...]:
    """Where distributions and kernels keep the options of the kernel that runs."""
    return ("/proc/config.gz", f"/boot/config-{release}", f"/lib/modules/{release}/config")


def options(paths: tuple[str, ...] | None = None) -> tuple[str | None, dict[str, str]]:
    """The file with the running kernel's options, and these; (None, {}) where none can be read."""
    for path in config_paths(platform.release()) if paths is None else paths:
        try:
            with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
                data = file.read(MAX_CONFIG_BYTES)
        except (OSError, EOFError, zlib.error):
            continue
        return path, parse_options(data.decode("utf-8", "replace"))
    return None, {}


class State(NamedTuple):
    """What there is of a module.

    Attributes:
        is_there: whether it is loaded or built in.
        words: what there is.
        cure: what to do; None where it is there.
    """

    is_there: bool
    words: str
    cure: str | None = None


def state(module: Module, known: Mapping[str, str], *, root: str = "/") -> State:
    """What there is of `module`.

    Args:
        module: which.
        known: the kernel's options, as far as they are known.
        root: where /sys and /lib are.
    """
    built = known.get(module.option)
    if os.path.isdir(os.path.join(root, "sys/module", module.name)):
        return State(True, f"{module.name} is {'built in' if built == 'y' else 'loaded'}")
    if built == "y":  # the kernel lists those that have parameters only
        return State(True, f"{module.name} is built in")
    folder = os.path.join(root, "lib/modules", platform.release())
    if _lists(os.path.join(folder, "modules.builtin"), module.name):
        return State(True, f"{module.name} is built in")
    load = f"as root: modprobe {module.name}"
    if _lists(os.path.join(folder, "modules.dep"), module.name):
        return State(False, f"{module.name} is not loaded", load)
    if built == "m":
        text = f"{module.name} is a module of this kernel, and {folder} has no file of it"
        return State(False, text, f"install the package with the kernel's modules, then {load}")
    if built is not None or (known and module.option not in known):
        return State(False, f"this kernel has no {module.name}", f"boot a kernel with {module.option}=m")
    return State(False, f"{module.name} is not loaded, and its file is not there", f"{load}; see {module.option}")


def _lists(path: str, name: str) -> bool:
    """Whether one of depmod's files names a module; these have dashes or underscores as their files do."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                found = os.path.basename(line.split(":", 1)[0].strip()).partition(".ko")[0]
                if found.replace("-", "_") == name:
                    return True
    except OSError:
        return False
    return False


def answer(*modules: Module) -> Answer:
    """Whether one of `modules` is there."""
    _, known = options()
    states = [state(one, known) for one in modules]
    there = [one.words for one in states if one.is_there]
    if there:
        return yes(f"yes: {', '.join(there)}")
    cures = dict.fromkeys(one.cure for one in states if one.cure)
    return no(f"no: {'; '.join(one.words for one in states)}", "; or ".join(cures))
