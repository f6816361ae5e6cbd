"""Which builds have Hyper-V's sockets."""

from __future__ import annotations

import pytest

from hvsock.windows import builds


@pytest.mark.parametrize(
    ("build", "ok", "missing"),
    [
        (0, False, 3),
        (10586, False, 3),
        (14392, False, 3),
        (14393, True, 2),
        (17133, True, 2),
        (17134, True, 1),
        (17763, True, 0),
        (26100, True, 0),
    ],
)
def test_windows(build: int, ok: bool, missing: int) -> None:
    verdict = builds.windows(build)
    assert (verdict.ok, len(verdict.missing)) == (ok, missing)
    assert str(build) in verdict.found
    assert (verdict.cure is None) is ok


@pytest.mark.parametrize(
    ("release", "ok", "missing"),
    [
        ("3.10.0-1160.el7.x86_64", False, 3),
        ("4.9.0", False, 3),
        ("4.14", True, 2),
        ("5.5.1", True, 1),
        ("5.15.167.4-microsoft-standard-WSL2", True, 0),
        ("10.0-rc1", True, 0),
        ("", False, 3),
        ("mainline", False, 3),
        ("6", False, 3),
    ],
)
def test_linux(release: str, ok: bool, missing: int) -> None:
    """Numbers are compared as numbers, and what is none is not taken for an old one."""
    verdict = builds.linux(release)
    assert (verdict.ok, len(verdict.missing)) == (ok, missing)
    assert release in verdict.found
    assert (verdict.cure is None) is ok


def test_the_table_is_in_order() -> None:
    for history in builds.HISTORY.values():
        versions = [one.version for one in history]
        assert versions == sorted(set(versions))
        assert history[0].needed
