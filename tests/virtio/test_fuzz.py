"""The fuzzer's corpus, and a bounded sample of what it would try next; `make soak` plays a million programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.minimise import jumps, minimise
from fuzz.mutations import mutations
from fuzz.programs import PROGRAMS, play
from hvsock.virtio.credit import Incoming
from hvsock.virtio.session import Session
from tests.support import sample

ROOT = Path(__file__).parent.parent.parent
MAX_CORPUS_BYTES = 1 << 20
SEED = 20_261_122


def corpus(name: str) -> list[bytes]:
    """The programs that are kept."""
    return [file.read_bytes() for file in sorted((ROOT / "fuzz" / "corpus" / name).iterdir())]


def run(name: str, programs: list[bytes], count: int) -> int:
    """Play changes of these programs; returns how many, and names the one that fails."""
    played = 0
    for program in mutations(programs, SEED, count):
        try:
            play(name, program)
        except Exception as error:
            raise AssertionError(f"{name} {program.hex()}") from error
        played += 1
    return played


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_corpus_plays_and_is_small(name: str) -> None:
    programs = corpus(name)
    assert programs
    assert sum(map(len, programs)) < MAX_CORPUS_BYTES
    for program in programs:
        play(name, program)


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_the_fuzzer_would_try_next(name: str) -> None:
    count = sample(1500, 600_000)
    assert run(name, corpus(name), count) == count


def test_a_guest_that_gets_more_room_than_there_is_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Incoming, "receive", lambda self, count: True)
    with pytest.raises(AssertionError, match="device"):
        run("device", corpus("device"), 3000)


def test_a_descriptor_that_is_not_closed_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "close", lambda self: ())
    with pytest.raises(AssertionError, match="session"):
        run("session", corpus("session"), 3000)


def test_the_corpus_is_as_small_as_can_be_told() -> None:
    programs = corpus("session")
    kept = minimise("session", [*programs, *programs, b"", *(program + b"\0" for program in programs)])
    assert set(kept) <= {*programs, *(program + b"\0" for program in programs)}
    assert len(kept) <= len(programs) + 1
    reached = set().union(*(jumps("session", program) for program in programs))
    assert set().union(*(jumps("session", program) for program in kept)) >= reached
