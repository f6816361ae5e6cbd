"""The supervisor's socket: a JSON line asks, a JSON line answers."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any, Final

from hvsock import errors
from hvsock.errors import HvsockError, NotFoundError, ProtocolError, StateError
from hvsock.fabric import paths

from .runs import CONTROL_SOCKET, Run

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

MAX_LINE_BYTES: Final = 64 << 10
"""Longest line, either way."""
ANSWER_SECONDS: Final = 30.0
"""How long an answer may take, besides what the request itself says."""
STOP_SECONDS: Final = 15.0
"""How long a guest has to switch itself off when it is asked to, if nobody says otherwise."""


def ask(run: Run, action: str, *, seconds: float = 0.0) -> dict[str, Any]:
    """Have the supervisor of a VM do something; returns what there is to tell of the VM then.

    Args:
        run: the VM.
        action: one of "status", "pause", "resume", "reset", "stop", "kill" and "wait" (until the guest is up).
        seconds: how long a stop or a wait may take.

    Raises:
        NotFoundError: the VM does not run.
        StateError: it cannot be done.
        ProtocolError: what answers is no supervisor.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(ANSWER_SECONDS + seconds)
        try:
            paths.at(run.folder, CONTROL_SOCKET, link.connect)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotFoundError(f"the VM {run.name!r} does not run; see: hvsock vm list") from None
        try:
            link.sendall(json.dumps({"do": action, "seconds": seconds}).encode() + b"\n")
            with link.makefile("rb") as file:
                line = file.readline(MAX_LINE_BYTES)
        except TimeoutError:
            raise StateError(f"the supervisor of {run.name!r} did not answer") from None
        except ConnectionError:
            line = b""
    if not line:
        raise StateError(f"the supervisor of {run.name!r} ended before it answered")
    try:
        answer = json.loads(line)
        if "error" not in answer:
            return dict(answer["vm"])
        kind: type[HvsockError] = getattr(errors, answer["error"])
        raise kind(answer["text"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, HvsockError):
            raise
        raise ProtocolError(f"what answers for {run.name!r} is no supervisor") from None
