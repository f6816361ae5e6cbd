"""SSH for one connection, in a process of its own: who gets in, and what may be asked for."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from socket import socket
from typing import Final

import asyncssh
from asyncssh.channel import SSHChannel

from hvsock.errors import HvsockError, RefusedError
from hvsock.services.policy import Policy

from .keeper import Slots
from .processes import Process, Terminal, started
from .users import User, become, find_user

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)
logging.getLogger("asyncssh").setLevel(logging.WARNING)  # it tells every step; what is asked for is told here

LOGIN_SECONDS: Final = 60.0
"""How long a client may take to authenticate; it takes milliseconds, and seconds in an emulated guest."""
CHUNK_BYTES: Final = 64 * 1024
"""Read at once from a command or its client; with SSH's windows, that is what a stalled stream holds."""
CANNOT: Final = 255
"""Exit status where nothing was run, as ssh has it."""


async def serve(connection: socket, host_key: str, key: str | None, policy: Policy, slots: Slots) -> None:
    """Speak SSH on `connection` until it ends.

    Args:
        connection: the socket, which the transport closes at the end.
        host_key: the guest's private key.
        key: the public key that the host gets in by; None for none yet.
        policy: what may be asked for.
        slots: for the sessions of all connections.
    """
    owner: Server | None = None

    def factory() -> Server:
        nonlocal owner
        owner = Server(key, policy, slots)
        return owner

    try:
        made = await asyncssh.run_server(
            connection,
            config=None,
            server_factory=factory,
            server_host_keys=[asyncssh.import_private_key(host_key)],
            login_timeout=LOGIN_SECONDS,
            encoding=None,
            line_editor=False,
            agent_forwarding=False,
            x11_forwarding=False,
            compression_algs=None,
        )
    except OSError as error:
        log.info("direct: the host left before SSH began, as for PowerShell Direct by its key: %s", error)
        return
    except asyncssh.Error as error:
        log.info("direct: the host did not get in: %s", error)
        return
    try:
        await made.wait_closed()
    finally:
        made.abort()
        await made.wait_closed()
        if owner is not None:
            await owner.wait_ended()


class Server(asyncssh.SSHServer):
    """Who gets in on one connection. Forwarding of every kind is refused, which is asyncssh's default.

    Once somebody is in, this process is that user.

    Args:
        key, policy, slots: as :func:`serve` says.
    """

    def __init__(self, key: str | None, policy: Policy, slots: Slots) -> None:
        self._key = None if key is None else asyncssh.import_public_key(key)
        self.policy = policy
        self.slots = slots
        self.tasks: set[asyncio.Task[None]] = set()
        self._connection: asyncssh.SSHServerConnection | None = None
        self._wanted: User | None = None
        self.user: User | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Keep the connection."""
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        """Always ask for the key, also where there is no such user."""
        try:
            self._wanted = find_user(username)
        except HvsockError as error:
            log.warning("direct: %s", error)
            self._wanted = None
        return True

    def public_key_auth_supported(self) -> bool:
        """The only way in."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether it is the host's key, for a user that this process can become."""
        return self._wanted is not None and self._key is not None and key == self._key

    def auth_completed(self) -> None:
        """Become the user; nobody can ask for anything before."""
        assert self._wanted is not None  # else nobody had got in
        become(self._wanted)
        self.user = self._wanted

    def session_requested(self) -> tuple[asyncssh.SSHServerChannel[bytes], Session]:
        """A session, as long as there are not too many."""
        assert self._connection is not None
        if self.user is None:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "nobody is in")
        slot = self.slots.take()
        if slot is None:
            most = self.slots.count
            log.warning("direct: more than %d sessions, one is refused", most)
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, f"the guest has {most} sessions already; end some"
            )
        channel = self._connection.create_server_channel(encoding=None)
        return channel, Session(self, self.user, slot)

    async def wait_ended(self) -> None:
        """Wait until the processes of all sessions have ended."""
        while self.tasks:
            await asyncio.wait(self.tasks)


class Files(asyncssh.SFTPServer):
    """The files of a guest, which this process serves as the user that it is."""

    def exit(self) -> None:
        """The end, with the exit status of a program that went well: scp looks at that."""
        self.channel.exit(0)


class Session(asyncssh.SSHServerProcess[bytes]):
    """One command, shell or SFTP session.

    Args:
        server: the connection's.
        user: who this process is.
        slot: the session's, given back at its end.
    """

    def __init__(self, server: Server, user: User, slot: int) -> None:
        super().__init__(self._begin, self._sftp, 3, False)
        self._server = server
        self._user = user
        self._slot: int | None = slot
        self._process: Process | None = None
        self._gone = asyncio.Event()

    def _sftp(self, channel: SSHChannel[bytes]) -> asyncssh.SFTPServer:
        assert isinstance(channel, asyncssh.SSHServerChannel)
        return Files(channel)

    def subsystem_requested(self, subsystem: str) -> bool:
        """SFTP, with the rights of the user that this process is."""
        if subsystem != "sftp":
            return False
        try:
            self._server.policy.check("direct.sftp")
        except RefusedError as error:
            log.warning("direct: sftp for %s: %s", self._user.name, error)
            return False
        log.info("direct: sftp for %s", self._user.name)
        return True

    def signal_received(self, signal: str) -> None:
        """Pass a signal on at once, also while the command's input is stuck."""
        if self._process is not None:
            self._process.signal(signal)

    def break_received(self, msec: int) -> bool:
        """Breaks are for serial lines."""
        return False

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """Pass the terminal's size on at once."""
        if self._process is not None:
            self._process.resize(width, height)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or this session of it."""
        if self._slot is not None:
            self._server.slots.give(self._slot)
            self._slot = None
        self._gone.set()
        super().connection_lost(exc)

    def _begin(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        task = asyncio.create_task(self._run())
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _run(self) -> None:
        working = asyncio.create_task(self._work())
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            gone.cancel()
            await asyncio.wait({working, gone})
        if not working.cancelled() and (error := working.exception()) is not None:
            if isinstance(error, OSError | asyncssh.Error):
                log.info("direct: a session failed: %s", error)
            else:
                log.error("direct: a session failed", exc_info=error)

    async def _work(self) -> None:
        user = self._user
        command = self.command
        what = "direct.shell" if command is None else "direct.exec"
        try:
            self._server.policy.check(what)
            log.info("direct: %s as %s: %s", what, user.name, command or user.shell)
            terminal = None if self.term_type is None else Terminal(self.term_type, *self.term_size[:2])
            process = await started(user, command, dict(self.env), terminal)
        except (HvsockError, OSError) as error:
            log.warning("direct: %s for %s: %s", what, user.name, error)
            self.stderr.write(f"hvsock: {error}\n".encode(errors="replace"))
            self.exit(CANNOT)
            return
        self._process = process
        try:
            await self._pump(process)
        finally:
            self._process = None
            await process.end()

    async def _pump(self, process: Process) -> None:
        feeding = asyncio.create_task(self._feed(process))
        outputs = [asyncio.create_task(self._print(process, number)) for number in process.outputs]
        try:
            await asyncio.gather(*outputs)
            status = await process.wait()
        finally:
            for task in (feeding, *outputs):
                task.cancel()
            await asyncio.wait({feeding, *outputs})
        if status >= 0:
            self.exit(status)
        else:
            self.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))

    async def _feed(self, process: Process) -> None:
        while data := await self.stdin.read(CHUNK_BYTES):
            await process.write(data)
        process.end_input()

    async def _print(self, process: Process, number: int) -> None:
        writer = self.stdout if number == 1 else self.stderr
        while data := await process.read(number, CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
