"""`hvsock selftest --json` as on Windows: see :mod:`tests.windows.as_windows`."""

from __future__ import annotations

import sys

assert sys.platform == "linux"

from tests.windows.as_windows import become_windows
from tests.windows.winsock import Machine


def main() -> None:
    """Be that program."""
    become_windows(Machine())
    from hvsock.cli.main import main as command

    sys.argv = ["hvsock", "selftest", "--json"]
    command()


main()
