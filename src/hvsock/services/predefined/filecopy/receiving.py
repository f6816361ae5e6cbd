"""The receiver: frames put in place, with every lie of a sender found.

What the sender says of paths is one component each, so it cannot lead anywhere else; what it says of sizes is held
against what comes, against the limits, and against the space that there is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from hvsock.errors import HvsockError, LostError, ProtocolError

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
    Overwrite,
    Plan,
    number_of,
    why,
)
from .placing import HOPELESS, Folder, Partial, Placer, check_room
from .sending import MAX_FAILURES, Progress, Report
from .walking import MAX_DEPTH

if sys.platform != "linux":
    raise ImportError("file copy needs Linux: folders are opened relative to each other, and never through links")

MAX_ENTRIES: Final = 1_000_000
"""Files, folders and links in one copy, where nobody says otherwise."""
MAX_BYTES: Final = 1 << 40
"""Bytes of one copy, where nobody says otherwise: a TiB; besides, no large file is begun without room for it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver takes in one copy; more ends it.

    Attributes:
        entries: files, folders, links, and what the sender leaves out.
        size: bytes of files.
    """

    entries: int = MAX_ENTRIES
    size: int = MAX_BYTES


class Receiver:
    """Receives one file or tree.

    Args:
        channel: the connection, after PUT or GET.
        folder: descriptor of the folder that the root is put in; the caller owns it.
        name: the root's name, whatever the sender calls it; None for the sender's own, if that is trusted.
        overwrite: what is done with files that are there.
        limits: what is taken.
        mode_mask: which permission bits may be set.
        recursive: whether the root may be a folder.
        report: is told of progress.
    """

    def __init__(
        self,
        channel: Channel,
        folder: int,
        name: bytes | None,
        *,
        overwrite: Overwrite,
        limits: Limits,
        mode_mask: int,
        recursive: bool = True,
        report: Report = lambda _: None,
    ) -> None:
        self._channel = channel
        self._root = Folder(os.dup(folder), b"")
        self._name = name
        self._recursive = recursive
        self._limits = limits
        self._report = report
        self._placer = Placer(overwrite, mode_mask)
        self._open: list[Folder | None] = []
        self._progress = Progress()
        self._left_out: list[Failure] = []
        self._entries = self._announced = self._received = self._resumed = 0

    def run(self) -> tuple[Counts, list[Failure], list[Failure]]:
        """Receive until the sender's FINISH.

        Returns:
            What was done; what could not be put in place; and what the sender left out.

        Raises:
            ProtocolError: the sender broke the protocol, or a limit; what was complete before is in place.
            HvsockError, OSError: the sender's ERROR, or the connection's, or a disk that is full.
        """
        self._open = [self._root]
        try:
            plan = Plan.from_body(self._channel.expect(Kind.PLAN)[1])
            self._progress.all_entries, self._progress.all_size = plan.entries, plan.size
            while self._next():
                pass
            self._channel.busy()
            self._placer.settle()
        except (OSError, HvsockError):
            with contextlib.suppress(OSError):
                self._placer.settle()  # what is complete need not come again
            raise
        counts = self._placer.counts(self._received, self._resumed)
        return counts, self._placer.failures[:MAX_FAILURES], self._left_out[:MAX_FAILURES]

    def close(self) -> None:
        """Close what is open; files that are not complete stay for another try. Calling this twice is fine."""
        self._placer.close()
        for folder in (self._root, *self._open):
            if folder is not None:
                folder.close()

    def _next(self) -> bool:
        """Take one entry; no more come after False."""
        kind, body = self._channel.receive()
        if kind is Kind.FINISH:
            if len(self._open) != 1:
                raise ProtocolError("the peer finished within a folder")
            return False
        if kind is Kind.LEAVE:
            self._leave()
            return True
        self._count(kind)
        if kind is Kind.SKIPPED:
            self._skipped(Failure.from_body(body))
            return True
        if kind not in (Kind.FOLDER, Kind.LINK, Kind.FILE):
            raise ProtocolError(f"the peer sent {kind.name} where an entry begins")
        meta = self._checked(kind, Meta.from_body(kind, body))
        if kind is Kind.FILE:
            self._file(meta)
        elif kind is Kind.FOLDER:
            self._folder(meta)
        else:
            folder = self._open[-1]
            if folder is not None:
                with self._failing(folder, meta):
                    self._placer.link(folder, meta)
        self._progress.entries += 1
        self._report(self._progress)
        return True

    def _count(self, kind: Kind) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise ProtocolError(f"the peer sends more than {self._limits.entries} entries, which is the limit")
        if len(self._open) == 1 and self._entries > 1:
            raise ProtocolError(f"the peer sent another {kind.name} beside the root")

    def _checked(self, kind: Kind, meta: Meta) -> Meta:
        """What an entry says, with the root's own name."""
        folder = self._open[-1]
        if len(self._open) == 1:
            if kind is Kind.LINK or (kind is Kind.FOLDER and not self._recursive):
                raise ProtocolError(f"the peer sent a {kind.name} where a file was asked for")
            meta = replace(meta, name=meta.name if self._name is None else self._name)
        if folder is not None:
            key = hash(meta.name)  # a million names of a hostile sender would be 300 MB
            if key in folder.names:
                raise ProtocolError(f"the peer sent {meta.name[:64]!r} twice in one folder")
            folder.names.add(key)
            self._progress.path = os.path.join(folder.path, meta.name)
        self._announced += meta.size
        if self._announced > self._limits.size:
            raise ProtocolError(f"the peer sends more than {self._limits.size} bytes, which is the limit")
        return meta

    def _skipped(self, failure: Failure) -> None:
        folder = self._open[-1]
        if folder is not None:
            self._left_out.append(replace(failure, path=os.path.join(folder.path, failure.path)))
            del self._left_out[MAX_FAILURES:]

    def _folder(self, meta: Meta) -> None:
        if len(self._open) > MAX_DEPTH:
            raise ProtocolError(f"the peer sends more than {MAX_DEPTH} folders within each other")
        folder, inside = self._open[-1], None
        if folder is not None:
            with self._failing(folder, meta):
                inside = self._placer.enter(folder, meta)
        self._open.append(inside)  # None: it failed, and all that is in it is passed over

    def _leave(self) -> None:
        if len(self._open) == 1:
            raise ProtocolError("the peer left a folder that it had not entered")
        folder = self._open.pop()
        if folder is not None:
            self._placer.leave(folder)

    # -- files

    def _file(self, meta: Meta) -> None:
        folder = self._open[-1]
        if meta.size >= RESUME_BYTES:
            self._large(folder, meta)
            return
        data = bytearray()
        if self._contents(meta, 0, 0, data.extend) and folder is not None:
            with self._failing(folder, meta):
                if self._placer.is_kept(folder, meta):
                    self._placer.unchanged += 1
                else:
                    self._placer.place_small(folder, meta, data, zlib.crc32(data))

    def _large(self, folder: Folder | None, meta: Meta) -> None:
        """A file that the sender begins when it was told what there is of it."""
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(_Found(self._placer, self._channel))
            if folder is not None:
                with self._failing(folder, meta):
                    found.look(folder, meta)
            self._channel.send(found.have.to_frame())
            self._channel.flush()
            begin = number_of(Kind.FROM, self._channel.expect(Kind.FROM)[1])
            if found.have.size == UNWANTED:
                if begin != meta.size:
                    raise ProtocolError("the peer sends a file that is not wanted")
                self._contents(meta, begin, 0, _drop)
                return
            if begin not in (0, found.have.size):
                raise ProtocolError(f"the peer begins at {begin}, where nobody asked it to")
            assert folder is not None
            self._resumed += begin
            self._progress.size += begin
            with self._failing(folder, meta):
                found.begin(folder, meta, begin)
            complete = self._contents(meta, begin, found.have.crc if begin else 0, self._into(found, folder, meta))
            with self._failing(folder, meta):
                found.end(meta, complete=complete)

    def _into(self, found: _Found, folder: Folder, meta: Meta) -> Callable[[memoryview], None]:
        def write(data: memoryview) -> None:
            if found.partial is not None:
                with self._failing(folder, meta):
                    found.write(data)

        return write

    def _contents(self, meta: Meta, done: int, crc: int, write: Callable[[memoryview], object]) -> bool:
        """Take a file's bytes from `done` on; returns whether they are complete and right."""
        while True:
            kind, body = self._channel.expect(Kind.DATA, Kind.TAIL, Kind.ABORT)
            if kind is Kind.ABORT:
                self._failed(body.decode("utf-8", "replace"), left_out=True)
                return False
            if kind is Kind.TAIL:
                if done != meta.size:
                    raise ProtocolError(f"the peer ends a file of {meta.size} bytes after {done}")
                if number_of(kind, body) != crc:
                    self._failed("its checksum is wrong: it was damaged on its way, or while it was read")
                    return False
                return True
            length = int.from_bytes(body, "big")
            done += length
            if done > meta.size:
                raise ProtocolError(f"the peer sends more than the {meta.size} bytes that it announced of a file")
            for piece in self._channel.pieces(length):
                crc = zlib.crc32(piece, crc)
                write(piece)
            self._received += length
            self._progress.size += length
            if meta.size > BLOCK_BYTES:
                self._report(self._progress)

    def _failed(self, reason: str, *, left_out: bool = False) -> None:
        if self._open[-1] is None:
            return
        if left_out:
            self._left_out.append(Failure(self._progress.path, reason))
            del self._left_out[MAX_FAILURES:]
        else:
            self._placer.fail(self._progress.path, reason)

    @contextlib.contextmanager
    def _failing(self, folder: Folder, meta: Meta) -> Iterator[None]:
        """Make a failure of what goes wrong with one entry, unless the next one would fare no better."""
        try:
            yield
        except (LostError, ProtocolError, TimeoutError):
            raise
        except (OSError, HvsockError) as error:
            if isinstance(error, OSError) and error.errno in HOPELESS:
                raise
            self._placer.fail(os.path.join(folder.path, meta.name), why(error))


