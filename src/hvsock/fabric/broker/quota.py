"""What partitions share of something that must not run out: descriptors, bound sockets, memory for replies."""

from __future__ import annotations

from typing import Final

from hvsock.addresses import VmId

GUESTS_TO_HOST: Final = 2
"""The guests together get this many times what the host has for itself."""


class Quota:
    """So much for the host, so much for all others together.

    One of the others may take more while it holds less than is left. So a single greedy partition gets half,
    n greedy ones get 1/(n+1) each, and the next one that asks always gets something.

    Args:
        host: the host's id.
        total: for all.
        most: for one partition.
    """

    __slots__ = ("_for_guests", "_for_host", "_held", "_host", "_most", "_taken_by_guests")

    def __init__(self, host: VmId, total: int, most: int) -> None:
        self._host = host
        self._for_host = max(1, total // (1 + GUESTS_TO_HOST))
        self._for_guests = max(1, total - self._for_host)
        self._most = most
        self._held: dict[VmId, int] = {}
        self._taken_by_guests = 0

    def held(self, partition: VmId) -> int:
        """What a partition has."""
        return self._held.get(partition, 0)

    def has_room(self, partition: VmId) -> bool:
        """Whether a partition may take more."""
        held = self._held.get(partition, 0)
        if held >= self._most:
            return False
        return held < (self._for_host if partition == self._host else self._for_guests - self._taken_by_guests)

    def take(self, partition: VmId, amount: int = 1) -> None:
        """Count what a partition took."""
        self._held[partition] = self._held.get(partition, 0) + amount
        if partition != self._host:
            self._taken_by_guests += amount

    def give_back(self, partition: VmId, amount: int = 1) -> None:
        """Count what a partition gave back."""
        left = self._held[partition] - amount
        if left:
            self._held[partition] = left
        else:
            del self._held[partition]
        if partition != self._host:
            self._taken_by_guests -= amount
