"""The guest's half: the broker, which lets users in, and the session service, which runs a program for each."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from hvsock.constants import VM_SESSION_SERVICE, VM_SESSION_SERVICE_2
from hvsock.errors import HvsockError, RefusedError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.predefined.direct.users import User
from hvsock.services.serving import RawService
from hvsock.sockets.chosen import socket

from .accounts import Accounts
from .admission import BrokerSide, SessionSide
from .conversing import converse
from .handshake import TokenError
from .lockstep import Lockstep, R
from .program import error_line, run
from .tokens import NO_TOKEN, OLDER_LIFE_SECONDS, Tokens

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)

PROGRAM: Final = ("pwsh", "-s", "-NoLogo", "-NoProfile")
"""PowerShell as a server of PSRP on its standard input and output."""
HANDSHAKE_SECONDS: Final = 60.0
"""How long a client may take until it is let in, with the time that PAM takes."""
MAX_SESSIONS: Final = 64
"""Sessions at once: each is a process, and PowerShell takes some 100 MiB."""
OLDER_PATIENCE_SECONDS: Final = 5.0
"""How long a client without a token may be ahead of the broker."""
LOOK_SECONDS: Final = 0.05
"""Pause between two looks whether the broker is done."""
TOKEN_BYTES: Final = 32
"""Random bytes of a token, as in the original."""
TOKEN_CHARACTERS: Final = len(base64.b64encode(bytes(TOKEN_BYTES)))
"""How many characters of base64 they have, with one of padding, by which a client knows a token's end."""
OPERATION: Final = "powershell.session"
"""What policies allow or deny."""

_NONE: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a token is good for.

    Attributes:
        user: whom the session is for.
        program: what serves it.
    """

    user: User
    program: tuple[str, ...]


class Desk:
    """What broker and session service of one guest share.

    Args:
        surroundings: the agent's.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self.accounts = Accounts(surroundings)
        self.tokens = Tokens[Admitted]()
        self.sessions = 0
        self.conversations = 0
        """Of the broker, that are under way."""


class VmSessionBroker(RawService, name=VM_SESSION_SERVICE.name, id=VM_SESSION_SERVICE.id, short="powershell"):
    """The first connection: checks credentials, and gives a token for the second.

    Args:
        surroundings: the agent's, which :class:`VmSession` gets, too.
        program: what serves a session.
        configurations: programs for session configurations that clients may name.
        older: let clients of the older version in: Windows PowerShell, and PowerShell before 7.6. Whoever connects
            to the session service next is taken for them.
    """

    POLICY_NAMES = frozenset({OPERATION})

    def __init__(
        self,
        surroundings: Surroundings,
        program: Sequence[str] = PROGRAM,
        *,
        configurations: Mapping[str, Sequence[str]] = _NONE,
        older: bool = False,
    ) -> None:
        self._policy = surroundings.policy
        self._desk = surroundings.shared(Desk)
        self._programs = {"": program, **configurations}
        self._configurations = frozenset(configurations)
        self._older = older

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Let somebody in, or not."""
        _check_parent(caller)
        side = BrokerSide(self._configurations, older=self._older)
        user: User | None = None
        token = base64.b64encode(os.urandom(TOKEN_BYTES)).decode("ascii")

        async def decide() -> None:
            nonlocal user
            assert side.claim is not None
            if side.admission is not None and user is not None:
                admitted = Admitted(user, tuple(self._programs[side.admission.configuration]))
                if side.admission.older:
                    self._desk.tokens.issue(NO_TOKEN, admitted, time.monotonic(), OLDER_LIFE_SECONDS)
                else:
                    self._desk.tokens.issue(token, admitted, time.monotonic())
                log.info("powershell: %s is let in", user.name)
                return
            try:
                self._policy.check(OPERATION)
                user = await self._desk.accounts.check(side.claim)
            except HvsockError as error:
                log.warning("powershell: %r is not let in: %s", side.claim.user, error)
            else:
                side.admit(token)

        self._desk.conversations += 1
        try:
            await _converse(connection, side, decide)
        finally:
            self._desk.conversations -= 1


class VmSession(RawService, name=VM_SESSION_SERVICE_2.name, id=VM_SESSION_SERVICE_2.id, short="powershell"):
    """The second connection: takes a token, once, and is a session from then on.

    Args:
        surroundings: the agent's, which :class:`VmSessionBroker` gets, too.
    """

    POLICY_NAMES = frozenset({OPERATION})
    """The broker asks its policy; what this one has let in ends where that changes."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._desk = surroundings.shared(Desk)

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Serve a session."""
        _check_parent(caller)
        side = SessionSide(TOKEN_CHARACTERS, older=True)
        admitted: Admitted | None = None

        async def decide() -> None:
            nonlocal admitted
            try:
                admitted = self._redeem(side.token)
            except TokenError as error:
                log.warning("powershell: a session is refused: %s", error)
            else:
                side.accept()

        beginning = await _converse(connection, side, decide)
        if beginning is None:
            return
        try:
            admitted = admitted or await self._redeem_older()
        except TokenError:
            log.warning("powershell: a client is refused, which has no token, and for which no session waits")
            await _refuse(connection, "no session was admitted; ask the broker first, and give its token")
            return
        if self._desk.sessions >= MAX_SESSIONS:
            log.warning("powershell: more than %d sessions, one is refused", MAX_SESSIONS)
            await _refuse(connection, f"the guest has {MAX_SESSIONS} sessions already; end some")
            return
        self._desk.sessions += 1
        try:
            log.info("powershell: a session of %s begins", admitted.user.name)
            await run(connection, admitted.user, admitted.program, beginning.rest)
        except (HvsockError, OSError) as error:
            log.warning("powershell: no session for %s: %s", admitted.user.name, error)
            await _refuse(connection, str(error))
        finally:
            self._desk.sessions -= 1
            log.info("powershell: a session of %s has ended", admitted.user.name)

    def _redeem(self, token: str) -> Admitted:
        return self._desk.tokens.redeem(token, time.monotonic())

    async def _redeem_older(self) -> Admitted:
        """A client without a token may be here before the broker has heard the last that it said there."""
        patient_until = time.monotonic() + OLDER_PATIENCE_SECONDS
        while True:
            try:
                return self._redeem(NO_TOKEN)
            except TokenError:
                if not self._desk.conversations or time.monotonic() > patient_until:
                    raise
            await asyncio.sleep(LOOK_SECONDS)


def _check_parent(caller: Caller) -> None:
    if not caller.is_parent:
        raise RefusedError(f"PowerShell Direct is for the host alone, and {caller} is not")


async def _converse(connection: socket, side: Lockstep[R], decide: Callable[[], Awaitable[None]]) -> R | None:
    """Have a conversation within its time; None where nothing came of it, which the log tells."""
    limit = asyncio.timeout(HANDSHAKE_SECONDS)
    try:
        async with limit:
            return await converse(connection, side, decide)
    except HvsockError as error:
        log.info("powershell: %s", error)
    except TimeoutError:
        if not limit.expired():
            raise
        log.info("powershell: the client owes %s since %g s, and is closed", side.turn.what, HANDSHAKE_SECONDS)
    return None


async def _refuse(connection: socket, text: str) -> None:
    """Tell a client that speaks PSRP already."""
    await asyncio.get_running_loop().sock_sendall(connection, error_line(text))
