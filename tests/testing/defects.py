"""Pairs of broken streams, and a table that says which check finds which defect."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hvsock.testing import ByteStream, MakePair, memory_pair
from tests.testing.broken_streams import (
    ClosesOnce,
    CorruptsFirstByte,
    CountsItems,
    CountsWhatItDidNotTake,
    DoublesByte,
    DropsByte,
    EmptyIsEnd,
    EndIsReset,
    Endless,
    EndsEarly,
    EndsOnce,
    FileTakesStream,
    FirstBufferOnly,
    ForeignDescriptor,
    HalfCloseIsClose,
    IgnoresOffset,
    IgnoresTimeouts,
    Inheritable,
    KeepsBuffer,
    LosesDataOnClose,
    LosesLaterMessage,
    NeverWakes,
    NothingIsEnd,
    OneLockForAllStreams,
    OneLockForBothWays,
    PeekTakes,
    RecvIntoClearsRest,
    RecvIntoCountsBuffer,
    RecvOfZeroTakes,
    RecvTimeoutLoses,
    Reorders,
    ResetOvertakes,
    ReturnsTooMuch,
    SendsIntoTheVoid,
    SendsPartOnly,
    SendTimeoutDoubles,
    ShutsDownOnce,
    SleepsThroughRoom,
    Sound,
    SoundSocket,
    SwallowsReset,
    TakesAndRefuses,
    TimesOutAsBlocking,
    TimesOutEarly,
    UsableWhenClosed,
    WaitsForPeersClose,
    WakesOnDataOnly,
)


def in_memory(kind: type[Sound], other: type[Sound] | None = None) -> MakePair:
    """Makes pairs of which both ends are of `kind`, or the second one is of the `other`."""

    def make() -> tuple[ByteStream, ByteStream]:
        near_inner, far_inner = memory_pair(kind.CAPACITY_BYTES)
        near, far = kind(near_inner), (other or kind)(far_inner)
        near.peer, far.peer = far, near
        return near, far

    return make


def of_sockets(kind: Callable[[socket.socket], Any]) -> MakePair:
    """Makes pairs of which both ends are of `kind`."""

    def make() -> tuple[ByteStream, ByteStream]:
        near, far = socket.socketpair()
        return kind(near), kind(far)

    return make


@dataclass(frozen=True, slots=True)
class Defect:
    """A way to be broken.

    Attributes:
        kind: the stream.
        check: the name of the check that finds it.
        hangs: it shows in something that does not happen, which takes the whole waiting time to see.
    """

    kind: type[Sound | SoundSocket]
    check: str
    hangs: bool = False

    @property
    def make_pair(self) -> MakePair:
        return in_memory(self.kind) if issubclass(self.kind, Sound) else of_sockets(self.kind)


DEFECTS = [
    Defect(CorruptsFirstByte, "small_both_ways"),
    Defect(DropsByte, "large_duplex"),
    Defect(DoublesByte, "large_duplex"),
    Defect(SendsPartOnly, "large_duplex"),
    Defect(Reorders, "order_kept"),
    Defect(LosesLaterMessage, "many_small_messages"),
    Defect(ReturnsTooMuch, "recv_at_most_asked"),
    Defect(RecvOfZeroTakes, "recv_of_zero_bytes", hangs=True),
    Defect(RecvIntoClearsRest, "recv_into_partial"),
    Defect(RecvIntoCountsBuffer, "recv_into_partial"),
    Defect(CountsItems, "sends_any_buffer", hangs=True),
    Defect(KeepsBuffer, "buffer_is_free_after_send"),
    Defect(NothingIsEnd, "send_of_nothing"),
    Defect(CountsWhatItDidNotTake, "send_returns_count"),
    Defect(EndsEarly, "eof_after_all_data"),
    Defect(EndsOnce, "eof_without_data", hangs=True),
    Defect(HalfCloseIsClose, "half_close_keeps_other_direction"),
    Defect(LosesDataOnClose, "close_delivers_everything"),
    Defect(ClosesOnce, "close_twice"),
    Defect(ShutsDownOnce, "shutdown_twice"),
    Defect(SendsIntoTheVoid, "send_after_own_shutdown"),
    Defect(SendsIntoTheVoid, "send_after_peer_closed"),
    Defect(UsableWhenClosed, "use_after_own_close"),
    Defect(SwallowsReset, "unread_data_at_close_is_reset"),
    Defect(ResetOvertakes, "unread_data_at_close_is_reset"),
    Defect(SwallowsReset, "blocked_recv_wakes_on_reset"),
    Defect(EndIsReset, "close_after_reading_all_is_no_reset"),
    Defect(NeverWakes, "blocked_recv_wakes_on_data", hangs=True),
    Defect(WakesOnDataOnly, "blocked_recv_wakes_on_eof", hangs=True),
    Defect(IgnoresTimeouts, "recv_timeout_loses_nothing", hangs=True),
    Defect(TimesOutEarly, "recv_timeout_loses_nothing"),
    Defect(TimesOutAsBlocking, "recv_timeout_loses_nothing"),
    Defect(RecvTimeoutLoses, "recv_timeout_loses_nothing"),
    Defect(SendTimeoutDoubles, "send_timeout_loses_nothing"),
    Defect(SleepsThroughRoom, "blocked_send_proceeds_when_peer_reads", hangs=True),
    Defect(Endless, "blocked_send_proceeds_when_peer_reads"),
    Defect(WaitsForPeersClose, "blocked_send_fails_when_peer_closes", hangs=True),
    Defect(OneLockForBothWays, "clogged_direction_leaves_other_free", hangs=True),
    Defect(OneLockForAllStreams, "pairs_are_independent", hangs=True),
    Defect(TakesAndRefuses, "nonblocking_send_fills_then_drains"),
    Defect(EmptyIsEnd, "nonblocking_recv"),
    Defect(ForeignDescriptor, "select_tells_readiness", hangs=True),
    Defect(ForeignDescriptor, "poll_tells_readiness", hangs=True),
    Defect(ForeignDescriptor, "epoll_tells_readiness", hangs=True),
    Defect(ForeignDescriptor, "epoll_edges", hangs=True),
    Defect(Inheritable, "descriptor_is_stable"),
    Defect(PeekTakes, "peek_takes_nothing"),
    Defect(FileTakesStream, "makefile_round_trip"),
    Defect(IgnoresOffset, "sendfile_sends_all"),
    Defect(FirstBufferOnly, "sendmsg_and_recvmsg_into"),
]
