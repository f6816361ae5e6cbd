"""Scripts, objects, streams, host calls and their ends, between the client and psrpcore's server pool."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import decimal
import gc
import getpass
import shutil
import socket
import sys
import tracemalloc
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psrpcore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

assert sys.platform == "linux"

from hvsock.errors import BusyError, HvsockError, LostError, NotReadyError, ProtocolError, UsageError
from hvsock.services.agenthood import Surroundings
from hvsock.services.powershell import accounts, channel, pools
from hvsock.services.powershell.client import Credentials, connect
from hvsock.services.powershell.commands import Command, Script
from hvsock.services.powershell.handshake import CredentialError
from hvsock.services.powershell.hosts import Host
from hvsock.services.powershell.pools import RunspacePool, opened
from hvsock.services.powershell.records import RemoteObject, Result, ScriptError, Secret, State, Stream
from hvsock.services.powershell.server import VmSession, VmSessionBroker
from hvsock.services.serving import serve
from hvsock.testing import psrp_server
from hvsock.testing.fabric import fabric
from hvsock.testing.psrp_server import Server
from tests.services.powershell.psrp import PATIENCE, PROGRAM, Typist, connected, program, session, streams_over
from tests.support import sample

EVERYTHING = """
'Grüße'; 1..3
[pscustomobject]@{Name = 'web01'; Sizes = 1, 2}
Write-Warning careful; Write-Verbose more -Verbose; Write-Debug deep -Debug; Write-Verbose unseen
Write-Information told; Write-Progress Copying -Status half -PercentComplete 50
Write-Error 'not so' -Category InvalidData
no-such-command
'end'
"""


async def result_of(pool: RunspacePool) -> Result:
    """What EVERYTHING gives, as far as two runs have it in common."""
    return await pool.run(EVERYTHING)


def check_everything(result: Result) -> None:
    """The result of EVERYTHING."""
    assert result.state is State.COMPLETED
    *simple, made, end = result.output
    assert (simple, end) == (["Grüße", 1, 2, 3], "end")
    assert isinstance(made, RemoteObject)
    assert dict(made) == {"Name": "web01", "Sizes": [1, 2]}
    assert made["NAME"] == "web01"
    assert made.types[0] == "System.Management.Automation.PSCustomObject"
    texts = [(one.stream, one.text) for one in result.records]
    assert texts == [
        (Stream.WARNING, "careful"),
        (Stream.VERBOSE, "more"),
        (Stream.DEBUG, "deep"),
        (Stream.INFORMATION, "told"),
        (Stream.ERROR, "not so"),
        (Stream.ERROR, "The term 'no-such-command' is not recognized as a name of a cmdlet."),
    ]
    assert [(one.category, one.error_id) for one in result.errors] == [
        ("InvalidData", "WriteError"),
        ("ObjectNotFound", "CommandNotFoundException"),
    ]
    with pytest.raises(ScriptError, match="not so"):
        result.check()


def test_a_script_gives_objects_and_records() -> None:
    async def main() -> None:
        async with session() as pool:
            check_everything(await pool.run(EVERYTHING))
            assert pool.facts["PSVersionTable"]["PSEdition"] == "hvsock.testing"
            assert (await pool.run("1")).check().output == [1]

    asyncio.run(main())


@pytest.mark.soak  # as over a fabric
def test_the_server_program_speaks_the_same_on_its_standard_streams() -> None:
    async def main() -> None:
        async with program(*PROGRAM, host=Typist("typed")) as pool:
            check_everything(await pool.run(EVERYTHING))
            assert (await pool.run("Read-Host")).output == ["typed"]

    asyncio.run(main())


@pytest.mark.soak
def test_the_server_program_on_a_socket() -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        process = await asyncio.create_subprocess_exec(*PROGRAM, stdin=far.fileno(), stdout=far.fileno())
        far.close()
        async with asyncio.timeout(PATIENCE):
            async with opened(*await streams_over(near)) as pool:
                assert (await pool.run("1..3")).output == [1, 2, 3]
            assert await process.wait() == 0

    asyncio.run(main())


def test_a_session_over_a_fabric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: broker, session service, and the program that serves the session."""
    me = getpass.getuser()

    async def ask(user: str, word: str) -> str:
        return "" if (user, word) == (me, "secret") else "no"

    monkeypatch.setattr(accounts, "ask_pam", ask)

    async def main() -> None:
        with fabric() as made:
            guest = made.create_partition("web01")
            surroundings = Surroundings(own_machine=False, state_folder=str(tmp_path))
            broker, sessions = VmSessionBroker(surroundings, PROGRAM), VmSession(surroundings)
            async with serve(broker, sessions, bind="parent", partition=guest.folder):
                where: dict[str, Any] = {"partition": made.host.folder, "timeout": PATIENCE}
                async with connect("web01", Credentials(me, "secret"), host=Typist("typed"), **where) as pool:
                    check_everything(await pool.run(EVERYTHING))
                    assert (await pool.run("Read-Host")).output == ["typed"]
                with pytest.raises(CredentialError):
                    async with connect("web01", Credentials(me, "wrong"), **where):
                        pass

    asyncio.run(main())


