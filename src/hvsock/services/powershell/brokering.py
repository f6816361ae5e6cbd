"""How a host opens a PowerShell session in a guest: by the broker, then by the session service."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from hvsock.constants import VM_SESSION_SERVICE, VM_SESSION_SERVICE_2, SessionService
from hvsock.errors import UsageError
from hvsock.fabric import paths
from hvsock.names import resolve
from hvsock.sockets.aio import connected
from hvsock.sockets.chosen import socket
from hvsock.sockets.patience import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS

from .conversing import converse
from .handshake import Agreement, BrokerClient, Credentials, SessionClient, SilenceError
from .lockstep import Lockstep, R

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

OPENING_SECONDS: Final = 60.0
"""How long a guest may take in all: PAM waits seconds after a wrong password, and an emulated guest is slow."""
STARTING_SECONDS: Final = 10.0
"""How long a service may refuse the connection that follows another: it is started for it in the original."""


class _Opening:
    """One attempt to open a session; says what it waits for.

    Args:
        vm, partition: as :func:`open_session` has them.
    """

    def __init__(self, vm: str, partition: str | None) -> None:
        self._vm = vm
        self._partition = partition
        self.awaited = "a connection"

    async def agree(self, credentials: Credentials, configuration: str, require_authentication: bool) -> Agreement:
        """The first connection, and the one after it where the guest speaks the older version."""
        first = BrokerClient(credentials, configuration, require_authentication=require_authentication)
        agreement = await self._with_broker(first, again=False)
        if agreement.again:
            agreement = await self._with_broker(BrokerClient(credentials, configuration, older=True), again=True)
        return agreement

    async def begin(self, token: str | None) -> socket:
        """The second connection; without a token nothing is said on it."""
        sock = await self._connected_again(VM_SESSION_SERVICE_2)
        try:
            if token is not None:
                await self._converse(sock, SessionClient(token))
        except BaseException:
            sock.close()
            raise
        return sock

    async def container(self) -> socket:
        """The connection to a container, which has no broker."""
        self.awaited = "a connection"
        return await connected((self._vm, VM_SESSION_SERVICE_2.id), partition=self._partition, passthru=True)

    async def _with_broker(self, side: BrokerClient, *, again: bool) -> Agreement:
        if again:
            sock = await self._connected_again(VM_SESSION_SERVICE)
        else:
            sock = await connected((self._vm, VM_SESSION_SERVICE.id), partition=self._partition)
        with sock:
            return await self._converse(sock, side)

    async def _converse(self, sock: socket, side: Lockstep[R]) -> R:
        try:
            return await converse(sock, side)
        finally:
            self.awaited = side.turn.what

    async def _connected_again(self, service: SessionService) -> socket:
        """Connect to a service that may just be starting."""
        self.awaited = f"a connection to its {service.name}"
        deadline = asyncio.get_running_loop().time() + STARTING_SECONDS
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await connected((self._vm, service.id), partition=self._partition)
            except ConnectionRefusedError:
                if asyncio.get_running_loop().time() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def open_session(
    vm: str,
    credentials: Credentials | None,
    *,
    configuration: str = "",
    partition: str | None = None,
    timeout: float = OPENING_SECONDS,
    require_authentication: bool = False,
    container: bool = False,
) -> socket:
    """Open a PowerShell session in a guest.

    Args:
        vm: the guest: a VmId or a name.
        credentials: whom to be there; None for a container.
        configuration: the name of a session configuration of the guest; empty for its default one.
        partition: the partition's folder to connect from; by default that of the process.
        timeout: seconds that all of it may take.
        require_authentication: refuse guests of the older version, whose session anybody could take who connects
            to it first.
        container: it is a container in a utility VM: HVSOCKET_CONTAINER_PASSTHRU is set, and nobody is asked for
            credentials.

    Returns:
        A connected socket that does not block, which the caller owns. What comes next on it is PSRP, with
        NULs before it that may trail the guest's last answer.

    Raises:
        CredentialError, ConfigurationError, TokenError: what the guest refuses.
        VersionError, OlderVersionError: there is no version that both may speak.
        SilenceError: the guest did not answer in time.
        ProtocolError, LostError: it answered what is none, or ended the connection.
        UsageError: neither credentials nor a container, or both.
        OSError, NotFoundError, NoFabricError: what connect raises.
    """
    if (credentials is None) != container or (container and (configuration or require_authentication)):
        raise UsageError("a session needs credentials; one in a container has none, and no configuration either")
    opening = _Opening(vm, partition)
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            if credentials is None:
                return await opening.container()
            agreement = await opening.agree(credentials, configuration, require_authentication)
            return await opening.begin(agreement.token)
    except TimeoutError:
        if not limit.expired():
            raise
        raise SilenceError(f"{vm} did not answer within {timeout:g} s; it owes {opening.awaited}") from None


async def host_credentials(
    vm: str,
    user: str | None = None,
    *,
    partition: str | None = None,
    keys: str | None = None,
    timeout: float = OPENING_SECONDS,
) -> Credentials:
    """Credentials without a password: signed by the key that the host has for this guest, and gives it by Direct.

    Args:
        vm: the guest: a VmId or a name.
        user: whom to be there; by default the agent's own user.
        partition: the partition's folder to connect from; by default that of the process.
        keys: the folder of the keys of all VMs; by default that of the fabric.
        timeout: seconds that the guest may take.

    Raises:
        SilenceError: it did not answer in time.
        OSError, HvsockError: as Direct's hand-over raises them, where the guest has no Direct, for example.
    """
    from hvsock.services.predefined.direct.connecting import handed_over
    from hvsock.services.predefined.direct.hostkeys import HostKeys

    from .keylogin import signed

    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            target = await asyncio.to_thread(resolve, (vm, VM_SESSION_SERVICE.id), partition)
            folder = keys or os.path.join(paths.fabric_folder(), "keys")
            own = await asyncio.to_thread(HostKeys, folder, target.vm_id, vm)
            sock, guest = await handed_over(target.vm_id, own, partition=partition, timeout=timeout)
    except TimeoutError:
        if not limit.expired():
            raise
        raise SilenceError(f"{vm} did not answer within {timeout:g} s; it owes the hand-over of Direct") from None
    sock.close()
    whom = user or guest.user
    private, _ = await asyncio.to_thread(own.key_pair)
    return Credentials(whom, await asyncio.to_thread(signed, private, whom))
