"""The stream suite over a transport, check by check, whatever became of the others."""

from __future__ import annotations

import sys

from hvsock.testing import CHECKS, Features, MakePair, check_stream

from .probes import ABSENT, FAILED, ONLY_ONE_WAY, PASSED, said

assert sys.platform == "linux"


def run_suite(
    make_pair: MakePair,
    has: Features,
    *,
    both: Features | None = None,
    wait_seconds: float = 5.0,
) -> dict[str, str]:
    """The outcome of every check of the suite.

    Args:
        make_pair: opens pairs.
        has: what the transport has; what it lacks is "no".
        both: what can be reached of that at both ends of a pair; None for all. The rest is put to its first
            end alone.
        wait_seconds: as check_stream takes it.
    """
    found = {}
    for name, check in CHECKS.items():
        swap = not (both or has).lacks(check.needs)
        if has.lacks(check.needs):
            found[name] = ABSENT
        else:
            try:
                check_stream(make_pair, checks=[name], features=has, wait_seconds=wait_seconds, swap=swap)
                found[name] = PASSED if swap else ONLY_ONE_WAY
            except (AssertionError, OSError) as error:
                found[name] = f"{FAILED}: {said(error)}"
        print(f"  {name}: {found[name]}", file=sys.stderr, flush=True)
    return found
