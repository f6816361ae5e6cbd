"""Verdicts on connects, remembered while nothing changes that they follow from."""

from __future__ import annotations

import sys
from typing import Final

from hvsock.topology.decision import Grant, Request, Rules
from hvsock.topology.refusals import Refusal

from .listeners import Listener, Listeners

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

MAX_REMEMBERED: Final = 4096
"""Grants that are kept, some 300 bytes each; with more, all are forgotten and found anew."""


class Verdicts:
    """The rules' verdicts on connects.

    A grant follows from the tree, the services and the listeners; it holds until one of them changes.
    Refusals are found anew each time: their texts tell of the moment.

    Args:
        rules: the rules.
        listeners: what they match against.
    """

    def __init__(self, rules: Rules[Listener], listeners: Listeners) -> None:
        self._rules = rules
        self._listeners = listeners
        self._granted: dict[Request, Grant[Listener]] = {}
        self._state: tuple[object, int, int] | None = None

    def connect(self, request: Request) -> Grant[Listener] | Refusal:
        """The verdict on a connect, by the rules as they are now."""
        rules = self._rules
        state = (rules.services, rules.tree.changes, self._listeners.changes)
        if self._state is None or state[1:] != self._state[1:] or state[0] is not self._state[0]:
            self._state = state
            self._granted.clear()
        verdict: Grant[Listener] | Refusal | None = self._granted.get(request)
        if verdict is None:
            verdict = rules.connect(request)
            if isinstance(verdict, Grant):
                if len(self._granted) >= MAX_REMEMBERED:
                    self._granted.clear()
                self._granted[request] = verdict
        return verdict
