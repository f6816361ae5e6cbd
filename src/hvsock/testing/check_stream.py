"""One conformance suite for every byte stream.

``check_stream(make_pair)`` holds a stream to what programs rely on with stream sockets: every byte
arrives once and in order, ends are ends and losses are resets, waiting is bounded and costs nothing. It
needs no test framework; AssertionError says which check failed and why. With pytest, one test for each
check reports better::

    @pytest.mark.parametrize("name", applicable_checks(FEATURES))
    def test_stream(name: str) -> None:
        check_stream(make_pair, checks=[name], features=FEATURES)

Every check is run twice, on a fresh pair each time, the second time with the two ends swapped: what holds
for the end that connected has to hold for the one that accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from . import _checks_transfer  # noqa: F401  (these register their checks, in the order of the suite)

from . import _checks_closing  # noqa: F401  isort: skip
from . import _checks_blocking  # noqa: F401  isort: skip
from . import _checks_descriptor  # noqa: F401  isort: skip
from ._harness import REGISTRY, WAIT_SECONDS, Check, Features, Harness, MakePair, Pair

__all__ = [
    "CHECKS",
    "WAIT_SECONDS",
    "Check",
    "Features",
    "MakePair",
    "Pair",
    "applicable_checks",
    "check_stream",
]

CHECKS: Mapping[str, Check] = MappingProxyType(REGISTRY)
"""Every check of this platform by its name, in the order in which they are run."""


def applicable_checks(features: Features) -> tuple[str, ...]:
    """The names of the checks that apply to a stream with `features`."""
    return tuple(name for name, check in CHECKS.items() if not features.lacks(check.needs))


def check_stream(
    make_pair: MakePair,
    *,
    make_clogged_pair: MakePair | None = None,
    features: Features | None = None,
    checks: Iterable[str] | None = None,
    seed: int = 0,
    wait_seconds: float = WAIT_SECONDS,
    swap: bool = True,
) -> tuple[str, ...]:
    """Runs the suite, or a part of it, and stops at the first failure.

    Args:
        make_pair: opens a connected pair of streams, a fresh one at each call, and returns it as a tuple
            or as a context manager. The suite closes the streams, then leaves the context manager. It is
            called in threads of the suite's own, several times in one check where that takes many streams.
        make_clogged_pair: the same for checks that fill a stream up; a pair with small buffers makes them
            fast. None takes `make_pair`; one that is endless, or holds more than 64 MiB, fails them.
        features: what the stream is able to do. None looks at the methods of one pair, which cannot tell
            whether it resets: give features for streams that are less than a socket.
        checks: names of the checks to run, in this order; None for all that apply.
        seed: of the random sizes and data; the same seed gives the same ones.
        wait_seconds: the most that one step, such as the way of a byte from end to end, may take. More
            for slow streams; it bounds how long a broken one holds a check up: twice that four times over.
        swap: whether each check is run with the ends swapped, too. False where only the first end of a pair has
            the features, as when the other is in another machine.

    Returns:
        The names of the checks that were run, all of them passed.

    Raises:
        AssertionError: the stream failed a check; the text begins with the check's name and a colon, or
            with the name and "(ends swapped)".
        ValueError: `checks` has a name that does not exist, or that does not apply with `features` (the
            caller's doing); nothing was run.
    """
    if features is None:
        features = _detect(make_pair)
    names = applicable_checks(features) if checks is None else tuple(checks)
    for name in names:
        if name not in CHECKS:
            raise ValueError(f"there is no check {name!r}; there are: {', '.join(CHECKS)}")
        if lacking := features.lacks(CHECKS[name].needs):
            raise ValueError(f"check {name!r} needs what the stream lacks: {', '.join(lacking)}")
    for name in names:
        check = CHECKS[name]
        maker = make_clogged_pair if check.clogs and make_clogged_pair is not None else make_pair
        check.run(maker, features=features, seed=seed, wait_seconds=wait_seconds, swap=swap)
    return names


def _detect(make_pair: MakePair) -> Features:
    harness = Harness(make_pair, "", WAIT_SECONDS, Features())
    try:
        return Features.detect(harness.open()[0])
    finally:
        harness.finish(failed=False)
