"""The sender: a tree as frames."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvsock.errors import ProtocolError

from .channel import Channel
from .frames import (
    BLOCK_BYTES,
    RESUME_BYTES,
    UNWANTED,
    Counts,
    Failure,
    Have,
    Kind,
    Meta,
    Plan,
    abort_frame,
    frame,
    number_frame,
    why,
)
from .walking import Found, opened_parent, plan_of, walk

if sys.platform != "linux":
    raise ImportError("file copy needs Linux: folders are opened relative to each other, and never through links")

MAX_FAILURES: Final = 1_000
"""Most failures that are told one by one: more help nobody, and would hold a host's memory."""

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(slots=True)
class Progress:
    """Where a copy is.

    Attributes:
        entries, size: what is done of it: files, folders and links, and bytes of files.
        all_entries, all_size: what there is, as far as the sender knew when it began.
        path: what is under way, relative to where the copy began.
    """

    entries: int = 0
    size: int = 0
    all_entries: int = 0
    all_size: int = 0
    path: bytes = b""


Report = Callable[[Progress], None]
"""Is told of progress, in the thread that copies."""


class Sender:
    """Sends one file or tree.

    Args:
        channel: the connection, after PUT or GET.
        report: is told of progress.
    """

    def __init__(self, channel: Channel, report: Report = lambda _: None) -> None:
        self._channel = channel
        self._report = report
        self._progress = Progress()
        self._block = memoryview(bytearray(BLOCK_BYTES))

    def run(self, path: bytes, *, recursive: bool) -> tuple[Counts, list[Failure]]:
        """Send what is at `path`.

        Returns:
            The receiver's counts; and what was not copied, of both sides.

        Raises:
            NotFoundError, RefusedError, UsageError, OSError: `path` cannot be read; nothing was sent.
            HvsockError, OSError: the receiver's ERROR, or the connection's.
        """
        failures = []
        with opened_parent(path) as (folder, name):
            plan = plan_of(walk(folder, name, recursive=recursive))
            self._progress = Progress(all_entries=plan.entries, all_size=plan.size)
            self._channel.send(Plan(plan.entries, plan.size).to_frame())
            with contextlib.closing(walk(folder, name, recursive=recursive)) as found:
                for one in found:
                    self._channel.check_incoming()
                    reason = self._send(one)
                    if reason:
                        failures.append(Failure(one.path, reason))
                        del failures[MAX_FAILURES:]
        self._channel.send(frame(Kind.FINISH))
        self._channel.flush()
        return self._outcome(failures)

    def _outcome(self, failures: list[Failure]) -> tuple[Counts, list[Failure]]:
        while True:
            kind, body = self._channel.expect(Kind.FAILED, Kind.DONE)
            if kind is Kind.DONE:
                return Counts.from_body(body), failures
            if len(failures) > 2 * MAX_FAILURES:
                raise ProtocolError("the peer reports failures without end")
            failures.append(Failure.from_body(body))

    def _send(self, one: Found) -> str:
        """Send one entry; returns why it was not, or nothing."""
        if one.reason:
            self._channel.send(Failure(one.name, one.reason).to_frame(Kind.SKIPPED))
            return one.reason
        if one.status is None:
            self._channel.send(frame(Kind.LEAVE))
            return ""
        self._progress.path = one.path
        reason = ""
        if stat.S_ISREG(one.status.st_mode):
            reason = self._send_file(one)
        else:
            kind = Kind.FOLDER if stat.S_ISDIR(one.status.st_mode) else Kind.LINK
            meta = Meta(one.name, stat.S_IMODE(one.status.st_mode), one.status.st_mtime_ns, target=one.target)
            self._channel.send(meta.to_frame(kind))
        self._progress.entries += 1
        self._report(self._progress)
        return reason

    def _send_file(self, one: Found) -> str:
        root = one.path == one.name
        try:
            descriptor = os.open(one.name, _FILE & ~os.O_NOFOLLOW if root else _FILE, dir_fd=one.folder)
        except OSError as error:
            self._channel.send(Failure(one.name, why(error)).to_frame(Kind.SKIPPED))
            return why(error)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                reason = "it was replaced while it was looked at"
                self._channel.send(Failure(one.name, reason).to_frame(Kind.SKIPPED))
                return reason
            return self._send_contents(one.name, descriptor, status)
        finally:
            os.close(descriptor)

    def _send_contents(self, name: bytes, descriptor: int, status: os.stat_result) -> str:
        size = status.st_size
        self._channel.send(Meta(name, stat.S_IMODE(status.st_mode), status.st_mtime_ns, size).to_frame(Kind.FILE))
        begin = crc = 0
        if size >= RESUME_BYTES:
            self._channel.flush()
            begin, crc = self._begin(descriptor, size)
        self._progress.size += begin
        done = begin
        while done < size:
            try:
                count = os.readv(descriptor, [self._block[: min(BLOCK_BYTES, size - done)]])
            except OSError as error:
                return self._abort(why(error))
            if not count:
                return self._abort("it became shorter while it was read")
            block = self._block[:count]
            crc = zlib.crc32(block, crc)
            self._channel.send_block(block)
            done += count
            self._progress.size += count
            if size > BLOCK_BYTES:
                self._channel.check_incoming()
                self._report(self._progress)
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (size, status.st_mtime_ns):
            return self._abort("it changed while it was read")
        self._channel.send(number_frame(Kind.TAIL, crc))
        return ""

    def _begin(self, descriptor: int, size: int) -> tuple[int, int]:
        """Where to begin with a file, and the CRC-32 of what is before."""
        have = Have.from_body(self._channel.expect(Kind.HAVE)[1])
        if have.size == UNWANTED:
            begin, crc = size, 0
        else:
            begin, crc = self._agreed(descriptor, have) if 0 < have.size <= size else (0, 0)
        self._channel.send(number_frame(Kind.FROM, begin))
        return begin, crc

    def _agreed(self, descriptor: int, have: Have) -> tuple[int, int]:
        with contextlib.suppress(EOFError, OSError):
            crc = prefix_crc(descriptor, have.size, self._block, self._channel.busy)
            if crc == have.crc:
                return have.size, crc
        os.lseek(descriptor, 0, os.SEEK_SET)
        return 0, 0

    def _abort(self, reason: str) -> str:
        self._channel.send(abort_frame(reason))
        return reason


def prefix_crc(descriptor: int, size: int, block: memoryview, busy: Callable[[], None]) -> int:
    """The CRC-32 of the first `size` bytes of a file, which is at that place afterwards.

    Args:
        descriptor: the file, open for reading.
        size: how many.
        block: where it is read to.
        busy: is called after each block.

    Raises:
        EOFError: the file is shorter.
        OSError: it cannot be read.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    crc = done = 0
    while done < size:
        count = os.readv(descriptor, [block[: min(len(block), size - done)]])
        if not count:
            raise EOFError
        crc = zlib.crc32(block[:count], crc)
        done += count
        busy()
    return crc
