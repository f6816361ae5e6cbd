"""Brokers, connectors and listeners as processes of their own, to be killed."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import hvsock
import hvsock.cli.commands.up  # once, here, and not in each fork
from hvsock.cli.main import cli
from hvsock.fabric import client, paths

assert sys.platform == "linux"

from . import steps

PATIENCE_SECONDS = 20.0
"""What nothing here takes on a busy machine; more of it is a failure."""


class Forked:
    """A child of this process that runs `run` with what this one has loaded, in a twentieth of a program's start.

    It has none of the descriptors of this process, but a null device in place of the first three.
    """

    def __init__(self, run: Callable[[], object]) -> None:
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                gc.freeze()  # what was this process's is not taken down, with the numbers of its descriptors
                for descriptor in range(3):
                    os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
                signal.set_wakeup_fd(-1)
                run()
            except SystemExit as end:
                os._exit(end.code if isinstance(end.code, int) else 1)
            finally:
                os._exit(1)

    def kill(self) -> None:
        """Kill -9; no error where it has ended."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = PATIENCE_SECONDS) -> int:
        """Wait for its end: its exit code, negative for a signal."""
        deadline = time.monotonic() + timeout
        while self._status is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self._status = os.waitstatus_to_exitcode(status)
                break
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.001)
        return self._status


def _serve(step: str | None, environ: dict[str, str]) -> None:
    """Be `hvsock up`, up to the step."""
    os.environ.update(environ)
    if step is not None:
        steps.STEPS[step]()
    cli.main(["up", "--no-timesync"])


class BrokerProcess:
    """`hvsock up` in `folder`; may be killed and started again.

    Args:
        folder: the fabric's folder.
        step: the name of a step in steps.py at which this broker kills itself; none by default.
        stop: it stops there, instead.
        timesync: whether it keeps the clocks of VMs right, which takes a connection of each.
    """

    def __init__(
        self, folder: str, step: str | None = None, *, stop: bool = False, timesync: bool = False
    ) -> None:
        self.folder = folder
        self._timesync = timesync
        self.host = paths.host_folder(folder)
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self.start(step, stop=stop)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def start(self, step: str | None = None, *, wait: bool = True, stop: bool = False) -> None:
        """Start a broker, and wait until it answers; with `stop` it stops at the step instead of dying."""
        environ = {paths.FOLDER_VARIABLE: self.folder, **({steps.STOP_VARIABLE: "once"} if stop else {})}
        if self._timesync:
            command = [sys.executable, "-m", "hvsock", "up"]
            self._process = subprocess.Popen(command, env={**os.environ, **environ}, stderr=subprocess.DEVNULL)
        else:
            self._process = Forked(lambda: _serve(step, environ))
        if wait:
            try:
                self.wait_until_up()
            except BaseException:
                self.kill()
                raise

    def wait_until_up(self) -> None:
        """Wait until the broker answers."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                client.call(self.host, "ping")
                return
            except (hvsock.NoFabricError, OSError):
                assert time.monotonic() < deadline, "the broker does not answer"
                time.sleep(0.005)

    def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait_until_stopped(self) -> None:
        """Wait until the broker has stopped itself."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with open(f"/proc/{self.pid}/stat", encoding="ascii") as file:
                if file.read().rpartition(")")[2].split()[0] == "T":
                    return
            assert time.monotonic() < deadline, "the broker does not stop"
            time.sleep(0.002)

    def go_on(self) -> None:
        """Let a broker that stopped go on."""
        os.kill(self.pid, signal.SIGCONT)

    def wait_for_end(self) -> int:
        """Wait until the broker has ended by itself; its status, negative for a signal."""
        assert self._process is not None
        return self._process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        """End the broker."""
        self.kill()


@contextlib.contextmanager
def child(run: Callable[[], None]) -> Iterator[int]:
    """Run `run` in a forked process; killed at the end of the block if it still runs."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            found, _ = os.waitpid(pid, os.WNOHANG)
            if found == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def ended_well(pid: int) -> None:
    """Wait for a child and require that it ended without an error."""
    deadline = time.monotonic() + 6 * 3600
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0, f"a process failed with status {status}; its output says why"
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)
