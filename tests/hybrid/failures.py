"""Every way in which a handshake fails: what the other side does, and what has to come of it."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvsock.errors import ProtocolError, UsageError
from hvsock.hybrid.handshake import MAX_ANSWER_BYTES
from hvsock.hybrid.profiles import PROFILES, Profile

assert sys.platform == "linux"

from tests.hybrid.peers import Act, guest_of, hangs_up, is_silent_after, says, says_first, vmm

PORT = 52
"""What is connected to."""
NO_PORT = "999e53d4-3d5c-4c3e-8779-bed06ec056e1"
"""A service with a GUID that is no port's."""


def _refused(text: str) -> tuple[type[Exception], str]:
    return ConnectionRefusedError, text


ANSWERS: dict[str, tuple[Act, type[Exception], str]] = {
    "closed without a word": (says(), *_refused("closed without an answer: nothing listens on 52")),
    "closed with the request unread": (hangs_up, *_refused("closed without an answer")),
    "refused in words": (says(b"ERR no such port\n"), *_refused("it answered 'ERR no such port'")),
    "refused before the request": (says_first(b"ERR too many\n"), *_refused("'ERR too many'")),
    "no hybrid socket": (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), *_refused("400 Bad Request")),
    "cut": (says(b"OK 10"), ConnectionResetError, "in the midst of its answer, 'OK 10'"),
    "no number": (says(b"OK\n"), ProtocolError, "like 'OK 52', not 'OK'"),
    "garbage": (says(b"\x00\xff\x1b[31m\n"), ProtocolError, r"not '\x00\xff\x1b[31m'"),
    "no end": (is_silent_after(b"O" * MAX_ANSWER_BYTES), ProtocolError, "more than 256 bytes"),
    "a flood": (says(b"x" * 100_000), ProtocolError, "more than 256 bytes"),
    "silence": (is_silent_after(), TimeoutError, "did not answer"),
    "silence in the midst": (is_silent_after(b"OK 1"), TimeoutError, "its answer stopped after 'OK 1'"),
}
"""What a VMM may say, of those that have a handshake; and the error with a part of its text."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One way to fail.

    Attributes:
        name: what happens.
        profile: the VMM's.
        path: where it is connected to.
        service: which service.
        kind: the error that has to come.
        text: a part of what it says.
    """

    name: str
    profile: Profile
    path: str
    service: int | str
    kind: type[Exception]
    text: str


@contextlib.contextmanager
def failures(folder: Path) -> Iterator[list[Failure]]:
    """All that can go wrong with every profile, with the peers at work: two dozen places in `folder`.

    Which VMM a peer is does not show in what goes wrong, so profiles share them; what a VMM does that has no such
    service is its own.
    """
    with contextlib.ExitStack() as stack:
        paths = {
            name: stack.enter_context(vmm(folder / f"a{number}", act))
            for number, (name, (act, _, _)) in enumerate(ANSWERS.items())
        }
        ended, full, file = folder / "ended", folder / "full", folder / "file"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(ended))
        file.touch()
        crowded = stack.enter_context(socket.socket(socket.AF_UNIX))
        crowded.bind(str(full))
        crowded.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(full))
        places: list[tuple[str, str, type[Exception], str]] = [
            ("no path", str(folder / "none"), FileNotFoundError, "is the VM running"),
            ("a path below a file", str(file / "v"), NotADirectoryError, "Not a directory"),
            ("a file", str(file), *_refused("and no socket")),
            ("a VMM that has ended", str(ended), *_refused("the VMM that did has ended")),
            ("a full queue", str(full), TimeoutError, "queue of new connections stayed full"),
        ]
        found = []
        for profile in PROFILES.values():
            found += [Failure(name, profile, path, PORT, kind, text) for name, path, kind, text in places]
            if not profile.has_handshake:
                continue
            for name, (_, kind, text) in ANSWERS.items():
                found.append(Failure(name, profile, paths[name], PORT, kind, text))
            own = stack.enter_context(vmm(folder / profile.name, guest_of(profile, {"1"})))
            found.append(Failure("no such service", profile, own, PORT, *_refused("nothing listens on 52")))
            if not profile.guids:
                found.append(Failure("a GUID", profile, own, NO_PORT, UsageError, "ports alone"))
            else:
                found.append(Failure("no such GUID", profile, own, NO_PORT, *_refused(f"listens on {NO_PORT}")))
        yield found


REQUESTS: dict[str, bytes] = {
    "nothing": b"",
    "a beginning": b"CONNECT 5",
    "no request": b"GET / HTTP/1.1\r\n",
    "an empty line": b"\n",
    "no port": b"CONNECT x\n",
    "two ports": b"CONNECT 5 6\n",
    "a port that is too large": b"CONNECT 4294967296\n",
    "a negative port": b"CONNECT -1\n",
    "binary": b"\x00\xff" * 50,
    "no end": b"CONNECT " + b"0" * 100,
    "a flood": b"x" * 100_000,
    "a GUID that is none": b"CONNECT 999e53d4-3d5c-4c3e-8779\n",
    "a service where no broker answers": b"CONNECT 52\n",
    "the same with payload": b"CONNECT 52\nhello",
    "a GUID where no broker answers": f"CONNECT {NO_PORT}\n".encode(),
}
"""What programs may say to a server of ours; none of it is served where no broker answers."""