@settings(max_examples=sample(3, 300))
@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_no_cut_of_the_streams_changes_a_result(sizes: list[int]) -> None:
    async def main() -> None:
        host = Typist("typed", "hush")
        async with session(host, sizes=sizes) as pool:
            check_everything(await pool.run(EVERYTHING))
            asked = await pool.run("Read-Host Name; Read-Host -AsSecureString")
            assert asked.output == ["typed", "hush"]
            with pytest.raises(ScriptError, match="oops"):
                await pool.run("1; throw 'oops'")

    asyncio.run(main())


def test_values_of_every_kind_arrive() -> None:
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, dt.UTC)

    async def main() -> None:
        async with session() as pool:
            found = (await pool.run("Get-TestValue")).output
        *simple, made = found
        assert simple == [
            *(None, True, False, 0, -1, 2**31, 2**64 - 1, 1.5, "", "Grüße, 你好 🚀 _x0041_\n\0"),
            *("x", decimal.Decimal("1.10"), b"\x00\xff", uuid.UUID(int=7), moment),
            *(dt.timedelta(days=1, microseconds=5), "7.6.0.1", "http://x/", "<a/>"),
            *("1 + 1", [1, [2, "x"], []], {"a": 1, "b": {"c": [None]}}, "Running"),
        ]
        plain = (type(None), bool, int, float, str, decimal.Decimal, bytes, uuid.UUID, list, dict)
        assert {type(one) for one in simple} == {*plain, dt.datetime, dt.timedelta}
        assert dict(made["Inner"]) == {"Deep": [1, 2]}

    asyncio.run(main())


def test_values_go_there_and_back() -> None:
    values = [
        *(None, True, 5, -(2**40), 2**63, 1.25, "Grüße", b"\x00\xff", decimal.Decimal("2.5"), uuid.UUID(int=9)),
        *(dt.datetime(2026, 5, 6, 7, 8, 9, 10, dt.UTC), dt.timedelta(seconds=-90), [1, ["x"]], {"a": {"b": None}}),
        RemoteObject({"Name": "x", "Inner": RemoteObject({"Deep": 1})}),
    ]

    async def main() -> None:
        async with session() as pool:
            for value in values:
                given_back = (await pool.run(Command("Write-Output", {"value": value}))).output
                assert given_back == [{"value": value}]
            by_input = (await pool.run(Command("Write-Output"), input=values[1:10])).output
            assert by_input == values[1:10]

    asyncio.run(main())


@pytest.mark.parametrize("value", [object(), 2**64, -(2**63) - 1, 1j])
def test_what_powershell_has_no_value_for_is_refused(value: Any) -> None:
    async def main() -> None:
        async with session() as pool:
            with pytest.raises(UsageError):
                await pool.run(Command("Write-Output", [value]))
            holds_itself: list[Any] = []
            holds_itself.append(holds_itself)
            with pytest.raises(UsageError, match="holds itself"):
                await pool.run(Command("Write-Output", holds_itself))
            assert (await pool.run("'goes on'")).output == ["goes on"]

    asyncio.run(main())


def test_commands_take_values_and_each_others_output() -> None:
    async def main() -> None:
        async with session() as pool:
            hostile = "'; no-such-command; '$x"
            assert (await pool.run(Command("Write-Output", hostile))).output == [hostile]
            piped = await pool.run(Script("1..3; $args"), Command("Out-String", Stream=True))
            assert piped.output == ["1", "2", "3"]
            named = await pool.run(Script('"$name has $size"; $args', 7, Name="web01", Size=5))
            assert named.output == ["web01 has 5", 7]
            with pytest.raises(ScriptError, match="not recognized") as caught:
                await pool.run(Command("No-Such"))
            assert caught.value.detail.category == "ObjectNotFound"
            for nothing in ((), ("",), (Command("x"), "  ")):
                with pytest.raises(UsageError):
                    await pool.run(*nothing)

    asyncio.run(main())


