"""Brokers, connectors and listeners as processes of their own, to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import hvsock
from hvsock.fabric import client, paths

assert sys.platform == "linux"

PATIENCE_SECONDS = 20.0
"""What nothing here takes on a busy machine; more of it is a failure."""


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
        self._process: subprocess.Popen[bytes] | None = None
        self.start(step, stop=stop)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def start(self, step: str | None = None, *, wait: bool = True, stop: bool = False) -> None:
        """Start a broker, and wait until it answers; with `stop` it stops at the step instead of dying."""
        command = [sys.executable, "-m", "hvsock", "up", *([] if self._timesync else ["--no-timesync"])]
        environ = {**os.environ, paths.FOLDER_VARIABLE: self.folder}
        if step is not None:
            command = [sys.executable, str(Path(__file__).with_name("steps.py"))]
            environ["HVSOCK_TEST_STEP"] = step
            if stop:
                environ["HVSOCK_TEST_STOP"] = "once"
        self._process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
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
