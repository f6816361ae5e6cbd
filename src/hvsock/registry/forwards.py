"""Forwards: where the existing server is that a service stands for.

Pure: no file and no socket. A forward leads to a Unix socket, or to a port of this machine's loopback addresses;
anything further away would make a service of somebody else's server.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Final, NamedTuple

from hvsock.errors import UsageError

MAX_FORWARD_PATH_BYTES: Final = 107
"""Longest path that a Unix socket address holds, without its final zero (unix(7))."""
MAX_TCP_PORT: Final = 65_535
QUOTED_CHARACTERS: Final = 160
"""How much of a text that is no forward its refusal repeats."""
EXAMPLES: Final = "unix:/run/web.sock or tcp:127.0.0.1:8080"


class Forward(NamedTuple):
    """Where an existing server listens; ``str()`` is its written form.

    Attributes:
        address: the absolute path of a Unix socket, or a loopback address of IPv4 or IPv6.
        port: the TCP port; None for a Unix socket.
    """

    address: str
    port: int | None = None

    def __str__(self) -> str:
        if self.port is None:
            return f"unix:{self.address}"
        return f"tcp:[{self.address}]:{self.port}" if ":" in self.address else f"tcp:{self.address}:{self.port}"


def parse_forward(text: str) -> Forward:
    """The forward that `text` spells.

    Args:
        text: ``unix:PATH`` with an absolute path, or ``tcp:ADDRESS:PORT`` with a loopback address, that of
            IPv6 in brackets.

    Raises:
        UsageError: anything else; one line says what is wrong with it.
    """
    if not isinstance(text, str):
        raise UsageError(f"a forward is text like {EXAMPLES}, not {type(text).__name__}")
    kind, colon, rest = text.partition(":")
    if not colon or kind not in ("unix", "tcp"):
        raise UsageError(f"a forward is like {EXAMPLES}, not {_quoted(text)}")
    return _unix(rest) if kind == "unix" else _tcp(rest)


def check_forward(forward: Forward | None) -> Forward | None:
    """`forward`, if it is one that :func:`parse_forward` makes; None is none.

    Raises:
        UsageError: it is not.
    """
    return None if forward is None else parse_forward(str(forward))


def _unix(path: str) -> Forward:
    if "?hybrid=" in path:
        raise UsageError(
            f"a forward leads to a server of this machine, not into a VMM's guest: {_quoted(path)}; for that, run "
            "`hvsock listen` with --exec 'hvsock connect unix:...'"
        )
    if not path.startswith("/"):
        raise UsageError(f"the path of a forward is absolute, like unix:/run/web.sock, not {_quoted(path)}")
    if not path.isprintable():
        raise UsageError(f"the path of a forward is printable text: {_quoted(path)}")
    if path.endswith("/"):
        raise UsageError(f"the path of a forward is that of a socket, not of a folder: {_quoted(path)}")
    length = len(os.fsencode(path))
    if length > MAX_FORWARD_PATH_BYTES:
        raise UsageError(f"the path of a Unix socket has at most {MAX_FORWARD_PATH_BYTES} bytes, not {length}")
    return Forward(path)


def _tcp(text: str) -> Forward:
    host, colon, digits = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise UsageError(
            f"a forward to TCP is like tcp:127.0.0.1:8080 or tcp:[::1]:8080, not {_quoted(text)}"
        ) from None
    if bracketed is not (address.version == 6):
        raise UsageError(f"an address of IPv6, and no other, is in brackets: {_quoted(text)}")
    if not address.is_loopback or "%" in host:
        raise UsageError(
            f"a forward leads to this machine alone: {host} is no loopback address like 127.0.0.1 or [::1]"
        )
    if not (
        colon and digits.isascii() and digits.isdecimal() and len(digits) <= 5 and 0 < int(digits) <= MAX_TCP_PORT
    ):
        raise UsageError(f"a TCP port is 1 to {MAX_TCP_PORT}, not {_quoted(digits)}")
    return Forward(str(address), int(digits))


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= QUOTED_CHARACTERS else f"{text[:QUOTED_CHARACTERS]!r}..."
