"""Objects in XML as psrpcore 0.3.1 reads them, where PowerShell or [MS-PSRP] writes them otherwise.

What psrpcore reads already stays as it is. Whoever calls has refused comments, declarations and the like, so each
`<` begins a tag.
"""

from __future__ import annotations

import re
from typing import Final

_SET: Final = re.compile(rb"<(?P<end>/?)MS(?P<name> N=(?:\"[^\"<]*\"|'[^'<]*'))? ?(?P<empty>/?)>")
_NAMED_SET: Final = b"<MS N="
_INVOCATION: Final = re.compile(
    rb"(<B N=\"(?:SerializeExtendedInfo|InformationalRecord_SerializeInvocationInfo)\">)true(?=</B>)"
)


def readable(payload: bytes) -> bytes:
    """The same object, as psrpcore reads it.

    - A set of members that is a member itself, `<MS N="...">` in an `<MS>`, becomes an object of that name.
    - Records that tell of their invocation as PowerShell 2 does, and [MS-PSRP] prints, no longer do: psrpcore
      needs what version 3 added to it, and nobody here looks at it.
    """
    if _NAMED_SET in payload:
        payload = _without_named_sets(payload)
    if b"InvocationInfo_" in payload and b"SerializeExtent" not in payload:
        payload = _INVOCATION.sub(rb"\1false", payload)
    return payload


def _without_named_sets(payload: bytes) -> bytes:
    named: list[bool] = []
    """Of each set that is open, whether it has a name."""

    def put(tag: re.Match[bytes]) -> bytes:
        if tag["end"]:
            return b"</MS></Obj>" if named and named.pop() else tag[0]
        if not tag["empty"]:
            named.append(tag["name"] is not None)
        if tag["name"] is None:
            return tag[0]
        return b"<Obj%b><MS%b>%b" % (tag["name"], tag["empty"], b"</Obj>" if tag["empty"] else b"")

    return _SET.sub(put, payload)
