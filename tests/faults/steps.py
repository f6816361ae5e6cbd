"""A broker that kills or stops itself at a chosen step: `hvsock up` with one function wrapped.

"before" steps die instead of the act, "after" steps right after it. With HVSOCK_TEST_STOP set, the broker stops
once instead (SIGSTOP), and goes on when it is let.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from hvsock.fabric import messages
from hvsock.fabric.broker.connections import Connections
from hvsock.fabric.broker.counters import Counters
from hvsock.fabric.broker.folder import FabricFolder
from hvsock.fabric.broker.handover import Delivery, Handover
from hvsock.fabric.broker.listeners import Listeners
from hvsock.fabric.broker.waiting import WaitingRoom

assert sys.platform == "linux"

STOP_VARIABLE: Final = "HVSOCK_TEST_STOP"


def strike() -> None:
    """Kill -9 of this process, or its stop, for the first time."""
    if STOP_VARIABLE not in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    elif os.environ[STOP_VARIABLE]:
        os.environ[STOP_VARIABLE] = ""
        os.kill(os.getpid(), signal.SIGSTOP)


def wrap(owner: Any, name: str, when: str, matters: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Have `owner.name` die before or after the call, where `matters(result or None, *arguments)`."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if when == "before" and matters(None, *arguments):
            strike()
        result = original(*arguments, **keywords)
        if when == "after" and matters(result, *arguments):
            strike()
        return result

    setattr(owner, name, wrapped)


def _is_drained(result: bytes | None, sock: socket.socket, length: int = 0, flags: int = 0) -> bool:
    """Whether a recv took the request of a connect off its connection."""
    if result is None or flags != socket.MSG_DONTWAIT or length != messages.REQUEST_BYTES:
        return False
    return messages.Request.unpack(result).op is messages.Op.CONNECT


def _is_courier(_: None, sock: socket.socket, buffers: list[bytes], *arguments: Any) -> bool:
    return len(buffers[0]) in (messages.COURIER_BYTES, messages.DEVICE_MESSAGE_BYTES)


def _is_done(result: int | None, sock: socket.socket, data: bytes, *flags: int) -> bool:
    return bytes(data) == messages.DONE


CONNECT_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the request is read": lambda: wrap(Handover, "__init__", "before"),
    "before the courier": lambda: wrap(Handover, "_reach", "before"),
    "after the courier": lambda: wrap(Handover, "_reach", "after"),
    "after it is written down": lambda: wrap(Connections, "begin", "after"),
    "before the descriptor": lambda: wrap(socket, "send_fds", "before", _is_courier),
    "after the descriptor": lambda: wrap(socket, "send_fds", "after", _is_courier),
    "after it is counted": lambda: wrap(Counters, "accepted", "after"),
    "after it is marked as counted": lambda: wrap(Connections, "counted", "after"),
    "after the drain": lambda: wrap(socket.socket, "recv", "after", _is_drained),
    "before DONE": lambda: wrap(socket.socket, "send", "before", _is_done),
    "after DONE": lambda: wrap(socket.socket, "send", "after", _is_done),
    "after the delivery": lambda: wrap(Delivery, "__init__", "after"),
}
"""The steps of a connect, in their order."""
REFUSAL_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the refusal": lambda: wrap(Handover, "_refuse", "before"),
    "after the refusal": lambda: wrap(Handover, "_refuse", "after"),
}
WAIT_STEPS: Final[dict[str, Callable[[], None]]] = {
    "after it began to wait": lambda: wrap(WaitingRoom, "join", "after"),
    "before it is tried again": lambda: wrap(WaitingRoom, "_try", "before"),
}
BIND_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the bind": lambda: wrap(Listeners, "bind", "before"),
    "before the record": lambda: wrap(Listeners, "_write", "before"),
    "after the record": lambda: wrap(Listeners, "_write", "after"),
    "after the bind": lambda: wrap(Listeners, "bind", "after"),
    "after the bound socket is sent": lambda: wrap(socket, "send_fds", "after"),
}
LISTEN_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the mark": lambda: wrap(Listeners, "mark_listening", "before"),
    "after the mark": lambda: wrap(Listeners, "mark_listening", "after"),
}
PARTITION_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the folder": lambda: wrap(
        FabricFolder, "make_partition", "before", lambda _, s, p, *x: p.name == "new"
    ),
    "after the folder": lambda: wrap(FabricFolder, "make_partition", "after", lambda _, s, p, *x: p.name == "new"),
    "before the tree is saved": lambda: wrap(
        FabricFolder, "save_tree", "before", lambda _, s, tree: "new" in _names(tree)
    ),
    "after the tree is saved": lambda: wrap(
        FabricFolder, "save_tree", "after", lambda _, s, tree: "new" in _names(tree)
    ),
}


REMOVAL_STEPS: Final[dict[str, Callable[[], None]]] = {
    "before the smaller tree is saved": lambda: wrap(
        FabricFolder, "save_tree", "before", lambda _, s, tree: "vm" not in _names(tree)
    ),
    "after the smaller tree is saved": lambda: wrap(
        FabricFolder, "save_tree", "after", lambda _, s, tree: "vm" not in _names(tree)
    ),
    "after its listeners are removed": lambda: wrap(FabricFolder, "remove_partition", "before"),
    "after its folder is removed": lambda: wrap(FabricFolder, "remove_partition", "after"),
}


def _names(tree: Any) -> set[str]:
    return {partition.name for partition in tree}


STEPS: Final = {
    **CONNECT_STEPS,
    **REFUSAL_STEPS,
    **WAIT_STEPS,
    **BIND_STEPS,
    **LISTEN_STEPS,
    **PARTITION_STEPS,
    **REMOVAL_STEPS,
}
"""All of them: what has this process strike at each."""
