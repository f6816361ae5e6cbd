"""`hvsock` as on Windows: a program that calls this Linux win32, gives it fakes, and takes Linux's modules away.

Usage: ``python -m tests.windows.as_windows RUNS < INPUT``, where RUNS is JSON: a list of objects with

- ``arguments``: those of one `hvsock` command;
- ``with``: what the machine has by then, where that is not as before: ``elevated``, and ``powershell``,
  a list of answers as the frame of a script gives them, one for each question;
- ``beside``: whether it runs in a thread, listening, while the next ones do; it has to end after them.

It writes one line of JSON on standard error for each command, when that has ended: its ``arguments``, ``code``,
``out``, ``err`` (for `connect` and `listen` these two are this program's own), and ``asked``, the scripts that
PowerShell got.
"""

from __future__ import annotations

import asyncio  # noqa: F401 (these, before they would find another platform)
import contextlib
import difflib  # noqa: F401
import importlib.abc
import importlib.metadata
import io
import json
import os
import platform
import select
import shutil
import sqlite3  # noqa: F401
import ssl  # noqa: F401
import subprocess
import sys
import tempfile  # noqa: F401
import threading
import types
from collections.abc import Sequence
from typing import Any, Final

import click  # noqa: F401

assert sys.platform == "linux"

from tests.windows.fake_winreg import FakeWinreg
from tests.windows.winsock import Machine, socket_module

WITHOUT: Final = frozenset(
    {"fcntl", "pwd", "grp", "spwd", "termios", "tty", "pty", "resource", "syslog", "crypt", "readline", "curses"}
)
"""Modules that Windows does not have; what of the standard library uses them is imported by now."""
OF_OS: Final = (
    *("fork", "forkpty", "geteuid", "getegid", "getuid", "getgid", "getgroups", "setuid", "chown", "lchown"),
    *("eventfd", "eventfd_read", "eventfd_write", "pidfd_open", "splice", "memfd_create", "sendfile", "mkfifo"),
    *("openpty", "killpg", "getpgid", "setsid", "statvfs", "sched_setaffinity", "sysconf", "uname"),
)
"""Functions of os that Windows does not have."""
OF_SELECT: Final = ("poll", "epoll")


class Without(importlib.abc.MetaPathFinder):
    """Finds that a module is not there."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """See the base class."""
        if fullname.partition(".")[0] in WITHOUT:
            raise ModuleNotFoundError(f"No module named {fullname!r} (Windows has none)", name=fullname)


class PowerShell:
    """Answers each script with the next of the answers, as powershell.exe prints it, and keeps the scripts."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[str] = []

    def output_of(self, arguments: Sequence[str], seconds: float = 0.0) -> bytes:
        """What stands in for :func:`hvsock.windows.programs.output_of`."""
        import base64

        from hvsock.errors import NotReadyError

        if not arguments[0].endswith("powershell.exe"):
            raise NotReadyError(f"{arguments[0]} cannot be run: it is not there")
        script = base64.b64decode(arguments[-1]).decode("utf-16-le")
        self.asked.append(script)
        assert self.answers, f"nobody expects this question: {script}"
        return json.dumps(self.answers.pop(0)).encode()


def become_windows(machine: Machine) -> FakeWinreg:
    """From here on, what is imported finds Windows; returns its registry."""
    for name in [one for one in sys.modules if one.partition(".")[0] == "hvsock"]:
        del sys.modules[name]  # they are imported anew, as Windows has them
    version = types.SimpleNamespace(build=20348)
    vars(sys).update({"platform": "win32", "getwindowsversion": lambda: version})
    named = platform.uname_result("Windows", "host", "2022Server", "10.0.20348", "AMD64")
    edition = (named.release, named.version, "SP0", "Multiprocessor Free")
    vars(platform).update({"uname": lambda: named, "win32_ver": lambda *arguments: edition})
    vars(subprocess)["CREATE_NO_WINDOW"] = 0
    vars(shutil)["_winapi"] = types.SimpleNamespace(NeedCurrentDirectoryForExePath=lambda name: False)
    registry = FakeWinreg(elevated=False)
    sys.modules["winreg"] = registry  # type: ignore[assignment]
    for name in WITHOUT:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Without())
    for module, names in ((os, OF_OS), (select, OF_SELECT)):
        for name in names:
            vars(module).pop(name, None)
    sys.modules["socket"] = socket_module(machine, "")
    return registry


class Runs:
    """Runs commands one after the other on one machine."""

    def __init__(self) -> None:
        self._machine = Machine()
        self._winreg = become_windows(self._machine)
        self._shell = PowerShell()
        self._beside: list[threading.Thread] = []
        from hvsock.windows import powershell

        vars(powershell)["output_of"] = self._shell.output_of

    def run(self, order: dict[str, Any]) -> None:
        """One command."""
        more = order.get("with", {})
        self._winreg.elevated = more.get("elevated", self._winreg.elevated)
        self._shell.answers = list(more.get("powershell", ()))
        if order.get("beside"):
            self._beside.append(threading.Thread(target=self._run, args=(order["arguments"],), daemon=True))
            before = self._listening()
            self._beside[-1].start()
            while not self._listening() - before:
                self._beside[-1].join(0.01)
                assert self._beside[-1].is_alive()
            return
        self._run(order["arguments"])

    def _listening(self) -> set[int]:
        """What listens, by inode."""
        return {inode for inode, one in list(self._machine.endpoints.items()) if one.listening}

    def end(self) -> None:
        """Wait for what runs beside."""
        for thread in self._beside:
            thread.join()

    def _run(self, arguments: list[str]) -> None:
        from hvsock.cli.main import cli

        out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
        self._shell.asked.clear()
        code: object = None
        with contextlib.ExitStack() as stack:
            if arguments[0] not in ("connect", "listen"):
                stack.enter_context(contextlib.redirect_stdout(out))
                stack.enter_context(contextlib.redirect_stderr(err))
            try:
                cli.main(arguments, "hvsock")
            except SystemExit as end:
                code = end.code
        out.seek(0)
        told = {"arguments": arguments, "code": code, "out": out.read(), "err": err.getvalue()}
        line = json.dumps({**told, "asked": list(self._shell.asked)}) + "\n"
        os.write(2, line.encode())  # at once, as threads may tell at the same time


def main() -> None:
    """Be that program."""
    runs = Runs()
    for order in json.loads(sys.argv[1]):
        runs.run(order)
    runs.end()


if __name__ == "__main__":
    main()
