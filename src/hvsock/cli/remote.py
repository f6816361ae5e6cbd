"""Sitting at a command of a guest: its output, its input, signals, the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from hvsock.addresses import ServiceId
from hvsock.constants import DIRECT
from hvsock.errors import HvsockError
from hvsock.fabric import paths
from hvsock.services.predefined.direct.connecting import HANDOVER_SECONDS, logged_in
from hvsock.services.predefined.direct.hostkeys import HostKeys
from hvsock.sockets.helpers import wait_for_service

from .names import peer_id_of
from .outcome import CommandError, text_of
from .silent import asking

if TYPE_CHECKING:
    import asyncssh

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

CHUNK_BYTES: Final = 64 * 1024
"""Read at once, each way."""
FAILED: Final = 255
"""Exit code where the command's own is not known, as ssh has it; the command's own may be any other."""
STANDARD_INPUT, STANDARD_OUTPUT, STANDARD_ERROR = range(3)
_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def keys_of(vm: str) -> HostKeys:
    """The host's keys for a VM, in the fabric's folder.

    Raises:
        NotFoundError: there is no such VM.
    """
    return HostKeys(os.path.join(paths.fabric_folder(), "keys"), peer_id_of(vm), vm)


def attend(
    vm: str,
    command: str | None,
    *,
    user: str | None = None,
    environment: Mapping[str, str] | None = None,
    terminal: bool = False,
    timeout: float | None = None,
    wait: float | None = None,
) -> int:
    """Run a command, or a login shell, in a guest, with this process's standard streams.

    Args:
        vm: the VM.
        command: for /bin/sh there; None for the user's login shell.
        user: whom it runs as; by default the agent's own user.
        environment: variables for it.
        terminal: whether it gets a terminal.
        timeout: seconds that the guest may take to answer.
        wait: seconds that its agent may take to be there.

    Returns:
        The exit code: the command's own, and 128 and the number of a signal that ended it.

    Raises:
        CommandError: it is not known how the command ended, or whether it began.
    """
    keys = keys_of(vm)
    vm_id = peer_id_of(vm)

    async def main() -> int:
        async with logged_in(vm_id, keys, user, timeout=timeout or HANDOVER_SECONDS) as connection:
            process = await connection.create_process(
                command,
                encoding=None,
                env=environment or {},
                request_pty="force" if terminal else False,
                term_type=os.environ.get("TERM", "dumb") if terminal else None,
                term_size=tuple(shutil.get_terminal_size()) if terminal else None,
            )
            return await _attended(process, terminal)

    try:
        with asking(vm, DIRECT.name):
            if wait is not None:
                wait_for_service((str(vm_id), ServiceId.from_port(DIRECT.port)), wait)
            return asyncio.run(main())
    except BrokenPipeError:
        raise  # standard output was closed
    except (HvsockError, OSError) as error:
        raise CommandError(f"{vm}: {text_of(error)}", FAILED) from error


async def _attended(process: asyncssh.SSHClientProcess[bytes], terminal: bool) -> int:
    import asyncssh

    loop = asyncio.get_running_loop()
    for number in _FORWARDED:
        loop.add_signal_handler(number, _forward, process, number)
    if terminal:
        loop.add_signal_handler(signal.SIGWINCH, _resize, process)
    feeding = asyncio.create_task(_feed(process))
    try:
        with _raw_terminal() if terminal else contextlib.nullcontext():
            await asyncio.gather(_print(process.stdout, STANDARD_OUTPUT), _print(process.stderr, STANDARD_ERROR))
            await process.wait_closed()
    except (asyncssh.Error, ConnectionError) as error:
        if isinstance(error, BrokenPipeError) and error.errno is not None:
            raise
        raise CommandError(_LOST, FAILED) from error
    finally:
        feeding.cancel()
        await asyncio.wait({feeding})
    if process.exit_signal is not None:
        name = f"SIG{process.exit_signal[0]}"
        return 128 + signal.Signals[name] if name in signal.Signals.__members__ else FAILED
    if process.exit_status is None:
        raise CommandError(_LOST, FAILED)
    return process.exit_status


_LOST: Final = "the connection ended in the midst of the command; the guest was reset, or its agent ended"


def _forward(process: asyncssh.SSHClientProcess[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        process.send_signal(number.name.removeprefix("SIG"))


def _resize(process: asyncssh.SSHClientProcess[bytes]) -> None:
    with contextlib.suppress(OSError):
        process.change_terminal_size(*shutil.get_terminal_size())


async def _print(reader: asyncssh.SSHReader[bytes], descriptor: int) -> None:
    while data := await reader.read(CHUNK_BYTES):
        await asyncio.to_thread(_write_all, descriptor, data)  # it may be a pipe that nobody reads for a while


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


async def _feed(process: asyncssh.SSHClientProcess[bytes]) -> None:
    """Read standard input in a thread, which ends with the process: it may be a file, a pipe or a terminal."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while True:
                try:
                    data = os.read(STANDARD_INPUT, CHUNK_BYTES)
                except OSError:
                    data = b""
                room.acquire()
                loop.call_soon_threadsafe(chunks.put_nowait, data)
                if not data:
                    return

    threading.Thread(target=read, daemon=True, name="standard-input").start()
    with contextlib.suppress(OSError):  # the command reads no more
        while data := await chunks.get():
            process.stdin.write(data)
            await process.stdin.drain()
            room.release()
        process.stdin.write_eof()


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """The terminal as it is typed, and at the end as it was; nothing where standard input is none."""
    if not os.isatty(STANDARD_INPUT):
        yield
        return
    before = termios.tcgetattr(STANDARD_INPUT)
    try:
        tty.setraw(STANDARD_INPUT)
        yield
    finally:
        termios.tcsetattr(STANDARD_INPUT, termios.TCSADRAIN, before)
