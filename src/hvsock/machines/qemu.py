"""What a QEMU's command line says of its VM: -uuid, its VmId, and the context id of its vsock device (pure)."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from hvsock.addresses import VmId, parse_number
from hvsock.config.settings import Vm, vm_id_of_cid
from hvsock.constants import VSOCK_CID_ANY, VSOCK_CID_HOST

from .libvirt import name_of

MAX_COMMAND_LINE_BYTES: Final = 256 * 1024
"""Longest command line; those that libvirt makes have some 10 KiB."""
MAX_STATUS_BYTES: Final = 64 * 1024
"""How much of /proc/PID/status is read; the user ids are in its first kilobyte."""

_PROGRAM: Final = re.compile(r"(?:qemu-system-[a-z0-9_]+|qemu-kvm|qemu|kvm)\Z")
_DEVICE: Final = re.compile(r"vhost-vsock-(?:pci|ccw|device)(?:-(?:non-)?transitional)?\Z")
_UIDS: Final = re.compile(rb"^Uid:\t([0-9]+)\t([0-9]+)\t([0-9]+)\t([0-9]+)$", re.MULTILINE)


def parse_command_line(data: bytes) -> Vm | None:
    """The VM of a process by its command line, as /proc/PID/cmdline has it.

    None where the process is no QEMU, or its VM has no vhost-vsock device with one context id. What cannot be
    read of it is passed over: anybody may write anything there.
    """
    if len(data) > MAX_COMMAND_LINE_BYTES or not data.endswith(b"\0"):
        return None
    words = data[:-1].decode("utf-8", "replace").split("\0")
    if not _PROGRAM.match(posixpath.basename(words[0])):
        return None
    found = set(_cids(words))
    if len(found) != 1:
        return None
    cid = found.pop()
    if not VSOCK_CID_HOST < cid < VSOCK_CID_ANY:
        return None
    vm_id, uuid = None, next(_values(words, "uuid"), None)
    try:
        vm_id = vm_id_of_cid(cid) if uuid is None else VmId(uuid)
    except ValueError:
        return None
    return Vm(name_of(_name(words), str(vm_id)), vm_id, cid)


def parse_uids(status: bytes) -> frozenset[int]:
    """The user ids of a process by its /proc/PID/status: real, effective, saved, and of file accesses; or none."""
    found = _UIDS.search(status)
    return frozenset() if found is None else frozenset(map(int, found.groups()))


def _values(words: Sequence[str], option: str) -> Iterator[str]:
    """The values of an option, which is written with one dash or two."""
    for word, value in pairwise(words):
        if word in (f"-{option}", f"--{option}"):
            yield value


def _cids(words: Sequence[str]) -> Iterator[int]:
    for value in _values(words, "device"):
        properties = _properties(value)
        driver = properties.get("driver")
        if not isinstance(driver, str) or not _DEVICE.match(driver):
            continue
        cid = properties.get("guest-cid")
        if isinstance(cid, str):
            cid = parse_number(cid)
        if isinstance(cid, int) and not isinstance(cid, bool):
            yield cid


def _properties(value: str) -> dict[str, Any]:
    """The properties of a device, in either of QEMU's forms."""
    if value.startswith("{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}
    driver, *rest = value.split(",")
    return {"driver": driver.removeprefix("driver="), **dict(part.partition("=")[::2] for part in rest)}


def _name(words: Sequence[str]) -> str | None:
    value = next(_values(words, "name"), None)
    if value is None:
        return None
    parts = value.split(",")
    named = [part.partition("=")[2] for part in parts if part.startswith("guest=")]
    return named[0] if named else parts[0]
