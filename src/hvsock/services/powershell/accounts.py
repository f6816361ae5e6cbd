"""Whom a guest lets in: by its own PAM, or by the key that its host handed over for Direct."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import Final

from hvsock.errors import NotReadyError
from hvsock.services.agenthood import Surroundings
from hvsock.services.predefined.direct.guestkeys import authorized_key
from hvsock.services.predefined.direct.users import User, find_user

from .handshake import LOCAL_DOMAIN, CredentialError, Credentials
from .keylogin import PREFIX, is_signed
from .tokens import Attempts

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

_ASK_PAM: Final = "hvsock.services.powershell.askpam"
MAX_CHECKS: Final = 4
"""Passwords that are checked at once, each by a process; PAM takes seconds after a wrong one."""


class Accounts:
    """The accounts of a guest.

    Args:
        surroundings: the agent's.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._attempts = Attempts()
        self._checks = asyncio.Semaphore(MAX_CHECKS)

    async def check(self, claim: Credentials) -> User:
        """Find out who it is.

        Raises:
            CredentialError: it is nobody.
            BusyError: there were too many wrong passwords.
            NotReadyError: the guest cannot check passwords.
            NotFoundError, RefusedError: there is no such user, or the agent cannot become it.
        """
        if claim.domain.casefold() not in ("", ".", LOCAL_DOMAIN, socket.gethostname().casefold()):
            raise CredentialError(f"there is no domain {claim.domain!r} here; leave it out")
        if claim.password.startswith(PREFIX):
            await self._check_key(claim)
        else:
            async with self._checks:
                await self._check_password(claim)
        return await asyncio.to_thread(find_user, claim.user)

    async def _check_key(self, claim: Credentials) -> None:
        key = await asyncio.to_thread(authorized_key, self._surroundings.path("direct"))
        if key is None:
            raise CredentialError("the host has handed over no key yet, which Direct does")
        if not await asyncio.to_thread(is_signed, key, claim.user, claim.password):
            raise CredentialError("it is not signed by the key that the host has handed over last")

    async def _check_password(self, claim: Credentials) -> None:
        self._attempts.check(time.monotonic())
        if reason := await ask_pam(claim.user, claim.password):
            self._attempts.failed(time.monotonic())
            raise CredentialError(reason)


async def ask_pam(user: str, password: str) -> str:
    """Ask PAM about a password and the state of the account; takes its time.

    Returns:
        Why it is refused; empty where it is not.

    Raises:
        NotReadyError: there is no PAM.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        _ASK_PAM,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await process.communicate(f"{user}\0{password}".encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    verdict, _, reason = out.decode("utf-8", "replace").strip().partition(": ")
    if verdict == "cannot":
        raise NotReadyError(f"passwords cannot be checked: {reason}; install it, or log in by the host's key")
    if verdict == "yes" and process.returncode == 0:
        return ""
    return f"PAM: {reason or f'its program ended with status {process.returncode}'}"
