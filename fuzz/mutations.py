"""New programs out of old ones, for a bounded run of the fuzzer without coverage to guide it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

MAX_BYTES: Final = 192
"""Longest program: more than MAX_STEPS take."""
MAX_CHANGES: Final = 4
"""Most changes to one program."""


def mutations(corpus: Sequence[bytes], seed: int, count: int) -> Iterator[bytes]:
    """So many programs; the same for the same corpus and seed."""
    random = Random(seed)
    for _ in range(count):
        if not corpus or random.random() < 0.1:
            yield random.randbytes(random.randrange(MAX_BYTES))
            continue
        program = bytearray(random.choice(corpus))
        for _ in range(random.randint(1, MAX_CHANGES)):
            _change(program, corpus, random)
        yield bytes(program[:MAX_BYTES])


def _change(program: bytearray, corpus: Sequence[bytes], random: Random) -> None:
    """One change: a byte, a stretch less, a stretch twice, or a stretch of another program."""
    at = random.randrange(len(program) + 1)
    end = min(len(program), at + random.randint(1, 12))
    match random.randrange(5):
        case 0:
            program[at:end] = random.randbytes(end - at)
        case 1:
            program[at : at + 1] = random.randbytes(1)
        case 2:
            del program[at:end]
        case 3:
            program[at:at] = program[at:end]
        case _:
            other = random.choice(corpus)
            begin = random.randrange(len(other) + 1)
            program[at:at] = other[begin : begin + random.randint(1, 40)]
