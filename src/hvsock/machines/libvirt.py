"""What libvirt says of a domain: its UUID, which is the VmId, and the context id of its vsock device (pure)."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as ET

from hvsock.addresses import VmId
from hvsock.config.settings import Vm, vm_id_of_cid
from hvsock.errors import ProtocolError

MAX_DOMAIN_CHARACTERS: Final = 1 << 20
"""Longest description of a domain; one with many disks has some 50,000 characters."""
MAX_DOMAINS: Final = 1024
"""Most domains that are looked at: each is one call of virsh."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_CID: Final = re.compile(r"[0-9]{1,10}\Z", re.ASCII)
MAX_NAME_CHARACTERS: Final = 100
"""Longest name that is taken over, as that of a partition."""


def parse_list(text: str) -> tuple[str, ...]:
    """The UUIDs that ``virsh list --uuid`` prints.

    Raises:
        ProtocolError: something else is in it, or they are too many.
    """
    found = text.split()
    if len(found) > MAX_DOMAINS:
        raise ProtocolError(f"libvirt has {len(found)} domains, and at most {MAX_DOMAINS} are looked at")
    for one in found:
        if not _UUID.match(one):
            raise ProtocolError(f"virsh list --uuid printed {one[:60]!a}, which is no UUID")
    return tuple(found)


def parse_domain(text: str) -> Vm | None:
    """The VM that a domain's XML describes; None where it has no vsock device, or one without a context id yet.

    Raises:
        ProtocolError: it is no domain.
    """
    if len(text) > MAX_DOMAIN_CHARACTERS:
        raise ProtocolError(f"a domain's XML has at most {MAX_DOMAIN_CHARACTERS} characters, not {len(text)}")
    if "<!" in text.replace("<!--", ""):  # entities are the means to make much of little
        raise ProtocolError("a domain's XML has declarations, and libvirt writes none")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a domain's XML is none: {error}") from None
    uuid = (root.findtext("uuid") or "").strip().lower()
    if root.tag != "domain" or not _UUID.match(uuid):
        raise ProtocolError("it is no domain's XML: there is no <domain> with a <uuid>")
    device = root.find("devices/vsock/cid")
    address = "" if device is None else device.get("address", "")
    if not _CID.match(address):
        return None
    try:
        vm_id_of_cid(cid := int(address))
    except ValueError as error:
        raise ProtocolError(f"domain {uuid}: {error}") from None
    return Vm(name_of(root.findtext("name"), uuid), VmId(uuid), cid)


def name_of(name: str | None, other: str) -> str:
    """`name` where it can be shown and is not too long, else `other`."""
    name = (name or "").strip()
    return name if name and name.isprintable() and len(name) <= MAX_NAME_CHARACTERS else other
