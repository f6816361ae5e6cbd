"""`hvsock selftest --json` as on Windows: a program that calls this Linux win32 and gives it the fakes."""

from __future__ import annotations

import asyncio  # noqa: F401 (these, before they would find another platform)
import difflib  # noqa: F401
import importlib.metadata  # noqa: F401
import json  # noqa: F401
import platform  # noqa: F401
import select  # noqa: F401
import ssl  # noqa: F401
import subprocess
import sys
import tempfile  # noqa: F401
import types

import click  # noqa: F401

assert sys.platform == "linux"

from tests.windows.fake_winreg import FakeWinreg
from tests.windows.winsock import Machine, socket_module


def main() -> None:
    """Be that program."""
    for name in [one for one in sys.modules if one.partition(".")[0] == "hvsock"]:
        del sys.modules[name]  # they are imported anew, as Windows has them
    version = types.SimpleNamespace(build=20348)
    fake = {"platform": "win32", "getwindowsversion": lambda: version}
    vars(sys).update(fake)
    vars(subprocess)["CREATE_NO_WINDOW"] = 0
    sys.modules["winreg"] = FakeWinreg(elevated=False)  # type: ignore[assignment]
    sys.modules["socket"] = socket_module(Machine(), "")
    from hvsock.cli.main import main as command

    sys.argv = ["hvsock", "selftest", "--json"]
    command()


main()
