"""ServiceIds as ports of AF_VSOCK: by the template, or by the alias that the host's registry has."""

from __future__ import annotations

import errno
import sys
import threading
import time
from typing import Final

from hvsock.addresses import SERVICE_WILDCARD, ServiceId
from hvsock.constants import VSOCK_PORT_MAX
from hvsock.errors import HvsockError
from hvsock.fabric import client, paths

if sys.platform != "linux":
    raise ImportError("AF_VSOCK is in Linux guests")

PORT_ANY: Final = VSOCK_PORT_MAX
"""Bind: the kernel chooses; shown for a socket without a port: VMADDR_PORT_ANY (linux/vm_sockets.h)."""

FRESH_SECONDS: Final = 5.0
"""How long :func:`learn` believes what the host said: aliases are given and taken away while a way up goes on."""
LEARN_SECONDS: Final = 2.0
"""How long :func:`learn` waits for the host, whose answer takes milliseconds; other connects wait meanwhile."""
SILENCE_SECONDS: Final = 5.0
"""How long :func:`learn` does not ask a host again that did not answer in time."""

_learning = threading.Lock()
_silent_until = 0.0
"""Until when :func:`learn` takes the host for one that hangs, in seconds of time.monotonic."""
_aliases: dict[ServiceId, int] = {}
"""What the host said last; it is asked again for what it did not know."""
_asked_at = 0.0
"""When that was, in seconds of time.monotonic."""


def to_bind(service_id: ServiceId) -> int:
    """The port that a listener for `service_id` is bound to; zero lets the kernel choose.

    Raises:
        OSError: as :func:`of`.
    """
    return PORT_ANY if service_id == SERVICE_WILDCARD else of(service_id)


def of(service_id: ServiceId) -> int:
    """The port of `service_id`; the host is asked once for each that is outside the template.

    Raises:
        OSError: EADDRNOTAVAIL: it has none, or one that no socket can have; ENETUNREACH: the host, asked
            for it, does not answer.
    """
    port = service_id.port if service_id.port is not None else _aliases.get(service_id)
    if port is None:
        _look(paths.partition_folder())
        port = _aliases.get(service_id)
    if port is None:
        raise _no_port(service_id)
    if port == PORT_ANY:
        raise OSError(errno.EADDRNOTAVAIL, f"port {port} stands for any port to AF_VSOCK, and no service has it")
    return port


def learn(service_id: ServiceId) -> None:
    """Ask the host for the port of `service_id` where that is needed, in a process that has a fabric of its own.

    What it said is believed for :data:`FRESH_SECONDS`. Of several threads one asks, and the others wait for that;
    where the host hangs, that is over after :data:`LEARN_SECONDS`.

    Raises:
        OSError: EADDRNOTAVAIL: it has none there; ENETUNREACH: the host does not answer.
    """
    if service_id.port is not None:
        return
    with _learning:
        if service_id not in _aliases or time.monotonic() - _asked_at > FRESH_SECONDS:
            _look_briefly()
    if service_id not in _aliases:
        raise _no_port(service_id)  # an alias of the fabric inside is none of the host's


def _look_briefly() -> None:
    global _silent_until
    started = time.monotonic()
    if started < _silent_until:
        raise OSError(errno.ENETUNREACH, "the host did not answer just now, when a service's port was looked up")
    try:
        _look(None, LEARN_SECONDS)
    except OSError:
        if time.monotonic() >= started + LEARN_SECONDS:
            _silent_until = time.monotonic() + SILENCE_SECONDS
        raise


def _no_port(service_id: ServiceId) -> OSError:
    command = f"hvsock service register NAME --id {service_id} --port-alias PORT"
    return OSError(errno.EADDRNOTAVAIL, f"it has no AF_VSOCK port; give it one on the host: {command}")


def _look(folder: str | None, within: float | None = None) -> None:
    global _aliases, _asked_at
    asked_at = time.monotonic()
    try:
        services = client.call(folder, "services", within=within)
    except HvsockError as error:
        raise OSError(errno.ENETUNREACH, f"a service's port was to be looked up: {error}") from None
    _aliases = {ServiceId(one["id"]): one["port_alias"] for one in services if one["port_alias"] is not None}
    _asked_at = asked_at
