"""The host half: connected to a guest's Direct, with keys given and checked."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from hvsock.addresses import ServiceId, VmId
from hvsock.constants import DIRECT
from hvsock.errors import HvsockError, LostError, NotReadyError, ProtocolError, RefusedError
from hvsock.sockets.aio import connected
from hvsock.sockets.chosen import socket

from .handover import GuestIdentity, question, read_line
from .hostkeys import HostKeys

if TYPE_CHECKING:
    import asyncssh

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

HANDOVER_SECONDS: Final = 60.0
"""How long the guest may take to answer; an emulated one loads asyncssh meanwhile, some 10 s."""
LOGIN_SECONDS: Final = 60.0
"""How long SSH may take until we are in."""


async def handed_over(
    vm_id: VmId, keys: HostKeys, *, partition: str | None = None, timeout: float = HANDOVER_SECONDS
) -> tuple[socket, GuestIdentity]:
    """Connect to a guest and hand the keys over; the caller owns the socket, on which SSH comes next.

    Args:
        vm_id: the guest.
        keys: the host's for this guest.
        partition: the partition's folder to connect from; by default that of the process.
        timeout: seconds that the guest may take to answer.

    Raises:
        OSError: what connect raises.
        NotReadyError: the guest does not answer.
        RefusedError, ProtocolError, LostError: what it answered instead, or another key than the pinned one.
    """
    _, public = await asyncio.to_thread(keys.key_pair)
    sock = await connected((str(vm_id), ServiceId.from_port(DIRECT.port)), partition=partition)
    try:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_sendall(sock, question(public))
                guest = GuestIdentity.parse(await read_line(sock))
        except TimeoutError:
            raise NotReadyError(f"the guest's agent did not answer within {timeout:g} s; try again") from None
        keys.accept(guest)
    except BaseException:
        sock.close()
        raise
    return sock, guest


@contextlib.asynccontextmanager
async def logged_in(
    vm_id: VmId,
    keys: HostKeys,
    user: str | None = None,
    *,
    partition: str | None = None,
    timeout: float = HANDOVER_SECONDS,
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """An SSH connection to a guest, closed at the end.

    Args:
        user: whom to be there; by default the agent's own user.
        vm_id, keys, partition, timeout: as :func:`handed_over` says.

    Raises:
        RefusedError: the guest has no such user, or cannot start anything as that.
        OSError, HvsockError: as :func:`handed_over` says.
    """
    import asyncssh

    private, _ = await asyncio.to_thread(keys.key_pair)
    sock, guest = await handed_over(vm_id, keys, partition=partition, timeout=timeout)
    try:
        connection = await asyncssh.run_client(
            sock,
            config=None,
            username=user or guest.user,
            client_keys=[asyncssh.import_private_key(private)],
            known_hosts=([asyncssh.import_public_key(guest.key)], [], []),
            agent_path=None,
            server_host_key_algs=["ssh-ed25519"],
            kex_algs=["curve25519-sha256"],  # what else there is takes an emulated guest longer
            preferred_auth="publickey",
            login_timeout=LOGIN_SECONDS,
            connect_timeout=LOGIN_SECONDS,
            compression_algs=None,
        )
    except BaseException as error:
        sock.close()
        if isinstance(error, Exception):
            raise _explained(error, user) from error
        raise
    try:
        yield connection
    finally:
        connection.abort()
        await connection.wait_closed()


def _explained(error: Exception, user: str | None) -> Exception:
    """An error of SSH's beginning, for people."""
    import asyncssh

    if isinstance(error, HvsockError):
        return error
    if isinstance(error, asyncssh.PermissionDenied):
        whom = f"as {user!r}: is there such a user, and may the agent become it?" if user else "by the key it got"
        return RefusedError(f"the guest does not let the host in {whom}")
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return ProtocolError("the guest has not the host key that it told; its agent may be another program")
    if isinstance(error, TimeoutError):
        return NotReadyError(f"the guest did not let the host in within {LOGIN_SECONDS:g} s; try again")
    if isinstance(error, asyncssh.ConnectionLost | ConnectionError):
        return LostError("the guest ended the connection before the host was in; try again")
    if isinstance(error, asyncssh.Error):
        return ProtocolError(f"the guest speaks SSH wrongly: {error}")
    return error
