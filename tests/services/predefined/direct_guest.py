"""A guest with Direct, and programs of the host beside it on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

from hvsock.addresses import VmId
from hvsock.services.agenthood import Surroundings
from hvsock.services.policy import ALLOW_ALL, Policy
from hvsock.services.predefined.direct import keeping
from hvsock.services.predefined.direct.connecting import logged_in
from hvsock.services.predefined.direct.hostkeys import HostKeys
from hvsock.services.predefined.direct.service import Direct
from hvsock.services.serving import RawService, serve
from hvsock.testing.fabric import fabric
from tests.cli.helpers import PROGRAM

assert sys.platform == "linux"

PATIENCE = 30.0
"""Seconds that anything may take here."""


@dataclass
class Done:
    """How a program ended."""

    code: int
    out: bytes
    err: bytes


@dataclass
class Guest:
    """A guest called web01, as its host has it."""

    id: VmId
    fabric: str
    host: str
    folder: str

    @property
    def keys(self) -> HostKeys:
        """The host's keys for it."""
        return HostKeys(os.path.join(self.fabric, "keys"), self.id, "web01")

    def logged_in(self, user: str | None = None) -> AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
        """An SSH connection to it."""
        return logged_in(self.id, self.keys, user, partition=self.host)

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a program of the host; `hvsock` is the one under test."""
        pipe = asyncio.subprocess.PIPE
        path = f"{os.path.dirname(PROGRAM)}:{os.environ['PATH']}"
        env = {**os.environ, "HVSOCK_DIR": self.fabric, "PATH": path}
        env.pop("HVSOCK_PARTITION", None)
        return await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=env)

    async def run(self, *arguments: str, input: bytes = b"") -> Done:
        """Run a program of the host to its end."""
        process = await self.start(*arguments)
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(input)
        assert process.returncode is not None
        return Done(process.returncode, out, err)


@pytest.fixture(scope="module", autouse=True)
def direct_keeper() -> Iterator[keeping.Keeper]:
    """One keeper for all tests of a module that imports this, so that asyncssh is loaded once."""
    with contextlib.closing(keeping.Program()) as made, keeping.kept(made):
        yield made


@asynccontextmanager
async def a_guest(
    state: Path, policy: Policy = ALLOW_ALL, service: RawService | None = None
) -> AsyncIterator[Guest]:
    """A guest that serves Direct, or `service` in its place."""
    with fabric() as made:
        guest = made.create_partition("web01")
        state.mkdir(exist_ok=True)
        half = service or Direct(Surroundings(False, str(state), policy))
        async with serve(half, bind="parent", partition=guest.folder):
            yield Guest(guest.id, made.folder, made.host.folder, guest.folder)


def with_guest(
    state: Path,
    main: Callable[[Guest], Awaitable[None]],
    policy: Policy = ALLOW_ALL,
    service: Callable[[], RawService] | None = None,
) -> None:
    """Run `main` with a guest."""

    async def whole() -> None:
        async with a_guest(state, policy, service() if service else None) as guest:
            await main(guest)

    asyncio.run(whole())
