"""Connecting to a service that may not be there yet: growing pauses, and what is worth waiting for."""

from __future__ import annotations

import errno
import socket as _stdlib
import time
from collections.abc import Callable
from typing import Final, TypeVar

from hvsock.addresses import Address
from hvsock.errors import NoFabricError, NotFoundError

FIRST_PAUSE_SECONDS: Final = 0.01
"""Pause after the first try in vain; it doubles up to LONGEST_PAUSE_SECONDS."""
LONGEST_PAUSE_SECONDS: Final = 0.25
"""So a service is noticed a quarter of a second after it came, at most."""

AddressLike = str | tuple[str, str]
"""A URL (``hvsocket://VM/SERVICE``, ``vsock://CID:PORT``, ``unix:PATH?hybrid=PORT``), or the pair (VM, SERVICE),
each half a GUID, a word, a port or a name."""

WORTH_WAITING: Final = {
    errno.ECONNREFUSED,  # nothing listens yet
    errno.ENETUNREACH,  # no broker yet
    errno.EHOSTUNREACH,  # no such partition yet
    errno.EACCES,  # not registered yet; a denial looks the same from here
    errno.ETIMEDOUT,
    errno.ENETDOWN,  # Windows says so while a VM is being started
    errno.ENOBUFS,
}


S = TypeVar("S", bound=_stdlib.socket)


class Patience:
    """Growing pauses until a deadline."""

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def left(self) -> float | None:
        """Seconds that are left, not below zero; None for no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def pause(self) -> bool:
        """Sleep; False when the time is over."""
        left = self.left
        if left == 0:
            return False
        time.sleep(self._pause if left is None else min(self._pause, left))
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return True


def connect_patiently(
    make: Callable[[], S], resolve: Callable[[], Address], timeout: float | None, retry: bool
) -> S:
    """A connected socket, which the caller owns.

    Args:
        make: makes a socket, for each try.
        resolve: looks the address up, for each try.
        timeout: seconds for the whole of it, and the time-out of the socket; None for no limit.
        retry: try again until the service is there, or `timeout` is over.

    Raises:
        OSError: what connect raises; with `retry`, what the last try raised that had the time for an answer.
        HvsockError: what `resolve` raises, likewise.
    """
    patience = Patience(timeout)
    answer: Exception | None = None
    while True:
        sock = make()
        try:
            target = resolve()
            # a try of its own may take what is left, so that a late refusal is not turned into a time-out
            sock.settimeout(patience.left or (None if timeout is None else FIRST_PAUSE_SECONDS))
            sock.connect(target)
            sock.settimeout(timeout)
            return sock
        except (OSError, NotFoundError, NoFabricError) as error:
            sock.close()
            if answer is not None and isinstance(error, TimeoutError) and error.errno is None:
                raise answer from None
            worth = isinstance(error, (NotFoundError, NoFabricError)) or (
                isinstance(error, OSError) and error.errno in WORTH_WAITING
            )
            if not (retry and worth and patience.pause()):
                raise
            answer = error.with_traceback(None)  # which would hold this frame, and so a socket
        except BaseException:
            sock.close()
            raise