def test_input_may_come_as_it_goes_and_be_left_unread() -> None:
    taken = []

    async def numbers(count: int) -> AsyncIterator[int]:
        for number in range(count):
            taken.append(number)
            yield number

    async def main() -> None:
        async with session() as pool:
            counted = await pool.run(Command("Measure-TestObject"), input=numbers(100))
            assert counted.output[0]["Count"] == 100
            assert (await pool.run("'done'", input=range(5))).output == ["done"]

    asyncio.run(main())
    assert taken == list(range(100))


def test_an_input_that_fails_ends_the_pipeline_with_its_own_error() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError("of the input's own")

    async def main() -> None:
        async with session() as pool:
            with pytest.raises(ZeroDivisionError, match="own"):
                await pool.run(Command("Measure-TestObject"), input=broken())
            with pytest.raises(UsageError):
                await pool.run(Command("Measure-TestObject"), input=[object()])
            assert (await pool.run("1")).output == [1]

    asyncio.run(main())


def test_a_terminating_error_comes_with_what_was_written_before() -> None:
    async def main() -> None:
        async with session() as pool:
            with pytest.raises(ScriptError, match=r"^oops$") as caught:
                await pool.run("1; Write-Warning w; throw 'oops'; 2")
            result = caught.value.result
            assert result is not None
            assert (result.output, result.of(Stream.WARNING)) == ([1], ["w"])
            assert caught.value.detail.trace
            with pytest.raises(ScriptError, match="unexpected token"):
                await pool.run("1 1")

    asyncio.run(main())


def test_variables_are_there_for_the_next_pipeline() -> None:
    async def main() -> None:
        async with session() as pool:
            await pool.run("$x = 5")
            assert (await pool.run('$x; "x is $x"')).output == [5, "x is 5"]

    asyncio.run(main())


# -- host calls


def test_a_script_asks_its_host() -> None:
    host = Typist("one", "two", "three", "four", "five", "", "maybe", "n")

    async def main() -> None:
        async with session(host) as pool:
            script = """
            Write-Host Hello there; Read-Host; Read-Host Name; Read-Host -AsSecureString
            Get-Credential
            Read-TestChoice 'a&lways', '&never' -Message 'Sure?'
            Read-TestChoice 'a&lways', '&never'
            """
            result = await pool.run(script)
        first, second, secret, credential, always, never = result.output
        assert (first, second, secret) == ("one", "two", "three")
        assert isinstance(secret, Secret)
        assert dict(credential) == {"UserName": "four", "Password": "five", "Length": 4}
        assert "five" not in repr(credential["Password"])
        assert (always, never) == (0, 1)
        assert [one.text for one in result.records] == ["Hello there"]
        assert result.of(Stream.INFORMATION)[0].tags == ("PSHOST",)

    asyncio.run(main())
    assert host.written.startswith("Hello there\nName: ")
    assert "Password for user four: " in host.written
    assert [(one.label, one.key) for one in host.choices] == [("always", "l"), ("never", "n")]


def test_a_host_that_cannot_makes_the_call_fail_and_not_the_session() -> None:
    async def main() -> None:
        async with session(Typist()) as pool:
            with pytest.raises(ScriptError, match="nobody sits there"):
                await pool.run("Read-Host")
            assert (await pool.run("1")).output == [1]
        async with session(Host()) as pool:
            with pytest.raises(ScriptError, match="no terminal"):
                await pool.run("Read-Host")
        async with session() as pool:
            with pytest.raises(ScriptError, match="no host"):
                await pool.run("Read-Host")

    asyncio.run(main())


def test_exit_tells_the_host_its_code() -> None:
    host = Typist()

    async def main() -> None:
        async with session(host) as pool:
            assert (await pool.run("1; exit 3; 2")).output == [1]

    asyncio.run(main())
    assert host.codes == [3]


def test_secrets_do_not_show_themselves() -> None:
    async def main() -> None:
        async with session() as pool:
            found = (await pool.run(Command("Write-Output", [Secret("hush")], {"x": Secret("quiet")}))).output
            assert found == ["hush", {"x": "quiet"}]
            assert isinstance(found[0], Secret)
            assert "hush" not in repr(found)

    asyncio.run(main())


