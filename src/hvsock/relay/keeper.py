"""How `hvsock up` keeps a relay running, as its child, as long as the registry has a forward.

The child ends with `hvsock up`, also where that is killed: what one started is gone when it is gone, and no
process is left that nobody looks after. Who wants relayed connections to outlive a restart of the broker runs
`hvsock forward` as a service of its own: its lock is seen here, and no second relay is started.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from typing import Final

from hvsock.errors import HvsockError
from hvsock.fabric import paths
from hvsock.registry import Registry
from hvsock.tied import tied
from hvsock.transport import TRANSPORT_VARIABLE

from . import process

if sys.platform != "linux":
    raise ImportError("the relay needs Linux: it is built on epoll")

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.4
"""Pause between two looks at the registry, and at the lock of a relay that somebody else started."""
RESTART_SECONDS: Final = 1.0
"""Pause before a relay that ended is started again."""
END_SECONDS: Final = 3.0
"""How long the relay may take to end after SIGTERM, before SIGKILL."""


class Keeper:
    """Keeps the relay of one fabric, from :meth:`start` to :meth:`stop`, in a thread of its own.

    Args:
        folder: the fabric's folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._version: int | None = None
        self._forwards = False
        self._complained = False
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="hvsock-relay-keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the relay, if it was started here; waits until it has ended. To be called once."""
        os.eventfd_write(self._stop, 1)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        # this thread lives as long as its child: the kernel ends the child with the thread that started it
        try:
            registry = Registry(os.path.join(self._folder, "registry"), read_only_because="only looks")
        except HvsockError as error:
            log.error("services are not forwarded: %s", error)
            return
        with registry:
            while True:
                while not self._wanted(registry):
                    if self._stopped_within(LOOK_SECONDS):
                        return
                if self._keep():
                    return

    def _wanted(self, registry: Registry) -> bool:
        """Whether there is a forward, and nobody who serves it."""
        try:
            version = registry.version()
            if version != self._version:
                self._forwards = any(entry.forward is not None for entry in registry.entries())
                self._version = version
                self._complained = False
            return self._forwards and not process.runs(self._folder)
        except (HvsockError, OSError) as error:
            if not self._complained:
                self._complained = True
                log.error("it cannot be told whether services are forwarded: %s", error)
            return False

    def _keep(self) -> bool:
        """Start a relay and wait for its end; whether it was this process that wanted it to end."""
        program = [sys.executable, "-P", "-m", "hvsock", "forward"]
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in (paths.PARTITION_VARIABLE, TRANSPORT_VARIABLE, "NOTIFY_SOCKET")
        }
        environ[paths.FOLDER_VARIABLE] = self._folder
        try:
            child = subprocess.Popen(
                tied(program),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # ctrl-C in a terminal is for the broker
            )
        except OSError as error:
            log.error("the relay cannot be started: %s", error)
            return self._stopped_within(RESTART_SECONDS)
        with child:
            ended = os.pidfd_open(child.pid)
            try:
                if self._stopped_within(None, ended):
                    _end(child, ended)
                    return True
            finally:
                os.close(ended)
            code = child.wait()
        how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with code {code}"
        log.warning("the relay ended %s, its connections with it; it is started again", how)
        return self._stopped_within(RESTART_SECONDS)

    def _stopped_within(self, seconds: float | None, other: int | None = None) -> bool:
        """Wait for :meth:`stop`, for `other` to be readable, or for the time; whether it is the first."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        if other is not None:
            poll.register(other, select.POLLIN)
        return any(
            descriptor == self._stop for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000)
        )


def _end(child: subprocess.Popen[bytes], ended: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    if not poll.poll(END_SECONDS * 1000):
        child.kill()
    child.wait()
