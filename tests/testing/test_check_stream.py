"""The suite passes what is sound, finds what is broken, and never hangs over it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest

from hvsock.testing import (
    CHECKS,
    ByteStream,
    Features,
    applicable_checks,
    check_stream,
    memory_pair,
)
from hvsock.testing._harness import check as register_check
from hvsock.testing._harness import pattern, raises
from hvsock.testing.check_stream import WAIT_SECONDS
from tests.testing.broken_streams import IgnoresTimeouts, RecvIntoClearsRest, ReturnsTooMuch, Sound, SoundSocket
from tests.testing.defects import DEFECTS, Defect, in_memory, of_sockets

IN_MEMORY = Features(descriptor=False, peek=False, makefile=False, sendfile=False, vectored=False)
SHORT_WAIT_SECONDS = 0.1
"""Where a defect shows in something that does not happen; nothing depends on a sound stream being faster."""
BOUND_SECONDS = 20.0
"""What a broken stream must not hold a check up for, on a busy machine either."""


def features_of(defect: Defect) -> Features:
    return IN_MEMORY if issubclass(defect.kind, Sound) else Features()


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: f"{defect.kind.__name__}-{defect.check}")
def test_a_broken_stream_fails_the_check_that_is_about_it(defect: Defect) -> None:
    wait_seconds = SHORT_WAIT_SECONDS if defect.hangs else WAIT_SECONDS
    began = time.monotonic()
    with pytest.raises(AssertionError, match=rf"^{defect.check}: "):
        check_stream(
            defect.make_pair, features=features_of(defect), checks=[defect.check], wait_seconds=wait_seconds
        )
    assert time.monotonic() - began < BOUND_SECONDS


def test_every_check_finds_something() -> None:
    assert {defect.check for defect in DEFECTS} >= set(CHECKS)


def test_the_wrappers_themselves_are_sound() -> None:
    """What fails above fails for its defect: without one, the same wrappers pass everything."""
    assert check_stream(in_memory(Sound), features=IN_MEMORY) == applicable_checks(IN_MEMORY)
    names = dict.fromkeys(defect.check for defect in DEFECTS if issubclass(defect.kind, SoundSocket))
    assert check_stream(of_sockets(SoundSocket), features=Features(), checks=names) == tuple(names)


def test_the_whole_suite_stops_at_the_first_failure() -> None:
    with pytest.raises(AssertionError, match=r"^recv_into_partial: "):
        check_stream(in_memory(RecvIntoClearsRest), features=IN_MEMORY)


def test_an_end_that_is_broken_by_itself_is_found() -> None:
    with pytest.raises(AssertionError, match=r"^recv_at_most_asked: "):
        check_stream(in_memory(Sound, ReturnsTooMuch), features=IN_MEMORY, checks=["recv_at_most_asked"])
    with pytest.raises(AssertionError, match=r"^recv_at_most_asked \(ends swapped\): "):
        check_stream(in_memory(ReturnsTooMuch, Sound), features=IN_MEMORY, checks=["recv_at_most_asked"])
    # unless that end is left alone
    pair = in_memory(ReturnsTooMuch, Sound)
    check_stream(pair, features=IN_MEMORY, checks=["recv_at_most_asked"], swap=False)


def test_features_are_found_by_looking() -> None:
    assert Features.detect(memory_pair()[0]) == IN_MEMORY
    near, far = socket.socketpair()
    with near, far:
        assert Features.detect(near) == Features()


def test_features_choose_the_checks() -> None:
    assert applicable_checks(Features()) == tuple(CHECKS)
    without_resets = applicable_checks(Features(resets=False))
    assert "unread_data_at_close_is_reset" not in without_resets
    assert "close_delivers_everything" in without_resets


def test_checks_are_chosen_by_name() -> None:
    names = ["close_twice", "small_both_ways"]
    assert check_stream(memory_pair, checks=names) == tuple(names)
    with pytest.raises(ValueError, match="there is no check 'nonsense'; there are: small_both_ways, "):
        check_stream(memory_pair, checks=["small_both_ways", "nonsense"])
    with pytest.raises(ValueError, match="'poll_tells_readiness' needs what the stream lacks: descriptor"):
        check_stream(memory_pair, checks=["poll_tells_readiness"])


def test_names_and_purposes_are_told() -> None:
    for name, check in CHECKS.items():
        assert check.name == check.function.__name__ == name
        assert check.function.__doc__


def test_a_check_has_a_name_of_its_own_and_known_needs() -> None:
    with pytest.raises(ValueError, match="two checks are called close_twice"):
        register_check()(CHECKS["close_twice"].function)
    with pytest.raises(ValueError, match="no such features: wings"):
        register_check("wings")


def test_pairs_come_from_context_managers_too() -> None:
    events: list[str] = []

    @contextmanager
    def make() -> Iterator[tuple[ByteStream, ByteStream]]:
        near, far = memory_pair()
        events.append("up")
        yield near, far
        with pytest.raises(OSError, match="Bad file descriptor"):
            near.send(b"the suite has closed it")
        events.append("down")

    check_stream(make, checks=["small_both_ways"])
    assert events == ["up", "down"] * 3  # one to look at, and one for each role


def test_a_clogged_pair_is_used_where_buffers_are_filled() -> None:
    made: list[str] = []

    def plain() -> tuple[ByteStream, ByteStream]:
        made.append("plain")
        return memory_pair()

    def clogged() -> tuple[ByteStream, ByteStream]:
        made.append("clogged")
        return memory_pair(4_096)

    names = ["small_both_ways", "send_timeout_loses_nothing"]
    check_stream(plain, make_clogged_pair=clogged, features=IN_MEMORY, checks=names)
    assert made == ["plain"] * 2 + ["clogged"] * 2


@pytest.mark.parametrize("fails", [False, True])
def test_streams_are_closed_whatever_the_outcome(fails: bool) -> None:
    streams: list[Sound] = []

    def make() -> tuple[ByteStream, ByteStream]:
        near, far = memory_pair()
        pair = Sound(near), ReturnsTooMuch(far)
        streams.extend(pair)
        return pair

    expected = pytest.raises(AssertionError, match="recv_at_most_asked") if fails else nullcontext()
    check = "recv_at_most_asked" if fails else "small_both_ways"
    with expected:
        check_stream(make, features=IN_MEMORY, checks=[check])
    assert streams
    assert all(stream.closed.is_set() for stream in streams)


def test_a_pair_that_cannot_be_made_fails_the_check() -> None:
    def make() -> tuple[ByteStream, ByteStream]:
        raise ConnectionRefusedError("nobody listens")

    with pytest.raises(AssertionError, match=r"^small_both_ways: ConnectionRefusedError\('nobody listens'\)"):
        check_stream(make, features=IN_MEMORY)


def test_a_skip_in_make_pair_is_a_skip() -> None:
    def make() -> tuple[ByteStream, ByteStream]:
        pytest.skip("needs what this machine lacks")

    with pytest.raises(pytest.skip.Exception, match="what this machine lacks"):
        check_stream(make, features=IN_MEMORY)


def test_a_check_that_hangs_says_where() -> None:
    with pytest.raises(AssertionError, match=r"not done after 0\.4 s, stuck in recv_timeout.*far\.recv\(1\)$"):
        check_stream(
            in_memory(IgnoresTimeouts),
            features=IN_MEMORY,
            checks=["recv_timeout_loses_nothing"],
            wait_seconds=SHORT_WAIT_SECONDS,
        )


def test_a_stream_that_not_even_closing_ends_does_not_hang_the_caller() -> None:
    release = threading.Event()

    class Sleeper(Sound):
        def give(self, size: int) -> bytes:
            release.wait()
            return b""

    try:
        with pytest.raises(AssertionError, match=r"closing the streams did not end it either$"):
            check_stream(
                in_memory(Sleeper),
                features=IN_MEMORY,
                checks=["eof_without_data"],
                wait_seconds=SHORT_WAIT_SECONDS,
            )
    finally:
        release.set()


def test_a_failed_job_is_told_beside_the_failure() -> None:
    class CannotSend(Sound):
        def sendall(self, data: bytes | bytearray | memoryview, /) -> None:
            raise PermissionError("not you")

    with pytest.raises(
        AssertionError, match=r"^small_both_ways: after 0 of 14 bytes nothing more came; meanwhile sen"
    ):
        check_stream(in_memory(CannotSend), features=IN_MEMORY, checks=["small_both_ways"], wait_seconds=0.5)


def test_the_seed_decides_what_is_random() -> None:
    def sizes(seed: int) -> list[int]:
        seen: list[int] = []

        class Listening(Sound):
            def sendall(self, data: bytes | bytearray | memoryview, /) -> None:
                seen.append(len(data))
                super().sendall(data)

        check_stream(in_memory(Listening), features=IN_MEMORY, checks=["order_kept"], seed=seed)
        return seen

    assert sizes(1) == sizes(1)
    assert sizes(1) != sizes(2)


def test_the_pattern_is_one_endless_run_of_bytes() -> None:
    whole = pattern(0, 3_000_000)
    assert len(whole) == 3_000_000
    for start, size in ((0, 0), (1, 1), (1_048_582, 2), (1_048_583, 5), (1_000_000, 1_500_000)):
        assert pattern(start, size) == whole[start : start + size]


def test_raises_lets_other_errors_through() -> None:
    with pytest.raises(KeyError), raises("it", ValueError):
        raise KeyError
    with (
        pytest.raises(AssertionError, match=r"^it did not raise ValueError or OSError$"),
        raises("it", ValueError, OSError),
    ):
        pass


def test_unbuffered_streams_take_part() -> None:
    """Most checks neither need nor assume a buffer; the conformance tests run them over a lock-step pair."""
    bare = replace(IN_MEMORY, buffered=False, resets=False)
    assert len(applicable_checks(bare)) > 0.8 * len(applicable_checks(IN_MEMORY))
