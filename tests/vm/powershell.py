"""PowerShell Direct into a real guest, whose PowerShell is the server of hvsock.testing."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final, cast

import pytest

assert sys.platform == "linux"

from hvsock.errors import RefusedError
from hvsock.services.powershell.client import Command, Credentials, ScriptError, State, connect
from tests.cli.helpers import ended, started
from tests.cli.helpers import hvsock as command
from tests.support import SOAK, sample
from tests.vm.support import PATIENCE, wait_until
from tests.vm.traffic.world import World

MEBIBYTES: Final = sample(1, 50)
MOST_BYTES: Final = 120 << 20
"""What the command on the host may have in memory; psrpcore and what it needs take half of it."""
BROUGHT: Final = ("usr", "lib", "test", "pwsh")
PWSH: Final = b"""#!/bin/sh
exec python3 -m hvsock.testing.psrp_server "$@"
"""


def bring(folder: Path) -> None:
    """Put what will be `pwsh` into a folder that goes over a guest's files."""
    pwsh = folder.joinpath(*BROUGHT)
    pwsh.parent.mkdir(parents=True)
    pwsh.write_bytes(PWSH)
    pwsh.chmod(0o755)


def spoken_to(world: World) -> None:
    """Require that the command speaks to the guest web01, once it has that `pwsh`, and in the soak the library."""
    assert world.guest("web01").output("ln", "-s", os.path.join("/", *BROUGHT), "/usr/bin/pwsh")[0] == 0
    gives_objects_and_errors_back_and_much_and_is_cancelled(world)
    if SOAK:
        asyncio.run(is_spoken_to_by_the_library())


def gives_objects_and_errors_back_and_much_and_is_cancelled(world: World) -> None:
    """A script by `hvsock pwsh`, with what that has in memory meanwhile; Ctrl-C leaves nothing in the guest."""
    script = f"""
    [pscustomobject]@{{Name = 'web01'; Sizes = 1, 2}}
    Write-Error 'not so'; Write-Warning careful
    New-TestText {MEBIBYTES} -Characters 200000
    'Grüße'; Start-Sleep 1000
    """
    words = ("pwsh", "web01", "--wait", str(PATIENCE), "--json", "-c", script)
    with started(*words, env=world.environment) as process:
        stdout = cast("io.BufferedReader", process.stdout)
        first = stdout.readline()
        assert json.loads(first) == {"Name": "web01", "Sizes": [1, 2]}
        size, most, last = 0, 0, b""
        while not last.endswith('\n"Grüße"\n'.encode()):
            data = stdout.read1(1 << 20)
            assert data, "the command has ended"
            size, last = size + len(data), (last + data)[-100:]
            with open(f"/proc/{process.pid}/statm", encoding="ascii") as file:
                most = max(most, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        assert size > MEBIBYTES << 20
        assert most < MOST_BYTES
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, b"", b"not so\nWARNING: careful\n")

    def is_over() -> bool:
        look = ("exec", "web01", "--", "sh", "-c", "ps | grep psrp_serve[r] || true")
        return command(*look, env=world.environment, seconds=PATIENCE).stdout == b""

    wait_until(is_over)


async def is_spoken_to_by_the_library() -> None:
    """Several pipelines at once, input, a terminating error, and a wrong password."""
    async with connect("web01", runspaces=3, timeout=PATIENCE) as pool:  # noqa: SIM117
        async with pool.start("'waits'; Start-Sleep 1000") as waiting:
            assert (await anext(waiting)).value == "waits"
            first, second = await asyncio.gather(
                pool.run(Command("Measure-TestObject"), input=range(50)),
                pool.run("$args", timeout=PATIENCE),
            )
            assert (first.output[0]["Count"], second.output) == (50, [])
            with pytest.raises(ScriptError, match="oops"):
                await pool.run("throw 'oops'")
            await waiting.stop()
            assert waiting.state is State.STOPPED
    with pytest.raises(RefusedError, match="does not let 'root' in"):
        async with connect("web01", Credentials("root", "wrong"), timeout=PATIENCE):
            pass
