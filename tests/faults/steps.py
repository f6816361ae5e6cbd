"""A broker that kills itself at a chosen step: `hvsock up` with one function wrapped.

The step is named by HVSOCK_TEST_STEP. "before" steps die instead of the act, "after" steps right after it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

from hvsock.fabric import messages
from hvsock.fabric.broker.folder import FabricFolder
from hvsock.fabric.broker.handover import Handover
from hvsock.fabric.broker.listeners import Listeners

assert sys.platform == "linux"

VARIABLE: Final = "HVSOCK_TEST_STEP"
_COURIER: Final = messages.COURIER_BYTES


def die() -> NoReturn:
    """Kill -9 of this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")


def _wrap(owner: Any, name: str, when: str, matters: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Have `owner.name` die before or after the call, where `matters(result or None, *arguments)`."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if when == "before" and matters(None, *arguments):
            die()
        result = original(*arguments, **keywords)
        if when == "after" and matters(result, *arguments):
            die()
        return result

    setattr(owner, name, wrapped)


def _is_drained(result: bytes | None, sock: socket.socket, length: int = 0, flags: int = 0) -> bool:
    """Whether a recv took the request of a connect off its connection."""
    if result is None or flags != socket.MSG_DONTWAIT or length != messages.REQUEST_BYTES:
        return False
    return messages.Request.unpack(result).op is messages.Op.CONNECT


def _is_done(result: int | None, sock: socket.socket, data: bytes, *flags: int) -> bool:
    return bytes(data) == messages.DONE


CONNECT_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the courier": lambda: _wrap(Handover, "_reach", "before"),
    "after the courier": lambda: _wrap(Handover, "_reach", "after"),
    "before the descriptor": lambda: _wrap(
        socket, "send_fds", "before", lambda _, s, b, f, *x: len(b[0]) == _COURIER
    ),
    "after the descriptor": lambda: _wrap(
        socket, "send_fds", "after", lambda _, s, b, f, *x: len(b[0]) == _COURIER
    ),
    "after the drain": lambda: _wrap(socket.socket, "recv", "after", _is_drained),
    "before DONE": lambda: _wrap(socket.socket, "send", "before", _is_done),
    "after DONE": lambda: _wrap(socket.socket, "send", "after", _is_done),
}
"""The steps of a connect, in their order."""
BIND_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the bind": lambda: _wrap(Listeners, "bind", "before"),
    "before the record": lambda: _wrap(Listeners, "_write", "before"),
    "after the record": lambda: _wrap(Listeners, "_write", "after"),
    "after the bind": lambda: _wrap(Listeners, "bind", "after"),
    "after the bound socket is sent": lambda: _wrap(socket, "send_fds", "after"),
}
LISTEN_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the mark": lambda: _wrap(Listeners, "mark_listening", "before"),
    "after the mark": lambda: _wrap(Listeners, "mark_listening", "after"),
}
PARTITION_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the folder": lambda: _wrap(
        FabricFolder, "make_partition", "before", lambda _, s, p, *x: p.name == "new"
    ),
    "after the folder": lambda: _wrap(
        FabricFolder, "make_partition", "after", lambda _, s, p, *x: p.name == "new"
    ),
    "before the tree is saved": lambda: _wrap(
        FabricFolder, "save_tree", "before", lambda _, s, tree: "new" in _names(tree)
    ),
    "after the tree is saved": lambda: _wrap(
        FabricFolder, "save_tree", "after", lambda _, s, tree: "new" in _names(tree)
    ),
}


def _names(tree: Any) -> set[str]:
    return {partition.name for partition in tree}


if __name__ == "__main__":
    from hvsock.cli.main import main

    steps: dict[str, Callable[[], None]] = {**CONNECT_STEPS, **BIND_STEPS, **LISTEN_STEPS, **PARTITION_STEPS}
    steps[os.environ[VARIABLE]]()
    sys.argv = ["hvsock", "up"]
    main()