class _Found:
    """What there is of a large file, and what becomes of it: nothing that is wanted, the same file, or a part.

    Args:
        placer: puts it in place.
        channel: is told that a look takes long.

    Attributes:
        have: what the sender is told.
        partial: what is written to; None for nothing.
    """

    def __init__(self, placer: Placer, channel: Channel) -> None:
        self.have = Have(UNWANTED, 0)
        self.partial: Partial | None = None
        self._placer = placer
        self._busy = channel.busy
        self._existing: int | None = None

    def look(self, folder: Folder, meta: Meta) -> None:
        """Look what there is."""
        if self._placer.is_kept(folder, meta):
            self._placer.unchanged += 1
            return
        if not self._placer.is_begun(folder, meta):
            self._existing = self._placer.existing(folder, meta)
        if self._existing is not None:
            size, descriptor = meta.size, self._existing
        else:
            self.partial = Partial(folder, meta)
            size, descriptor = self.partial.size if self.partial.size <= meta.size else 0, self.partial.descriptor
            check_room(folder, meta.size - size)
        self.have = Have(size, self._placer.crc_of(descriptor, size, self._busy))

    def begin(self, folder: Folder, meta: Meta, begin: int) -> None:
        """The sender begins at `begin`."""
        if self._existing is not None:
            if begin == meta.size:
                return
            os.close(self._existing)
            self._existing = None
            self._placer.check_replaceable(folder, meta)
            check_room(folder, meta.size)
            self.partial = Partial(folder, meta)
        assert self.partial is not None
        self.partial.begin(begin)

    def write(self, data: memoryview) -> None:
        """Append to the part; it is removed where that fails."""
        assert self.partial is not None
        try:
            self.partial.write(data)
        except OSError:
            self._discard()
            raise

    def end(self, meta: Meta, *, complete: bool) -> None:
        """There is no more of it."""
        if self._existing is not None:
            if complete:
                self._placer.same(self._existing, meta)
        elif self.partial is not None and complete:
            partial, self.partial = self.partial, None
            self._placer.place(partial)
        else:
            self._discard()

    def _discard(self) -> None:
        partial, self.partial = self.partial, None
        if partial is not None:
            partial.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._existing is not None:
            os.close(self._existing)
        if self.partial is not None and isinstance(error, (LostError, TimeoutError)):
            self.partial.close()  # another try goes on with it
        else:
            self._discard()


def _drop(data: memoryview) -> None:
    """Nobody wants it."""
