"""What both sides say of themselves without being asked: the intrinsic items of the original, for Linux."""

from __future__ import annotations

import contextlib
import platform
import re
import socket
import sys
from typing import Final

from hvsock._version import __version__

if sys.platform != "linux":
    raise ImportError("the intrinsic items are those of Linux guests")

_LOCAL_ADDRESS = re.compile(r"\|-- ([0-9.]+)\s+/32 host LOCAL")
_LOOPBACK_PREFIX: Final = "127."


def of_guest() -> dict[str, bytes]:
    """The items of the pool auto, under the names that the original has for them."""
    release = _os_release()
    major, _, minor = release.get("VERSION_ID", "").partition(".")
    items = {
        "FullyQualifiedDomainName": full_name(),
        "IntegrationServicesVersion": __version__,
        "NetworkAddressIPv4": ";".join(_addresses_v4()),
        "NetworkAddressIPv6": ";".join(_addresses_v6()),
        "OSName": release.get("PRETTY_NAME") or release.get("NAME") or platform.system(),
        "OSVersion": platform.release(),
        "OSMajorVersion": major,
        "OSMinorVersion": minor,
        "OSBuildNumber": platform.release(),
        "CSDVersion": "",
        "ProcessorArchitecture": platform.machine(),
    }
    return {key: value.encode("utf-8", "replace") for key, value in items.items()}


def of_host(vm_name: str, vm_id: str) -> dict[str, bytes]:
    """The items of the pool auto_external.

    Args:
        vm_name: the guest's partition by name.
        vm_id: and by its VmId.
    """
    items = {
        "HostName": socket.gethostname(),
        "PhysicalHostName": socket.gethostname(),
        "PhysicalHostNameFullyQualified": full_name(),
        "VirtualMachineName": vm_name,
        "VirtualMachineId": vm_id.upper(),
    }
    return {key: value.encode("utf-8", "replace") for key, value in items.items()}


def full_name() -> str:
    """This machine's name with its domain, as far as the machine itself knows it: no name server is asked."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        for line in _read("/etc/hosts").splitlines():
            _, *names = line.partition("#")[0].split() or [""]
            if name in names:
                return next((one for one in names if one.startswith(f"{name}.")), name)
    return name


def _os_release() -> dict[str, str]:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()
    return {}


def _addresses_v4() -> list[str]:
    with contextlib.suppress(OSError):
        found = dict.fromkeys(_LOCAL_ADDRESS.findall(_read("/proc/net/fib_trie")))
        return [one for one in found if not one.startswith(_LOOPBACK_PREFIX)]
    return []


def _addresses_v6() -> list[str]:
    with contextlib.suppress(OSError):
        lines = [line.split() for line in _read("/proc/net/if_inet6").splitlines()]
        texts = [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line[0])) for line in lines if line[-1] != "lo"]
        return list(dict.fromkeys(texts))
    return []


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(1 << 20)
