"""The guest half: reads and writes what its host asks for."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Final

from hvsock.constants import GUEST_SERVICE_INTERFACE
from hvsock.errors import BusyError, HvsockError, NegotiationError, UsageError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.serving import RawService
from hvsock.sockets.chosen import socket

from .channel import Channel
from .frames import VERSIONS, Get, Kind, Put, hello, versions_of
from .placing import opened_target
from .receiving import Limits, Receiver
from .sending import Sender
from .walking import shown
from .working import in_thread

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)

MAX_COPIES: Final = 4
"""Copies at once: each has a thread, and more would only share one disk and one connection's speed."""
GUEST_LIMITS: Final = Limits(entries=1 << 40, size=1 << 62)
"""What a guest takes from its host: as much as there is room for."""
GUEST_MODES: Final = 0o777


class GuestServiceInterface(
    RawService, name=GUEST_SERVICE_INTERFACE.name, port=GUEST_SERVICE_INTERFACE.port, short="filecopy"
):
    """Files of a guest, for its host.

    Args:
        surroundings: those of the agent; its policy knows ``filecopy.read`` and ``filecopy.write``.
    """

    POLICY_NAMES = frozenset({"filecopy.read", "filecopy.write"})

    def __init__(self, surroundings: Surroundings) -> None:
        self._policy = surroundings.policy
        self._copies = 0

    async def handle(self, caller: Caller, connection: socket) -> None:
        """One copy."""
        busy = self._copies >= MAX_COPIES
        self._copies += 1
        try:
            await in_thread(connection, lambda: self._copy(caller, connection, busy=busy))
        finally:
            self._copies -= 1

    def _copy(self, caller: Caller, connection: socket, *, busy: bool) -> None:
        """Serve a connection, in a thread; the host is told of every error."""
        channel = Channel(connection)
        try:
            common = set(versions_of(channel.expect(Kind.HELLO)[1])) & set(VERSIONS)
            if not common:
                raise NegotiationError(f"this agent speaks the file copy protocol in version {VERSIONS[-1]} only")
            if busy:
                raise BusyError(f"{MAX_COPIES} copies are under way, which is the limit; try again later")
            channel.send(hello((max(common),)))
            channel.flush()
            kind, body = channel.expect(Kind.PUT, Kind.GET)
            if kind is Kind.PUT:
                self._write(caller, channel, Put.from_body(body))
            else:
                self._read(caller, channel, Get.from_body(body))
        except (OSError, HvsockError) as error:
            log.info("%s: the copy of %s ended: %s", self.NAME, caller, error)
            channel.give_up(error, drain=True)

    def _read(self, caller: Caller, channel: Channel, asked: Get) -> None:
        self._policy.check("filecopy.read")
        _check_path(asked.path)
        log.info("%s reads %s", caller, shown(asked.path))
        Sender(channel).run(asked.path, recursive=asked.recursive)

    def _write(self, caller: Caller, channel: Channel, asked: Put) -> None:
        self._policy.check("filecopy.write")
        _check_path(asked.path)
        log.info("%s writes %s", caller, shown(asked.path))
        with (
            opened_target(asked.path, parents=asked.parents) as (folder, name),
            contextlib.closing(
                Receiver(
                    channel,
                    folder,
                    name,
                    overwrite=asked.overwrite,
                    limits=GUEST_LIMITS,
                    mode_mask=GUEST_MODES,
                )
            ) as receiver,
        ):
            counts, failures, _ = receiver.run()
        for failure in failures:
            channel.send(failure.to_frame(Kind.FAILED))
        channel.send(counts.to_frame())
        channel.flush()


def _check_path(path: bytes) -> None:
    if not path.startswith(b"/") or b"\0" in path:
        raise UsageError(f"{shown(path)} is no absolute path in the guest: begin with a slash")
    if b".." in path.split(b"/"):
        raise UsageError(f"{os.fsdecode(os.path.normpath(path))} is what .. leads to: write it so")