def test_an_older_server_asks_for_the_key_and_the_pool_itself_calls_its_host() -> None:
    host = Typist("typed")

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected() as (here, there):
            server = Server(*there)
            serving = asyncio.create_task(server.serve())
            async with opened(*here, host=host) as pool:
                server.pool.request_key()
                ask = psrpcore.ServerHostRequestor(server.pool)
                ask.write_line("from the pool")
                ask.read_line()
                await server.send_out()
                assert (await pool.run(Command("Write-Output", Secret("hush")))).output == ["hush"]
                while host.lines:
                    await asyncio.sleep(0.001)
                assert (await pool.run("1")).output == [1]
            await serving

    asyncio.run(main())
    assert host.written == "from the pool\n"


# -- stopping


def test_a_pipeline_is_stopped_and_the_session_goes_on() -> None:
    async def main() -> None:
        async with session() as pool:
            async with pool.start("1..3; Start-Sleep 1000; 'never'") as pipeline:
                assert [(await anext(pipeline)).value for _ in range(3)] == [1, 2, 3]
                assert pipeline.state.value == "running"
                await pipeline.stop()
                await pipeline.stop()
                assert pipeline.state is State.STOPPED
                assert [one async for one in pipeline] == []
            async with pool.start("Start-Sleep 1000") as pipeline:
                pass  # left, and so stopped
            assert pipeline.state is State.STOPPED
            assert (await pool.run("1")).output == [1]

    asyncio.run(main())


def test_a_cancelled_task_stops_its_pipeline() -> None:
    async def main() -> None:
        async with session(Typist()) as pool:
            for script in ("Start-Sleep 1000", "New-TestText 1000", "Write-Host x; Start-Sleep 1000"):
                task = asyncio.create_task(pool.run(script))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                task = asyncio.create_task(pool.run(script, max_bytes=1 << 40))
                async with pool.start("1") as other:  # the first one runs by then
                    task.cancel()
                    assert [one.value async for one in other] == [1]
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert (await pool.run("1")).output == [1]

    asyncio.run(main())


def test_a_script_has_its_time_and_its_size() -> None:
    async def main() -> None:
        async with session() as pool:
            with pytest.raises(NotReadyError, match=r"did not end within 0\.01 s"):
                await pool.run("Start-Sleep 1000", timeout=0.01)
            with pytest.raises(BusyError, match="more than 100000 bytes"):
                await pool.run("New-TestText 1", max_bytes=100_000)
            assert (await pool.run("1")).output == [1]

    asyncio.run(main())


def test_pipelines_run_at_the_same_time() -> None:
    async def main() -> None:
        async with session(runspaces=4) as pool:  # noqa: SIM117
            async with pool.start("Start-Sleep 1000") as waiting, pool.start("1..100") as writing:
                found = await asyncio.gather(
                    *(pool.run(f"{n}; Start-Sleep -Milliseconds 1; {n}") for n in range(sample(6, 20)))
                )
                assert [one.output for one in found] == [[n, n] for n in range(sample(6, 20))]
                assert (await anext(writing)).value == 1
                assert waiting.state is State.RUNNING
        async with session() as pool:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pools, "MAX_PIPELINES", 1)
                async with pool.start("Start-Sleep 1000"):
                    with pytest.raises(BusyError, match="1 pipelines run"):
                        await pool.run("1")

    asyncio.run(main())


# -- how much is read ahead


@pytest.mark.soak  # the next test sees it on a small scale
def test_much_output_takes_little_memory() -> None:
    mebibytes = 50

    async def main() -> tuple[int, int]:
        async with session() as pool:
            await pool.run("New-TestText 1")
            gc.collect()
            tracemalloc.start()
            try:
                size = 0
                async with pool.start(Command("New-TestText", mebibytes)) as pipeline:
                    async for record in pipeline:
                        size += len(record.value)
                return size, tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    size, most = asyncio.run(main())
    assert size == mebibytes * 1024 * 1024
    assert most < 8 * 1024 * 1024  # what is on its way, on both sides


def test_what_nobody_reads_stays_in_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "UNREAD_BYTES", 100_000)

    async def main() -> None:
        async with session() as pool:
            async with pool.start("New-TestText 50") as pipeline:
                await anext(pipeline)
                for _ in range(200):  # as much as comes without anybody who reads
                    await asyncio.sleep(0.001)
                assert pipeline.unread < 100_000 + 200_000
                assert pool.intake.unread == pipeline.unread
            assert pool.intake.unread == 0

    asyncio.run(main())


