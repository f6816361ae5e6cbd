"""The core: rules and machines without I/O, and the tests that cover each by themselves.

``python -m tests.core DATA`` runs those tests in one process, and notes in the file DATA what of each part of the
core its own tests ran: lines and branches that the tests of another part ran do not count.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import coverage
import pytest

ROOT: Final = Path(__file__).parent.parent

CORE: Final = {
    "hvsock.topology": ("tests/topology",),
    "hvsock.fabric.messages": ("tests/fabric/test_messages.py",),
    "hvsock.virtio": ("tests/virtio",),
}
"""Package or module -> the folders or files with its tests."""

NOT_RUN: Final = (str(ROOT / "tests" / "virtio" / "test_fuzz*.py"),)
"""Files with tests that only try at random what others try one by one."""

OF_NO_TEST: Final = ""
"""The context of what runs while tests are collected: the bodies of modules and classes."""


class Contexts:
    """A plugin of pytest: what a test runs counts for the part of the core that it is a test of.

    Args:
        measured: where it counts.
    """

    def __init__(self, measured: coverage.Coverage) -> None:
        self._measured = measured
        self._current = OF_NO_TEST

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Before fixtures of the test are set up."""
        due = next(
            name for name, tests in CORE.items() if any(item.path.is_relative_to(ROOT / one) for one in tests)
        )
        if due != self._current:
            self._measured.switch_context(due)
            self._current = due


def main(data: str) -> int:
    """Run the tests; returns pytest's exit status."""
    measured = coverage.Coverage(data_file=data, branch=True, source=list(CORE))
    measured.start()
    tests = [one for tests in CORE.values() for one in tests]
    # neither the project's own pytest plugin nor a cache: what counts is what these tests do; and nothing that
    # takes its time and is there for who reads a failure, which is another run's
    plugins = [f"-pno:{one}" for one in ("hvsock", "cacheprovider", "anyio")]
    ignored = [f"--ignore-glob={one}" for one in NOT_RUN]
    arguments = ["-q", "--assert=plain", *plugins, *ignored, *tests]
    status = pytest.main(arguments, plugins=[Contexts(measured)])
    measured.stop()
    measured.save()
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
