"""What the checks of :mod:`hvsock.testing.check_stream` stand on: bounded waits, threads, expectations.

A check is a function of three arguments: the :class:`Harness` and the two connected ends. It is run
twice, on a fresh pair each time, the second time with the ends swapped. It runs in a thread of its own:
when a broken stream holds it up, its streams are taken down from outside, so that it ends, and the report
says where it was stuck.
"""

from __future__ import annotations

import functools
import random
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar, cast

from .streams import ByteStream, Readable

Pair = tuple[ByteStream, ByteStream]
MakePair = Callable[[], Pair | AbstractContextManager[Pair]]
"""Gives two connected streams: as a tuple, or as a context manager where there is more to take down."""

T = TypeVar("T")

WAIT_SECONDS = 5.0
"""What a stream that works never needs for one step, on a busy machine either; more of it is a failure."""
CHECK_WAITS = 4
"""Steps' worth of time after which a check that has not ended is taken down."""
GRACE_WAITS = 0.4
"""Steps' worth of time for the threads of a check to end once their streams are gone."""
QUIET_WAITS = 0.003
"""Steps' worth of time without progress that counts as blocked: 15 ms by default."""
PIECE_BYTES = 64 * 1024
"""What is offered to one send where a check fills a stream."""
CLOG_LIMIT_BYTES = 64 * 1024 * 1024
"""More than the buffers of any stream hold: one that takes all of this unread does not push back."""
PATTERN_BYTES = 1_048_583
"""Period of the test data, a prime, so that no block size of a stream divides it."""