def test_others_get_on_beside_a_pipeline_that_nobody_reads_until_it_is_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel, "UNREAD_BYTES", 5_000)
    monkeypatch.setattr(channel, "MOST_UNREAD_BYTES", 30_000)

    async def main() -> None:
        async with session(runspaces=2) as pool, pool.start("1..2000000") as unread:
            while not unread.unread:
                await asyncio.sleep(0.001)
            assert (await pool.run("'beside'")).output == ["beside"]
            waiting = asyncio.create_task(pool.run("Start-Sleep 1000"))
            while unread.state is State.RUNNING:
                await asyncio.sleep(0.001)
            with pytest.raises(BusyError, match="nobody read more than"):
                await anext(unread)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            assert (await pool.run("'goes on'")).output == ["goes on"]

    asyncio.run(main())


def test_one_large_object_is_no_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "UNREAD_BYTES", 10_000)
    monkeypatch.setattr(channel, "MOST_UNREAD_BYTES", 50_000)

    async def main() -> None:
        async with session() as pool:
            found = (await pool.run("New-TestText 1 -Characters 1000000")).output
            assert list(map(len, found)) == [1_000_000, 48_576]

    asyncio.run(main())


# -- ends


def test_a_session_that_is_closed_says_so() -> None:
    async def main() -> None:
        async with session() as pool:
            pass
        with pytest.raises(LostError, match="closed"):
            await pool.run("1")
        await pool.close()

    asyncio.run(main())


def test_a_server_that_ends_in_the_midst_is_told() -> None:
    async def main() -> None:
        with pytest.raises(LostError, match="the server ended the session"):  # noqa: PT012
            async with program(*PROGRAM) as pool:
                async with pool.start("1..3; Stop-TestServer") as pipeline:
                    assert [(await anext(pipeline)).value for _ in range(3)] == [1, 2, 3]
                    with pytest.raises(LostError, match="ended"):
                        await anext(pipeline)
                await pool.run("1")

    asyncio.run(main())


def test_options_that_the_server_program_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["psrp_server", "-NoLogo", "-Command", "1"])
    assert psrp_server.main() == 2
    assert capsys.readouterr().err.endswith("unknown option -Command\n")


@pytest.mark.skipif(
    shutil.which("pwsh") is None,
    reason="PowerShell is not installed; see https://aka.ms/powershell, e.g. dotnet tool install -g PowerShell",
)
def test_a_real_powershell() -> None:
    async def main() -> None:
        host = Typist("typed", "hush")
        async with program("pwsh", "-s", "-NoLogo", "-NoProfile", host=host) as pool:
            found = await pool.run("1..3; Write-Error bad; Get-Item / | Select-Object Name, FullName")
            assert found.output[:3] == [1, 2, 3]
            assert found.output[3]["FullName"] == "/"
            assert [one.message for one in found.errors] == ["bad"]
            with pytest.raises(ScriptError, match="oops"):
                await pool.run("throw 'oops'")
            assert (await pool.run("Read-Host; Read-Host -AsSecureString")).output == ["typed", "hush"]
            assert (await pool.run("$input | Measure-Object", input=range(5))).output[0]["Count"] == 5
            async with pool.start("1; Start-Sleep 1000") as pipeline:
                assert (await anext(pipeline)).value == 1
                await pipeline.stop()
                assert pipeline.state is State.STOPPED
            size = 0
            async with pool.start("foreach ($i in 1..5000) { 'x' * 10000 }") as pipeline:
                async for record in pipeline:
                    size += len(record.value)
            assert size == 50_000_000

    asyncio.run(main())


def test_psrpcore_is_loaded_on_first_use_only() -> None:
    import subprocess

    code = """if True:
        import sys
        import hvsock.services.powershell.commands, hvsock.services.powershell.hosts
        import hvsock.services.powershell.records, hvsock.services.powershell.framing
        import hvsock.services.agent, hvsock.cli.main
        print([name for name in sys.modules if name.startswith(("psrpcore", "cryptography"))])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_errors_are_the_librarys_own() -> None:
    assert issubclass(ScriptError, HvsockError)
    assert issubclass(ProtocolError, HvsockError)
