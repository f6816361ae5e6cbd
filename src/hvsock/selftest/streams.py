"""The conformance suite for byte streams, over connections that this process makes."""

from __future__ import annotations

from typing import Final

from hvsock.testing import CHECKS as SUITE
from hvsock.testing import Features, check_stream

from .check import Check, NotApplicable
from .ground import STEP_SECONDS, Ground, connected


def _of(name: str) -> Check:
    def function(ground: Ground) -> None:
        features = ground.features
        if features is None:
            with ground.make() as sock:
                features = Features.detect(sock)
        if lacking := features.lacks(SUITE[name].needs):
            raise NotApplicable(f"the socket has no {', '.join(lacking)}")
        check_stream(
            lambda: connected(ground.calling, ground.fresh_service()),
            checks=[name],
            features=features,
            wait_seconds=STEP_SECONDS,
        )

    return Check(f"stream: {name}", function)


CHECKS: Final = tuple(_of(name) for name in SUITE)