GONE = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)
"""What sending to a peer that is gone raises; the last one is Windows' word for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a stream can do besides being a byte stream; a check that needs what it lacks does not apply.

    The defaults are what an AF_UNIX stream socket has.

    Attributes:
        buffered: it takes a few bytes before the peer receives them. A lock-step pair does not.
        nonblocking: with a time-out of 0, a call that would have to wait raises BlockingIOError.
        resets: closing with data unread is a ConnectionResetError at the peer.
        delivers_before_reset: what was sent ahead of such a close is still received ahead of the reset.
            TCP does not promise that: its RST overtakes, and may destroy, data under way.
        descriptor: fileno() is a descriptor that select, poll and epoll watch.
        peek: recv takes flags, MSG_PEEK among them.
        makefile: it has a socket's makefile().
        sendfile: it has a socket's sendfile().
        vectored: it has a socket's sendmsg() and recvmsg_into().
    """

    buffered: bool = True
    nonblocking: bool = True
    resets: bool = True
    delivers_before_reset: bool = True
    descriptor: bool = True
    peek: bool = True
    makefile: bool = True
    sendfile: bool = True
    vectored: bool = True

    @classmethod
    def detect(cls, stream: ByteStream) -> Features:
        """The features that show in a stream's methods; what does not show is taken to be there."""
        descriptor = hasattr(stream, "fileno")
        return cls(
            descriptor=descriptor,
            peek=descriptor,
            makefile=hasattr(stream, "makefile"),
            sendfile=hasattr(stream, "sendfile"),
            vectored=hasattr(stream, "sendmsg") and hasattr(stream, "recvmsg_into"),
        )

    def lacks(self, needs: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the features `needs` that are not there."""
        return tuple(name for name in needs if not getattr(self, name))


FEATURE_NAMES = frozenset(entry.name for entry in fields(Features))


class Job(Generic[T]):
    """One call in a thread of its own; made by :meth:`Harness.start`."""

    def __init__(self, what: str, call: Callable[[], T], wait_seconds: float, quiet_seconds: float) -> None:
        self.what = what
        self.collected = False
        self.error: BaseException | None = None
        self._wait_seconds = wait_seconds
        self._quiet_seconds = quiet_seconds
        self._result: T | None = None
        self.thread = threading.Thread(target=self._run, args=(call,), name=f"check: {what}", daemon=True)
        self.thread.start()

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._result = call()
        except BaseException as error:
            self.error = error

    def result(self) -> T:
        """Waits for the call; returns what it returned, or raises what it raised.

        Raises:
            AssertionError: it has not ended in the time for one step.
        """
        self.thread.join(self._wait_seconds)
        require(not self.thread.is_alive(), f"{self.what} has not ended after {self._wait_seconds:g} s")
        self.collected = True
        if self.error is not None:
            raise self.error
        return cast("T", self._result)

    def require_blocked(self) -> None:
        """Fails unless the call is still under way after the quiet time."""
        self.thread.join(self._quiet_seconds)
        if self.thread.is_alive():
            return
        self.result()
        raise AssertionError(f"{self.what} ended, where it had to wait for the peer")


@dataclass(slots=True)
class Harness:
    """One run of one check.

    Attributes:
        make_pair: opens pairs.
        seed: of everything random in the check.
        wait_seconds: the most that one step may take.
        features: of the stream.
    """

    make_pair: MakePair
    seed: str
    wait_seconds: float
    features: Features
    _streams: list[ByteStream] = field(default_factory=list)
    _jobs: list[Job[Any]] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    @property
    def quiet_seconds(self) -> float:
        """How long nothing has to happen until a call counts as blocked."""
        return self.wait_seconds * QUIET_WAITS

    def random(self, label: str) -> random.Random:
        """Random numbers of their own for each label, the same in each run with the same seed."""
        return random.Random(f"{self.seed}/{label}")

    def open(self) -> Pair:
        """One more pair; taken down when the check ends."""
        made = self.make_pair()
        pair = made if isinstance(made, tuple) else self._stack.enter_context(made)
        for stream in pair:
            self._streams.append(stream)
            stream.settimeout(self.wait_seconds)
        return pair

    def start(self, what: str, call: Callable[..., T], *args: Any) -> Job[T]:
        """Runs `call(*args)` in a thread; `what` names it in reports."""
        job = Job(what, functools.partial(call, *args), self.wait_seconds, self.quiet_seconds)
        self._jobs.append(job)
        return job

    def wake(self) -> None:
        """Shuts every stream down, so that calls that wait on them end."""
        for stream in self._streams:
            with suppress(Exception):
                stream.shutdown(socket.SHUT_RDWR)

    def take_down(self, thread: threading.Thread) -> None:
        """Ends the streams under `thread`, which is stuck: shuts them down, and if need be closes them."""
        self.wake()
        thread.join(self.wait_seconds * GRACE_WAITS)
        if thread.is_alive():
            self._close()

    def finish(self, *, failed: bool) -> None:
        """Takes everything down: streams, threads, and what make_pair has to undo.

        Args:
            failed: the check has failed already, and what goes wrong here is a consequence.

        Raises:
            AssertionError: a thread did not end.
            Exception: what a job raised that nobody asked for its result.
        """
        if failed:
            self.wake()
            self._join(self.wait_seconds * GRACE_WAITS)
            self._close()
        else:
            for stream in self._streams:
                stream.close()
        self._join(self.wait_seconds)
        try:
            if not failed:
                for job in self._jobs:
                    if not job.collected:
                        job.result()
        finally:
            self._stack.close()

    def side_errors(self) -> list[str]:
        """What went wrong in jobs meanwhile, in words."""
        return [
            f"{job.what}: {describe_error(job.error)}" for job in self._jobs if job.error and not job.collected
        ]

    def stuck_jobs(self) -> list[str]:
        """The names of the jobs that have not ended."""
        return [job.what for job in self._jobs if job.thread.is_alive()]

    def _close(self) -> None:
        for stream in self._streams:
            with suppress(Exception):
                stream.close()

    def _join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for job in self._jobs:
            job.thread.join(max(0.0, deadline - time.monotonic()))

    # What checks do with streams.

    def expect(self, stream: ByteStream, data: bytes, sizes: Iterator[int] | None = None) -> None:
        """Requires that exactly `data` are received next, and says at which byte it turned out otherwise.

        Args:
            stream: the receiver.
            data: what was sent.
            sizes: what to ask for each time, in bytes; None for large pieces.
        """
        at = 0
        while at < len(data):
            asked = min(len(data) - at, PIECE_BYTES if sizes is None else next(sizes))
            try:
                piece = stream.recv(asked)
            except TimeoutError as error:
                raise AssertionError(f"after {at} of {len(data)} bytes nothing more came") from error
            require(bool(piece), f"the stream ended after {at} of {len(data)} bytes")
            require(len(piece) <= asked, f"recv({asked}) returned {len(piece)} bytes")
            if piece != data[at : at + len(piece)]:
                raise AssertionError(_parting(data, at, piece))
            at += len(piece)

    def expect_last(self, stream: ByteStream, data: bytes) -> None:
        """Requires that `data` are received next, and that the stream ends there."""
        self.expect(stream, data)
        self.expect_end(stream)

    def transfer(self, sender: ByteStream, receiver: ByteStream, data: bytes) -> None:
        """Sends `data` in a thread, and requires that it arrives."""
        job = self.start("sendall", sender.sendall, data)
        self.expect(receiver, data)
        job.result()

    def put(self, sender: ByteStream, data: bytes) -> None:
        """Sends a few bytes: at once, or in a thread where the stream holds none."""
        if self.features.buffered:
            sender.sendall(data)
        else:
            self.start("sendall", sender.sendall, data)

    def expect_end(self, stream: ByteStream) -> None:
        """Requires the end of the stream, and that it stays."""
        for _ in range(2):
            data = stream.recv(16)
            require(not data, f"{data!r} came where the stream had to end")

    def clog(self, sender: ByteStream) -> int:
        """Sends test data until no more is taken; returns how many bytes were."""
        sent = 0
        sender.settimeout(self.quiet_seconds)
        try:
            while True:
                piece = sender.send(pattern(sent, PIECE_BYTES))
                require(1 <= piece <= PIECE_BYTES, f"send of {PIECE_BYTES} bytes returned {piece}")
                sent += piece
                require(sent < CLOG_LIMIT_BYTES, f"{sent} bytes were taken that the peer did not receive")
        except TimeoutError:
            sender.settimeout(self.wait_seconds)
            return sent


def require(holds: bool, message: str) -> None:
    """Raises AssertionError with `message` unless `holds`; unlike assert also under python -O."""
    if not holds:
        raise AssertionError(message)


@contextmanager
def raises(what: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Requires that the body raises one of `kinds`; an exception of another kind passes through."""
    try:
        yield
    except kinds:
        return
    names = " or ".join(kind.__name__ for kind in kinds)
    raise AssertionError(f"{what} did not raise {names}")


def same(received: Readable, sent: Readable) -> None:
    """Requires the same few bytes."""
    require(received == sent, f"{bytes(received)!r} came where {bytes(sent)!r} was due")


def _parting(data: bytes, start: int, piece: bytes) -> str:
    """Where and how `piece`, received as byte `start` and on, is not what was sent, in words."""
    at = next(i for i, byte in enumerate(piece) if byte != data[start + i])
    run = piece[at : at + 32]
    elsewhere = data.find(run)
    where = "are nowhere in it" if elsewhere < 0 else f"were sent as byte {elsewhere} and on"
    return f"byte {start + at} of {len(data)} came out wrong; the {len(run)} bytes received there {where}"


@functools.cache
def _period() -> bytes:
    return random.Random(PATTERN_BYTES).randbytes(PATTERN_BYTES)


def pattern(start: int, size: int) -> bytes:
    """`size` bytes of the endless test data, from byte `start` on."""
    period = _period()
    begin = start % PATTERN_BYTES
    repeated = period * ((begin + size - 1) // PATTERN_BYTES + 1)
    return repeated[begin : begin + size]


def as_socket(stream: ByteStream) -> socket.socket:
    """The stream as what its features say that it resembles."""
    return cast("socket.socket", stream)


def describe_error(error: BaseException | None) -> str:
    """An assertion's own words, or another exception with its kind and the line that met it."""
    if error is None or isinstance(error, AssertionError):
        return str(error)
    return f"{error!r} {_place(traceback.extract_tb(error.__traceback__))}"


CheckFunction = Callable[[Harness, ByteStream, ByteStream], None]


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the suite.

    Attributes:
        name: the function's name, which leads every failure's text.
        function: the check itself.
        needs: names of the :class:`Features` without which it does not apply.
        clogs: it fills the stream's buffers, and prefers a pair where these are small.
    """

    name: str
    function: CheckFunction
    needs: tuple[str, ...]
    clogs: bool

    def run(
        self, make_pair: MakePair, *, features: Features, seed: int, wait_seconds: float, swap: bool = True
    ) -> None:
        """Runs the check in both roles, or in the first one alone, each on a pair of its own.

        Raises:
            AssertionError: the stream failed it; the text begins with the check's name.
        """
        for swapped in (False, True) if swap else (False,):
            harness = Harness(make_pair, f"{seed}/{self.name}/{swapped}", wait_seconds, features)
            prefix = f"{self.name}{' (ends swapped)' if swapped else ''}: "
            self._run_bounded(harness, swapped, prefix)

    def _run_bounded(self, harness: Harness, swapped: bool, prefix: str) -> None:
        errors: list[BaseException] = []
        meanwhile: list[str] = []

        def body() -> None:
            failed = True
            try:
                first, second = harness.open()
                self.function(harness, *((second, first) if swapped else (first, second)))
                failed = False
            except BaseException as error:
                errors.append(error)
                meanwhile.extend(harness.side_errors())
            try:
                harness.finish(failed=failed)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=body, name=f"check {self.name}", daemon=True)
        thread.start()
        limit = harness.wait_seconds * CHECK_WAITS
        thread.join(limit)
        if thread.is_alive():
            where = _where(thread)
            waiting = "".join(f"; {what} waits too" for what in harness.stuck_jobs())
            taker = threading.Thread(
                target=harness.take_down, args=(thread,), name="check: take-down", daemon=True
            )
            taker.start()
            taker.join(harness.wait_seconds)
            thread.join(harness.wait_seconds)
            if thread.is_alive():
                waiting += "; closing the streams did not end it either"
            raise AssertionError(f"{prefix}not done after {limit:g} s, stuck {where}{waiting}")
        if errors:
            error = errors[0]
            if not isinstance(error, Exception):
                raise error
            also = "".join(f"; meanwhile {text}" for text in meanwhile)
            raise AssertionError(f"{prefix}{describe_error(error)}{also}") from error


def _where(thread: threading.Thread) -> str:
    """Where a thread is."""
    frame = sys._current_frames().get(thread.ident or 0)
    return _place(traceback.extract_stack(frame) if frame is not None else [])


def _place(stack: list[traceback.FrameSummary]) -> str:
    """The innermost line of `stack` that belongs to a check, in words."""
    for entry in reversed(stack):
        if "_checks_" in entry.filename:
            return f"in {entry.name}, line {entry.lineno}: {entry.line}"
    return "outside the checks"


REGISTRY: dict[str, Check] = {}


def check(*needs: str, clogs: bool = False) -> Callable[[CheckFunction], CheckFunction]:
    """Registers a function as a check; for `needs` and `clogs` see :class:`Check`."""
    unknown = set(needs) - FEATURE_NAMES
    if unknown:
        raise ValueError(f"no such features: {', '.join(sorted(unknown))}")

    def register(function: CheckFunction) -> CheckFunction:
        if function.__name__ in REGISTRY:
            raise ValueError(f"two checks are called {function.__name__}")
        REGISTRY[function.__name__] = Check(function.__name__, function, needs, clogs)
        return function

    return register
