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

POWERSHELL: Final = "hvsock.services.powershell"
OF_POWERSHELL: Final = "tests/services/powershell"
PREDEFINED: Final = "hvsock.services.predefined"
OF_PREDEFINED: Final = "tests/services/predefined"

CORE: Final = {
    "hvsock.topology": "tests/topology",
    "hvsock.fabric.messages": "tests/fabric/test_messages.py",
    "hvsock.virtio": "tests/virtio",
    "hvsock.hybrid.profiles": "tests/hybrid/test_handshake.py",
    "hvsock.hybrid.handshake": "tests/hybrid/test_handshake.py",
    "hvsock.urls": "tests/test_urls.py",
    "hvsock.config.settings": "tests/config/test_schema.py",
    "hvsock.config.schema": "tests/config/test_schema.py",
    "hvsock.machines.libvirt": "tests/machines/test_parsers.py",
    "hvsock.machines.qemu": "tests/machines/test_parsers.py",
    "hvsock.services.types": "tests/services/test_messages.py",
    "hvsock.services.messages": "tests/services/test_messages.py",
    "hvsock.services.policy": "tests/services/test_policy.py",
    "hvsock.services.negotiation": "tests/services/test_negotiation.py",
    "hvsock.services.rates": "tests/services/test_rates.py",
    f"{POWERSHELL}.clixml": f"{OF_POWERSHELL}/test_clixml.py",
    f"{POWERSHELL}.framing": f"{OF_POWERSHELL}/test_framing.py",
    f"{POWERSHELL}.fragments": f"{OF_POWERSHELL}/test_fragments.py",
    f"{POWERSHELL}.lockstep": f"{OF_POWERSHELL}/test_handshake.py",
    f"{POWERSHELL}.handshake": f"{OF_POWERSHELL}/test_handshake.py",
    f"{POWERSHELL}.admission": f"{OF_POWERSHELL}/test_admission.py",
    f"{POWERSHELL}.tokens": f"{OF_POWERSHELL}/test_admission.py",
    f"{PREDEFINED}.timesync.arithmetic": f"{OF_PREDEFINED}/test_timesync_arithmetic.py",
    f"{PREDEFINED}.kvp.pools": f"{OF_PREDEFINED}/test_kvp_pools.py",
    f"{PREDEFINED}.vss.machine": f"{OF_PREDEFINED}/test_vss_rules.py",
    f"{PREDEFINED}.vss.mounts": f"{OF_PREDEFINED}/test_vss_rules.py",
    f"{PREDEFINED}.filecopy.frames": f"{OF_PREDEFINED}/test_filecopy_frames.py",
}
"""Package or module -> the folder or file with its tests."""

NOT_RUN: Final = (str(ROOT / "tests" / "virtio" / "test_fuzz*.py"),)
"""Files with tests that only try at random what others try one by one."""

OF_NO_TEST: Final = ""
"""The context of what runs while tests are collected: the bodies of modules and classes."""


class Contexts:
    """A plugin of pytest: what a test runs is noted under the folder or file of CORE that the test is in.

    Args:
        measured: where it counts.
    """

    def __init__(self, measured: coverage.Coverage) -> None:
        self._measured = measured
        self._current = OF_NO_TEST

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Before fixtures of the test are set up."""
        due = next(one for one in CORE.values() if item.path.is_relative_to(ROOT / one))
        if due != self._current:
            self._measured.switch_context(due)
            self._current = due


def main(data: str) -> int:
    """Run the tests; returns pytest's exit status."""
    measured = coverage.Coverage(data_file=data, branch=True, source=list(CORE))
    measured.start()
    # neither the project's own pytest plugin nor a cache: what counts is what these tests do; and nothing that
    # takes its time and is there for who reads a failure, which is another run's
    plugins = [f"-pno:{one}" for one in ("hvsock", "cacheprovider", "anyio")]
    ignored = [f"--ignore-glob={one}" for one in NOT_RUN]
    arguments = ["-q", "--assert=plain", *plugins, *ignored, *dict.fromkeys(CORE.values())]
    status = pytest.main(arguments, plugins=[Contexts(measured)])
    measured.stop()
    measured.save()
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
