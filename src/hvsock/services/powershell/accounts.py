"""Whom a guest lets in: by its own PAM, or by the key that its host handed over for Direct."""

from __future__ import annotations

import asyncio
import logging
import os
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

log = logging.getLogger(__name__)

OWN_PAM_SERVICE: Final = "hvsock"
"""The PAM service that is asked where the guest has it, in /etc/pam.d."""
PAM_SERVICE: Final = "login"
"""The one that is asked else; every guest with PAM has it."""
MAX_CHECKS: Final = 4
"""Passwords that are checked at once, each in a thread, for PAM takes seconds after a wrong one."""


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
        if reason := await asyncio.to_thread(ask_pam, claim.user, claim.password):
            self._attempts.failed(time.monotonic())
            raise CredentialError(reason)


def ask_pam(user: str, password: str) -> str:
    """Ask PAM about a password and the state of the account; takes its time.

    Returns:
        Why it is refused; empty where it is not.

    Raises:
        NotReadyError: there is no PAM.
    """
    from ctypes.util import find_library

    missing = "passwords cannot be checked in this guest, which has no {}; install it, or log in by the host's key"
    if find_library("pam") is None:
        raise NotReadyError(missing.format("PAM (libpam.so.0)"))
    try:
        import pam
    except ImportError:
        raise NotReadyError(missing.format("python-pam")) from None
    own = os.path.exists(f"/etc/pam.d/{OWN_PAM_SERVICE}")
    asked = pam.PamAuthenticator()
    # credentials would be those of the agent, of all its threads
    if asked.authenticate(user, password, OWN_PAM_SERVICE if own else PAM_SERVICE, resetcreds=False):
        return ""
    return f"PAM: {asked.reason}"
