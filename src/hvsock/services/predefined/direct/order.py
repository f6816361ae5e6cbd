"""What the agent tells its keeper about a connection (pure)."""

from __future__ import annotations

import json
from typing import Final, NamedTuple, Self

from hvsock.services.policy import Policy

MAX_ORDER_BYTES: Final = 65536
"""Longest order: the names of a policy's operations, and a path."""


class Order(NamedTuple):
    """How one connection is served.

    Attributes:
        folder: where the guest's keys are.
        policy: what may be asked for.
    """

    folder: str
    policy: Policy

    def written(self) -> bytes:
        """This as one message."""
        allow = None if self.policy.allow is None else sorted(self.policy.allow)
        return json.dumps([self.folder, allow, sorted(self.policy.deny)]).encode()

    @classmethod
    def read(cls, message: bytes) -> Self:
        """The other way."""
        folder, allow, deny = json.loads(message)
        return cls(folder, Policy.of(allow, deny))
