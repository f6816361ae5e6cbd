"""Addresses as URLs, of every kind (pure).

- ``hvsocket://VM/SERVICE``: names and all, as :func:`hvsock.addresses.parse_url` has it.
- ``vsock://CID:PORT``: the same address in the numbers of AF_VSOCK; a CID may be ``any``, ``host`` or ``local``.
  It says nothing of the transport, as CIDs are known to each.
- ``unix:PATH?hybrid=PORT``: a service of the guest whose VMM is at PATH, or of its host for a listener; PORT
  may be a GUID, and ``&profile=`` names the VMM. Question marks and the like in a path are percent-encoded.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from .addresses import (
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_WILDCARD,
    URL_SCHEME,
    AddressText,
    ServiceId,
    VmId,
    describe_vm_id,
    parse_number,
    parse_service_id,
    parse_url,
)
from .constants import VSOCK_CID_ANY, VSOCK_CID_HOST, VSOCK_CID_LOCAL, VSOCK_CID_MAX, VSOCK_PORT_MAX
from .errors import NotFoundError

VSOCK_SCHEME: Final = "vsock"
HYBRID_SCHEME: Final = "unix"
MAX_URL_CHARACTERS: Final = 16 * 1024
"""Longest URL: a path of PATH_MAX bytes, each percent-encoded, and some words."""

_WORDS: Final = {"any": VSOCK_CID_ANY, "host": VSOCK_CID_HOST, "local": VSOCK_CID_LOCAL}
_VM_IDS: Final = {
    VSOCK_CID_ANY: HV_GUID_WILDCARD,
    VSOCK_CID_HOST: HV_GUID_PARENT,
    VSOCK_CID_LOCAL: HV_GUID_LOOPBACK,
}
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_QUOTED_CHARACTERS: Final = 100


class HybridText(NamedTuple):
    """A ``unix:`` URL.

    Attributes:
        path: the VMM's.
        service: what is meant, a port or a GUID.
        profile: the VMM's profile, or None where none is named.
    """

    path: str
    service: ServiceId
    profile: str | None = None


def is_hybrid(address: object) -> bool:
    """Whether an address is a ``unix:`` URL, well made or not."""
    return isinstance(address, str) and address[: len(HYBRID_SCHEME) + 1].lower() == f"{HYBRID_SCHEME}:"


def parse(text: str) -> AddressText | HybridText:
    """Take a URL of any kind apart; names are decoded and not looked up.

    Raises:
        ValueError: it is none, and says what it lacks.
    """
    if len(text) > MAX_URL_CHARACTERS:
        raise ValueError(f"an address has at most {MAX_URL_CHARACTERS} characters, not {len(text)}")
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if scheme == VSOCK_SCHEME:
        return _vsock(text)
    if scheme == HYBRID_SCHEME:
        return _hybrid(text)
    if scheme == URL_SCHEME:
        return parse_url(text)
    raise ValueError(
        f"not an address: {_shown(text)} (expected like {URL_SCHEME}://parent/HV%20Socket%20Demo, "
        f"{VSOCK_SCHEME}://2:2761 or {HYBRID_SCHEME}:/run/vm.sock?hybrid=2761)"
    )


def _vsock(text: str) -> AddressText:
    rest = text.partition(":")[2]
    left, colon, right = rest.removeprefix("//").rpartition(":")
    if not rest.startswith("//") or not colon:
        raise ValueError(f"{_shown(text)} is no {VSOCK_SCHEME}://CID:PORT")
    cid = _WORDS.get(left.lower())
    if cid is None:
        cid = _number(left, VSOCK_CID_MAX)
        if cid is None:
            words = ", ".join(_WORDS)
            raise ValueError(f"the CID in {_shown(text)} is a number up to {VSOCK_CID_MAX}, or {words}")
    port = _number(right, VSOCK_PORT_MAX)
    if port is None:
        raise ValueError(f"the port in {_shown(text)} is a number up to {VSOCK_PORT_MAX}")
    vm_id = _VM_IDS.get(cid)
    return AddressText(describe_vm_id(VmId.from_cid(cid) if vm_id is None else vm_id), str(port))


def _hybrid(text: str) -> HybridText:
    from .hybrid.profiles import profile_named  # here, as few addresses are of this kind

    before, question, query = text.partition(":")[2].partition("?")
    if before.startswith("//"):
        before = before[2:]
        if not before.startswith("/"):
            raise ValueError(f"{_shown(text)} names a host: a path is like {HYBRID_SCHEME}:/run/vm.sock")
    if not question:
        raise ValueError(f"{_shown(text)} says no service: add ?hybrid=PORT, a port or a GUID")
    path = _decoded(before, text)
    if not path or path.endswith("/") or path.startswith("//") or "\0" in path or "#" in before:
        raise ValueError(f"{_shown(text)} has no path of a socket before the question mark")
    service, profile = None, None
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        value = _decoded(value, text)
        if key == "hybrid" and equals and service is None:
            service = parse_service_id(value)
            if service is None:
                raise ValueError(f"hybrid= in {_shown(text)} is a port or a GUID")
        elif key == "profile" and equals and profile is None:
            try:
                profile = profile_named(value).name
            except NotFoundError as error:
                raise ValueError(f"{_shown(text)}: {error}") from None
        else:
            raise ValueError(f"{_shown(text)} may have hybrid=PORT and profile=NAME, once each, and nothing else")
    if service is None:
        raise ValueError(f"{_shown(text)} says no service: add ?hybrid=PORT, a port or a GUID")
    return HybridText(path, service, profile)


def _decoded(text: str, whole: str) -> str:
    from urllib.parse import unquote

    if re.search("%(?![0-9a-fA-F]{2})", text):
        raise ValueError(f"{_shown(whole)} has a % with no two hexadecimal digits behind it")
    return unquote(text, errors="surrogateescape")


def _number(text: str, most: int) -> int | None:
    number = parse_number(text)
    return number if number is not None and number <= most else None


def _shown(text: str) -> str:
    return ascii(text) if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]!a}..."
