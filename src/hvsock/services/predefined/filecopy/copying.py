"""The host's side: copy to a guest, and from one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from hvsock.addresses import ServiceId
from hvsock.constants import GUEST_SERVICE_INTERFACE
from hvsock.errors import HvsockError, NegotiationError, NotReadyError, ProtocolError, RefusedError, UsageError
from hvsock.sockets.aio import connected
from hvsock.sockets.chosen import socket

from .channel import MIN_RATE, Channel
from .frames import MAX_PATH_BYTES, VERSIONS, Counts, Failure, Get, Kind, Overwrite, Put, hello, versions_of
from .placing import opened_target
from .receiving import Limits, Receiver
from .sending import Report, Sender
from .walking import last_component, opened_parent, shown, walk
from .working import in_thread

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

CONNECT_SECONDS: Final = 10.0
"""How long the connection and the negotiation may take."""
SERVICE_ID: Final = ServiceId.from_port(GUEST_SERVICE_INTERFACE.port)
HOST_MODES: Final = 0o755
"""Permission bits that a guest may set on its host: nothing is writable for others because a guest says so."""

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a copy did.

    Attributes:
        counts: the receiver's.
        failures: what was not copied, and why.
    """

    counts: Counts
    failures: list[Failure] = field(default_factory=list)


def _nobody(_: object) -> None:
    """Nobody watches."""


async def copy_to(
    vm: str,
    source: Path,
    target: Path,
    *,
    recursive: bool = False,
    overwrite: Overwrite = Overwrite.REFUSE,
    parents: bool = False,
    partition: str | None = None,
    report: Report = _nobody,
) -> Outcome:
    """Copy a file or a tree into a guest. Where a connection was lost, the same call again goes on from there.

    Args:
        vm: the guest: a name or a VmId.
        source: what is copied; its own link is followed, those in a tree are copied as links.
        target: an absolute path in the guest; an existing folder gets the copy under its own name.
        recursive: whether `source` may be a folder.
        overwrite: what is done with files that are there with other contents.
        parents: make folders that are missing on the way to `target`.
        partition: the partition's folder to connect from; by default that of the process.
        report: is told of progress, in another thread.

    Raises:
        OSError, HvsockError: `source` cannot be read, the guest refuses, or the connection is lost.
        RefusedError: the service is not enabled for the guest.
        NegotiationError: there is no version in common.
    """
    begun = os.fsencode(source)
    asked = Put(_guest_path(target), overwrite, parents)

    def work(channel: Channel) -> Outcome:
        channel.send(asked.to_frame())
        return Outcome(*Sender(channel, report).run(begun, recursive=recursive))

    await asyncio.to_thread(_check_source, begun, recursive)
    return await _copy(vm, partition, work)


async def copy_from(
    vm: str,
    source: Path,
    target: Path,
    *,
    recursive: bool = False,
    overwrite: Overwrite = Overwrite.REFUSE,
    parents: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - it is immutable
    min_rate: float = MIN_RATE,
    partition: str | None = None,
    report: Report = _nobody,
) -> Outcome:
    """Copy a file or a tree out of a guest. Nothing is written but `target`, whatever the guest says.

    Args:
        vm: the guest: a name or a VmId.
        source: an absolute path in the guest.
        target: where to; an existing folder gets the copy under the name that `source` ends with.
        recursive: whether `source` may be a folder.
        overwrite: what is done with files that are there with other contents.
        parents: make folders that are missing on the way to `target`.
        limits: what is taken at most.
        min_rate: bytes a second that the guest has to send while it is waited for; 0 for no such bound.
        partition: the partition's folder to connect from; by default that of the process.
        report: is told of progress, in another thread.

    Raises:
        OSError, HvsockError: the guest refuses, `target` cannot be written, or the connection is lost.
        ProtocolError: the guest lied, or went over `limits`; what was complete before is in place.
        TimeoutError: it sent less than `min_rate`.
        RefusedError: the service is not enabled for the guest.
        NegotiationError: there is no version in common.
    """
    asked = Get(_guest_path(source), recursive)
    own = last_component(asked.path)
    place = os.fsencode(target)

    def work(channel: Channel) -> Outcome:
        with opened_target(place, parents=parents) as (folder, name):
            if not (name or own):
                raise UsageError("/ has no name of its own to copy it under; name what is in it")
            channel.send(asked.to_frame())
            channel.flush()
            receiver = Receiver(
                channel,
                folder,
                name or own,
                overwrite=overwrite,
                limits=limits,
                mode_mask=HOST_MODES,
                recursive=recursive,
                report=report,
            )
            with contextlib.closing(receiver):
                counts, failed, left_out = receiver.run()
        channel.send(counts.to_frame())
        channel.flush()
        return Outcome(counts, [*left_out, *failed])

    return await _copy(vm, partition, work, min_rate)


def _guest_path(path: Path) -> bytes:
    encoded = os.fsencode(path)
    if not encoded.startswith(b"/") or b"\0" in encoded:
        raise UsageError(f"{shown(encoded)} is no absolute path in the guest: begin with a slash")
    if len(encoded) > MAX_PATH_BYTES:
        raise UsageError(f"a path has {MAX_PATH_BYTES} bytes at most")
    return encoded


def _check_source(path: bytes, recursive: bool) -> None:
    """Raise what is wrong with the source before anybody is asked for anything."""
    with (
        opened_parent(path) as (folder, name),
        contextlib.closing(walk(folder, name, recursive=recursive)) as found,
    ):
        next(found)


async def _copy(
    vm: str, partition: str | None, work: Callable[[Channel], Outcome], min_rate: float = 0
) -> Outcome:
    async with _connection(vm, partition) as sock:

        def whole() -> Outcome:
            channel = Channel(sock, min_rate)
            try:
                _negotiate(channel)
                return work(channel)
            except (OSError, HvsockError) as error:
                channel.give_up(error, drain=False)
                raise

        return await in_thread(sock, whole)


def _negotiate(channel: Channel) -> None:
    channel.send(hello(VERSIONS))
    channel.flush()
    versions = versions_of(channel.expect(Kind.HELLO)[1])
    if len(versions) != 1:
        raise ProtocolError("the guest picked no version of the file copy protocol")
    if versions[0] not in VERSIONS:
        raise NegotiationError(
            f"the guest speaks the file copy protocol in version {versions[0]}, which is unknown"
        )


@contextlib.asynccontextmanager
async def _connection(vm: str, partition: str | None) -> AsyncIterator[socket]:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            sock = await connected((vm, SERVICE_ID), partition=partition)
    except OSError as error:
        raise _explained(vm, error) from error
    with sock:
        yield sock


def _explained(vm: str, error: OSError) -> OSError | HvsockError:
    """Why there is no connection, and what to do."""
    name = GUEST_SERVICE_INTERFACE.name
    if error.errno == errno.EINVAL:
        enable = f'hvsock integration enable {vm} "{name}"'
        return RefusedError(f"{name!r} is off for {vm}, as it is by default; enable it: {enable}")
    if isinstance(error, ConnectionRefusedError):
        return NotReadyError(f"nobody in {vm} serves {name!r}; run the agent there: hvsock agent")
    return error
