"""What each VMM does in its own way, as named profiles (pure).

Sources: the VMMs' own code and trackers; none of this is written down as a common protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from hvsock.errors import NotFoundError


class Answers(Enum):
    """Which number comes after ``OK``, in the form in which the service was asked for: a port or a GUID."""

    NUMBERED = "a number of the connection"
    """The port that the VMM gave to its own end, or the id of the channel."""
    REPEATED = "the service that was asked for"
    NOTHING = "nothing: there is no handshake"


class Form(StrEnum):
    """How a service is written in the path where a guest's connections to it go."""

    PORT = "port"
    GUID = "guid"


PORT_REQUEST_BYTES: Final = 32
"""Longest request of the VMMs that take ports alone, with its line feed: all of them read into a buffer of this
size. ``CONNECT 4294967295`` has 19."""
GUID_REQUEST_BYTES: Final = 45
"""Length of ``CONNECT`` with a GUID, with its line feed."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One VMM's way with hybrid sockets.

    Attributes:
        name: what it is called where one is chosen.
        answers: what follows ``OK``.
        guids: whether it takes GUIDs besides ports.
        longest_request: bytes of a request with its line feed that it reads at most.
        takes_pieces: whether a request may come in pieces.
        keeps_early_data: whether bytes that come before its answer reach the guest.
        keeps_half_close: whether the end of one direction leaves the other alone.
        listeners: the forms of a listener's path, in the order in which it tries them; none where a path is
            configured for each port.
        note: what else is known, in one line.
    """

    name: str
    answers: Answers
    guids: bool = False
    longest_request: int = PORT_REQUEST_BYTES
    takes_pieces: bool = True
    keeps_early_data: bool = True
    keeps_half_close: bool = True
    listeners: tuple[Form, ...] = (Form.PORT,)
    note: str = ""

    @property
    def has_handshake(self) -> bool:
        """Whether it asks which service is meant; else each has a socket of its own."""
        return self.answers is not Answers.NOTHING


HVSOCK: Final = Profile(
    "hvsock",
    Answers.REPEATED,
    guids=True,
    longest_request=GUID_REQUEST_BYTES,
    listeners=(Form.PORT, Form.GUID),
    note="what `hvsock hybrid serve` is by default",
)
FIRECRACKER: Final = Profile(
    "firecracker",
    Answers.NUMBERED,
    takes_pieces=False,
    keeps_half_close=False,
    note="a refusal is a close without a word; at most 1,023 connections; gives up after 2 s",
)
CLOUD_HYPERVISOR: Final = Profile(
    "cloud-hypervisor",
    Answers.NUMBERED,
    note="as Firecracker, of which it was made; half-close since 2026",
)
VHOST_DEVICE: Final = Profile(
    "vhost-device-vsock",
    Answers.REPEATED,
    takes_pieces=False,
    keeps_early_data=False,
    keeps_half_close=False,
    note="closes at once before its VM runs; never answers a guest that connects where nobody listens",
)
LIBKRUN: Final = Profile(
    "libkrun",
    Answers.NOTHING,
    listeners=(),
    note="krun_add_vsock_port2 names a path for each port; who connects to it is connected",
)
OPENVMM: Final = Profile(
    "openvmm",
    Answers.NUMBERED,
    guids=True,
    longest_request=GUID_REQUEST_BYTES,
    keeps_early_data=False,
    listeners=(Form.PORT, Form.GUID),
    note="one client that says nothing holds up all others",
)

PROFILES: Final = {
    one.name: one for one in (HVSOCK, FIRECRACKER, CLOUD_HYPERVISOR, VHOST_DEVICE, LIBKRUN, OPENVMM)
}
"""By name, that of this project first."""


def profile_named(name: str) -> Profile:
    """The profile called `name`, in any case.

    Raises:
        NotFoundError: there is none.
    """
    found = PROFILES.get(name.lower())
    if found is None:
        raise NotFoundError(f"there is no profile {name!r}; there are: {', '.join(PROFILES)}")
    return found
