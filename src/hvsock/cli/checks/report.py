"""What a bug report needs: builds, kernel options, transports, QEMU; no secrets, no names of users or machines."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from hvsock import transport
from hvsock._version import __version__
from hvsock.cli.output import mark
from hvsock.config import files
from hvsock.config.settings import Guests, Settings
from hvsock.errors import HvsockError, UsageError
from hvsock.fabric import paths

from . import examine, headed, kernel, vms

MIN_NAME_CHARACTERS: Final = 3
"""Names of this machine that are shorter would be found everywhere in a text. Those of the configuration are taken
out however short they are: whoever chose one can choose another."""
NO_SECRETS: Final = frozenset(
    {"root", "localhost", "hvsock", "default", Settings().libvirt, *transport.Transport, *Guests}
)
"""Names that tell nothing, and occur for other reasons."""
UNUSABLE: Final = "the configuration cannot be used (hvsock doctor says why)"
"""What is told of a configuration that has mistakes: the words of the error may be names of it."""
DISTRIBUTIONS: Final = ("hvsock", "asyncssh", "click", "grpclib", "protobuf", "psrpcore", "qemu.qmp", "rich")
"""Packages whose versions may matter."""

Report = dict[str, Any]


def made() -> Report:
    """The report, with names taken out."""
    path, options = kernel.options()
    found: Report = {
        "hvsock": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": _packages(),
        "system": _system(),
        "machine": platform.machine(),
        "virtualization": _virtualization(),
        "transport": _told(transport.chosen),
        "configuration": _told(lambda: files.settings().where or "none"),
        "qemu": _qemu(),
        "guests": _guests(),
        "kernel_options": {name: options.get(name, "n") for name in kernel.OPTIONS} if path else {},
        "checks": [one.to_json() for one in examine()],
    }
    cleaned: Report = without(found, own_names())
    return cleaned


def _told(ask: Callable[[], str]) -> str:
    """The answer, or why there is none."""
    try:
        return str(ask())
    except UsageError as error:
        return f"unknown: {error}"


def _packages() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _system() -> str:
    if sys.platform == "win32":
        return platform.platform()
    with contextlib.suppress(OSError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {platform.system()} {platform.release()}"
    return f"{platform.system()} {platform.release()}"


def _virtualization() -> str:
    """What this machine is a guest of, as far as its kernel tells."""
    if sys.platform != "linux":
        return "unknown"
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        if not re.search(r"^flags\s*:.*\bhypervisor\b", file.read(), re.MULTILINE):
            return "none"
    names = []
    for name in ("sys_vendor", "product_name"):
        with contextlib.suppress(OSError), open(f"/sys/class/dmi/id/{name}", encoding="utf-8") as file:
            names.append(file.read().strip())
    return f"a guest of {' '.join(filter(None, names)) or 'a hypervisor'}"


def _qemu() -> str:
    try:
        return vms.qemu_says("--version").partition("\n")[0]
    except HvsockError as error:
        return f"none: {error}"


def _guests() -> list[dict[str, Any]]:
    """The VMs of this fabric, without their names."""
    if sys.platform != "linux":
        return []
    from hvsock.vm import runs

    told = ("state", "kernel", "accelerator", "memory", "cpus", "ready", "device_restarts")
    return [{name: getattr(one, name) for name in told} for one in runs.all_runs(paths.fabric_folder())]


def own_names() -> dict[str, str]:
    """What must not be told, and what stands there instead.

    It is the user, the home folder and the machine; and of the configuration the profile, the users of QEMUs, and
    where libvirt is.
    """
    names = {os.path.expanduser("~"): "HOME"}
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    if sys.platform != "win32":
        import pwd

        for uid in {os.getuid(), os.geteuid()}:
            with contextlib.suppress(KeyError):
                users.add(pwd.getpwuid(uid).pw_name)
    names |= dict.fromkeys(users, "USER")
    machine = socket.gethostname()
    names |= {machine: "HOST", machine.partition(".")[0]: "HOST"}
    own = {name: word for name, word in names.items() if len(name) >= MIN_NAME_CHARACTERS}
    return own | _configured_names()


def _configured_names() -> dict[str, str]:
    names = {os.environ.get(files.PROFILE_VARIABLE, ""): "PROFILE"}
    try:
        settings = files.settings()
    except HvsockError as error:
        return names | {str(error): UNUSABLE}
    profile = settings.where.partition(": profiles.")[2]
    names |= {profile: "PROFILE", profile.strip("'\""): "PROFILE"}
    names |= {user: "USER" for user in settings.qemu_users if not user.isdecimal()}  # an id names nobody
    with contextlib.suppress(ValueError):
        place = urlsplit(settings.libvirt)
        names |= {place.netloc: "LIBVIRT", place.hostname or "": "LIBVIRT", place.username or "": "USER"}
    return names | {settings.libvirt: "LIBVIRT"}


def without(value: Any, names: Mapping[str, str]) -> Any:
    """`value`, as JSON has it, with `names` replaced in its texts where no letter or digit is beside them."""
    if isinstance(value, str):
        for name in sorted(names, key=len, reverse=True):
            if name and name not in NO_SECRETS:
                value = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", names[name], value)
        return value
    if isinstance(value, list):
        return [without(one, names) for one in value]
    if isinstance(value, dict):
        return {key: without(one, names) for key, one in value.items()}
    return value


def markdown(report: Report) -> str:
    """The report as an issue takes it."""
    rows = [
        ("hvsock", report["hvsock"]),
        ("Python", report["python"]),
        ("system", f"{report['system']}, {report['machine']}"),
        ("virtualization", report["virtualization"]),
        ("transport", report["transport"]),
        ("configuration", report["configuration"]),
        ("QEMU", report["qemu"]),
        ("packages", ", ".join(f"{name} {version}" for name, version in report["packages"].items())),
        *(
            (f"guest {number}", ", ".join(f"{name} {value}" for name, value in guest.items()))
            for number, guest in enumerate(report["guests"], 1)
        ),
    ]
    options = [f"{name}={value}" for name, value in report["kernel_options"].items()]
    return "\n".join(
        [
            "### hvsock doctor --report",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {_cell(text)} |" for name, text in rows),
            "",
            *_block("Kernel options", options or ["unknown: the kernel's options cannot be read"]),
            *_block("Checks", _lines(report["checks"])),
        ]
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _block(title: str, lines: Iterable[str]) -> list[str]:
    return [f"{title}:", "", "```", *(line.replace("`", "'") for line in lines), "```", ""]


def _lines(checks: Iterable[dict[str, Any]]) -> Iterator[str]:
    for heading, members in headed(checks):
        yield heading
        yield from (f"{mark(one['ok'], one['needed'])} {one['question']} {one['found']}" for one in members)
