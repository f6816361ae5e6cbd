"""SSH: a server on the host and a client in a guest, over sockets that asyncssh takes for TCP's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from hvsock import HV_GUID_PARENT

assert sys.platform == "linux"

from tests.interop.support import LARGE, Wire, digest, run_on

USER = "guest"
HOST_KEY, USER_KEY = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))


async def work(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """The command's last word is the exit status; before it, all input comes back, or its digest."""
    command = process.command or ""
    name, _, status = command.partition(" ")
    received = await process.stdin.read()
    process.stdout.write(received if name == "cat" else f"{digest(received)}  -\n".encode())
    process.stderr.write(f"{name} of {process.get_extra_info('username')}".encode())
    process.exit(int(status))


SERVER: dict[str, Any] = {
    "server_host_keys": [HOST_KEY],
    "authorized_client_keys": asyncssh.import_authorized_keys(USER_KEY.export_public_key().decode()),
    "process_factory": work,
    "sftp_factory": True,
    "encoding": None,
    "config": None,
}
CLIENT: dict[str, Any] = {
    "username": USER,
    "client_keys": [USER_KEY],
    "known_hosts": ([HOST_KEY.convert_to_public()], [], []),
    "agent_path": None,
    "config": None,
}


@asynccontextmanager
async def by_listener(wire: Wire) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """asyncssh accepts from the listener by itself."""
    async with asyncssh.listen(sock=wire.listener(), **SERVER):
        near = await asyncio.to_thread(wire.dial)
        async with asyncssh.connect(sock=near, **CLIENT) as connection:
            yield connection


@asynccontextmanager
async def by_connection(wire: Wire) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Both ends get a socket that is connected already."""
    near, far = wire.pair()

    async def serve() -> asyncssh.SSHServerConnection:
        return await asyncssh.run_server(far, **SERVER)

    serving = asyncio.create_task(serve())
    async with await asyncssh.run_client(near, **CLIENT) as connection:
        server = await serving
        yield connection
    await server.wait_closed()


WAYS = [by_listener, by_connection]


def run(wire: Wire, way: Any, main: Callable[[asyncssh.SSHClientConnection], Awaitable[None]]) -> None:
    """Run `main` with a connection that was made in that way."""

    async def bounded() -> None:
        async with way(wire) as connection:
            await main(connection)

    run_on("asyncio", bounded())


@pytest.mark.parametrize("way", WAYS)
def test_command(wire: Wire, way: Any) -> None:
    """Output, error output and exit status; the client knows its peer by its Hyper-V address."""

    async def main(connection: asyncssh.SSHClientConnection) -> None:
        assert connection.get_extra_info("peername") == (HV_GUID_PARENT, wire.service)
        done = await connection.run("sha256sum 3", input=b"over SSH", encoding=None)
        assert done.stdout == f"{digest(b'over SSH')}  -\n".encode()
        assert done.stderr == b"sha256sum of guest"
        assert done.exit_status == 3

    run(wire, way, main)


@pytest.mark.parametrize("way", WAYS)
def test_input_and_output(wire: Wire, way: Any) -> None:
    """4 MiB each way through one command, and another beside it on the same connection."""

    async def main(connection: asyncssh.SSHClientConnection) -> None:
        echo, summary = await asyncio.gather(
            connection.run("cat 0", input=LARGE, encoding=None, check=True),
            connection.run("sha256sum 0", input=LARGE, encoding=None, check=True),
        )
        assert isinstance(echo.stdout, bytes)
        assert digest(echo.stdout) == digest(LARGE)
        assert summary.stdout == f"{digest(LARGE)}  -\n".encode()

    run(wire, way, main)


def test_sftp(wire: Wire, tmp_path: Path) -> None:
    """A file of 4 MiB to the host and back."""
    (tmp_path / "here").write_bytes(LARGE)

    async def main(connection: asyncssh.SSHClientConnection) -> None:
        async with connection.start_sftp_client() as sftp:
            await sftp.put(str(tmp_path / "here"), str(tmp_path / "there"))
            await sftp.get(str(tmp_path / "there"), str(tmp_path / "back"))

    run(wire, by_listener, main)
    for name in ("there", "back"):
        assert digest((tmp_path / name).read_bytes()) == digest(LARGE)


def test_host_key_of_a_stranger(wire: Wire) -> None:
    """The client trusts the key, not the socket."""

    async def main() -> None:
        known: Any = ([USER_KEY.convert_to_public()], [], [])
        async with asyncssh.listen(sock=wire.listener(), **SERVER):
            near = await asyncio.to_thread(wire.dial)
            with pytest.raises(asyncssh.HostKeyNotVerifiable):
                await asyncssh.connect(sock=near, **{**CLIENT, "known_hosts": known})

    run_on("asyncio", main())
