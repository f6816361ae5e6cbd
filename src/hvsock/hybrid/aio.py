"""Connecting to a service of a VMM's guest, under asyncio."""

from __future__ import annotations

import asyncio
import socket
import sys

from hvsock.addresses import ServiceId, parse_service_id
from hvsock.sockets.aio import ready
from hvsock.sockets.streams import STREAM_LIMIT_BYTES

from .connecting import HANDSHAKE_SECONDS, RETRY_SECONDS, Attempt, ServiceLike, Wait, service_id_of
from .profiles import HVSOCK, Profile

if sys.platform != "linux":
    raise ImportError("hybrid sockets need Linux, as the VMMs do")


async def connected(
    path: str, service: ServiceLike, *, profile: Profile = HVSOCK, timeout: float | None = HANDSHAKE_SECONDS
) -> socket.socket:
    """As :func:`.connecting.connect`; the socket does not block.

    Raises:
        TimeoutError, OSError, ProtocolError, UsageError, NotFoundError, NoFabricError: as there.
    """
    attempt = Attempt(path, await _service_id_of(service), profile)
    try:
        try:
            async with asyncio.timeout(timeout) as limit:
                while (wait := attempt.advance()) is not None:
                    if wait is Wait.A_WHILE:
                        await asyncio.sleep(RETRY_SECONDS)
                    else:
                        await ready(attempt.sock.fileno(), write=False)
        except TimeoutError:
            if not limit.expired() or timeout is None:  # the kernel's own
                raise
            raise attempt.too_late(timeout) from None
    except BaseException:
        attempt.sock.close()
        raise
    return attempt.sock


async def open_connection(
    path: str,
    service: ServiceLike,
    *,
    profile: Profile = HVSOCK,
    timeout: float | None = HANDSHAKE_SECONDS,
    limit: int = STREAM_LIMIT_BYTES,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, as streams.

    Args:
        path, service, profile, timeout: as :func:`.connecting.connect` has them.
        limit: bytes that the reader buffers.

    Raises:
        TimeoutError, OSError, ProtocolError, UsageError, NotFoundError, NoFabricError: as there.
    """
    sock = await connected(path, service, profile=profile, timeout=timeout)
    try:
        return await asyncio.open_unix_connection(sock=sock, limit=limit)
    except BaseException:
        sock.close()
        raise


async def _service_id_of(service: ServiceLike) -> ServiceId:
    """Looks a name up in a thread; what is no name needs none."""
    if isinstance(service, str) and parse_service_id(service) is None:
        return await asyncio.to_thread(service_id_of, service)
    return service_id_of(service)
