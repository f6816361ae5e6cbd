"""Direct on a local partition: commands, signals, terminals, OpenSSH, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import asyncssh
import pytest

from hvsock.addresses import ServiceId
from hvsock.constants import DIRECT
from hvsock.errors import HvsockError
from hvsock.services.policy import Policy
from hvsock.sockets.aio import open_connection

assert sys.platform == "linux"

from hvsock.services.predefined.direct import keeping, processes
from hvsock.services.predefined.direct.users import own_user
from hvsock.testing.fabric import fabric
from tests.cli.helpers import PROGRAM, invoke
from tests.services.predefined.direct_guest import PATIENCE, Guest, a_guest, direct_keeper, with_guest
from tests.waiting import is_alive, wait_until

needs_openssh = pytest.mark.skipif(
    shutil.which("ssh") is None or shutil.which("sftp") is None,
    reason="there is no ssh and sftp; as root: apt-get install -y openssh-client",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else; run it as root")
__all__ = ["direct_keeper"]
LARGE = os.urandom(1 << 20)


async def wait_until_gone(pid: int) -> None:
    """Wait until a process that is nobody's child here has ended."""
    async with asyncio.timeout(PATIENCE):
        while os.path.exists(f"/proc/{pid}"):
            await asyncio.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """The child processes of one."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_session_leader(pid: int) -> bool:
    """Whether a process began its session, as a keeper does and an agent does not."""
    return os.getsid(pid) == pid


def memory_maps(pid: int) -> str:
    """What a process has in memory, by files."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_text()
    return ""


def test_exec(tmp_path: Path) -> None:
    """Output, error output, exit status, variables, the folder, and arguments that no shell may touch."""

    async def main(guest: Guest) -> None:
        script = 'echo "$A|$1|$2"; pwd; echo err >&2; exit 7'
        done = await guest.run(
            *("hvsock", "exec", "web01", "--cwd", str(tmp_path), "--env", "A=b c", "--"),
            *("sh", "-c", script, "sh", "a  'b", "$HOME"),
        )
        assert (done.code, done.out, done.err) == (7, f"b c|a  'b|$HOME\n{tmp_path}\n".encode(), b"err\n")

    with_guest(tmp_path / "state", main)


def test_streams_and_the_end_by_a_signal(tmp_path: Path) -> None:
    """1 MiB through a command both ways, and 8 MiB from it once its input has ended."""

    async def main(guest: Guest) -> None:
        script = f"cat; head -c {8 << 20} /dev/zero; kill -TERM $$"
        done = await guest.run("hvsock", "exec", "web01", "--", "sh", "-c", script, input=LARGE)
        assert hashlib.sha256(done.out).digest() == hashlib.sha256(LARGE + bytes(8 << 20)).digest()
        assert done.code == 128 + signal.SIGTERM

    with_guest(tmp_path / "state", main)


def test_signals_go_through(tmp_path: Path) -> None:
    """Also where the command does not read its input, of which there is more than every buffer takes."""
    script = "trap 'echo got; exit 5' INT; echo ready; while :; do sleep 0.05; done"

    async def main(guest: Guest) -> None:
        process = await guest.start("hvsock", "exec", "web01", "--", "sh", "-c", script)
        assert process.stdin is not None
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await process.stdout.readline() == b"ready\n"
            process.stdin.write(bytes(8 << 20))
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
        assert (process.returncode, out, err) == (5, b"got\n", b"")

    with_guest(tmp_path / "state", main)


@pytest.mark.soak
def test_commands_do_not_ignore_what_their_agent_ignores(tmp_path: Path) -> None:
    """As an agent does that nohup or a shell's background began."""
    with fabric() as made:
        guest = made.create_partition("web01")
        env = {**os.environ, "HVSOCK_DIR": made.folder}
        ignoring = [
            "sh",
            "-c",
            'trap "" HUP INT QUIT; exec "$@"',
            "sh",
            PROGRAM,
            "agent",
            "--state",
            str(tmp_path),
        ]
        command = [PROGRAM, "exec", "web01", "--wait", str(PATIENCE), "--", "sh", "-c"]
        with subprocess.Popen(ignoring, env={**env, "HVSOCK_PARTITION": guest.folder}) as agent:
            try:
                for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
                    ended = subprocess.run([*command, f"kill -{number} $$"], env=env, timeout=PATIENCE)
                    assert ended.returncode == 128 + number
                agent.send_signal(signal.SIGHUP)
                assert subprocess.run([*command, "exit 3"], env=env, timeout=PATIENCE).returncode == 3
            finally:
                agent.terminate()


@pytest.mark.parametrize("tty", [[], pytest.param(["--tty"], marks=pytest.mark.soak)])
def test_a_killed_client_takes_its_command_along(tmp_path: Path, tty: list[str]) -> None:
    async def main(guest: Guest) -> None:
        process = await guest.start("hvsock", "exec", "web01", *tty, "--", "sh", "-c", "echo $$; exec sleep 1000")
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            pid = int(await process.stdout.readline())
            process.kill()
            await process.communicate()
        await wait_until_gone(pid)

    with_guest(tmp_path / "state", main)


def test_a_command_that_ignores_the_hangup_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "HANGUP_SECONDS", 0.1)

    async def main() -> None:
        command = "trap '' HUP TERM; echo $$; while :; do sleep 0.05; done"
        process = await processes.started(own_user(), command, {}, None)
        pid = int(await process.read(1, 100))
        await process.end()
        await wait_until_gone(pid)

    asyncio.run(main())


def test_an_agent_that_ends_is_told(tmp_path: Path) -> None:
    """255, as with ssh, and one line."""

    async def whole() -> None:
        async with a_guest(tmp_path / "state") as guest:
            process = await guest.start("hvsock", "exec", "web01", "--", "sh", "-c", "echo ready; exec sleep 1000")
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"ready\n"
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == 255
        assert err.startswith(b"hvsock: web01: the connection ended in the midst of the command"), err
        assert err.count(b"\n") == 1

    asyncio.run(whole())


def test_terminal(tmp_path: Path) -> None:
    """It is the command's own, has the size that the client says, and changes with it."""

    async def main(guest: Guest) -> None:
        async with guest.logged_in() as connection, asyncio.timeout(PATIENCE):
            command = "trap 'stty size; exit 3' WINCH; tty; stty size; echo; while :; do sleep 0.05; done"
            process = await connection.create_process(
                command, request_pty="force", term_type="vt100", term_size=(81, 25)
            )
            assert (await process.stdout.readline()).startswith("/dev/pts/")
            assert await process.stdout.readline() == "25 81\r\n"
            process.change_terminal_size(100, 50)
            assert "50 100\r\n" in await process.stdout.read()
            await process.wait_closed()
            assert process.exit_status == 3

    with_guest(tmp_path / "state", main)


def test_shell(tmp_path: Path) -> None:
    async def main(guest: Guest) -> None:
        done = await guest.run("hvsock", "shell", "web01", input=b"echo in the shell; exit 3\n")
        assert done.code == 3
        assert b"in the shell\n" in done.out

    with_guest(tmp_path / "state", main)


@needs_openssh
def test_openssh(tmp_path: Path) -> None:
    """ssh by both ways, and sftp there and back, with what ssh-config printed and no environment."""
    config = tmp_path / "config"
    (tmp_path / "here").write_bytes(LARGE)

    async def main(guest: Guest) -> None:
        env = {"HVSOCK_DIR": guest.fabric, "HVSOCK_PARTITION": None}
        printed = await asyncio.to_thread(invoke, "direct", "ssh-config", "web01", env=env)
        config.write_bytes(printed.stdout_bytes)
        ssh = ("ssh", "-F", str(config))
        elsewhere = ("env", "--unset=HVSOCK_DIR", "--unset=HVSOCK_PARTITION", *ssh)
        by_proxy, by_connect, sftp = await asyncio.gather(
            guest.run(*elsewhere, "web01", "cat; exit 6", input=LARGE),
            guest.run(*ssh, "-o", "ProxyCommand=hvsock connect %n Direct", "web01", "echo here"),
            guest.run(
                *("sftp", "-b", "-", "-F", str(config), "web01"),
                input=f"put {tmp_path}/here {tmp_path}/there\nget {tmp_path}/there {tmp_path}/back\n".encode(),
            ),
        )
        assert (by_proxy.code, by_proxy.out == LARGE) == (6, True), by_proxy.err
        assert (by_connect.code, by_connect.out) == (0, b"here\n"), by_connect.err
        assert sftp.code == 0, sftp.err
        assert (tmp_path / "back").read_bytes() == LARGE

    with_guest(tmp_path / "state", main)


def test_policy(tmp_path: Path) -> None:
    """What the guest denies is not done, and a command's client is told why."""

    async def main(guest: Guest) -> None:
        done = await guest.run("hvsock", "exec", "web01", "--", "touch", str(tmp_path / "made"))
        assert done.code == 255
        assert done.err.startswith(
            b"hvsock: direct.exec is denied by the policy of the side that serves it, or by"
        )
        assert not (tmp_path / "made").exists()
        async with guest.logged_in() as connection:
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.start_sftp_client()

    with_guest(tmp_path / "state", main, Policy.of(deny=["direct.exec", "direct.sftp"]))


def test_forwarding_is_denied(tmp_path: Path) -> None:
    async def main(guest: Guest) -> None:
        async with guest.logged_in() as connection:
            for opened in (
                connection.open_connection("127.0.0.1", 1),
                connection.open_unix_connection(str(tmp_path / "socket")),
            ):
                with pytest.raises(asyncssh.ChannelOpenError):
                    await opened
            with pytest.raises(asyncssh.ChannelListenError):
                await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)

    with_guest(tmp_path / "state", main)


def test_sessions_are_bounded(tmp_path: Path) -> None:
    """One more than there may be is refused, over all connections, and one that ended leaves its place."""

    async def main(guest: Guest) -> None:
        async with guest.logged_in() as connection, guest.logged_in() as other:
            process = await connection.create_process("cat")
            with pytest.raises(asyncssh.ChannelOpenError, match="1 sessions already"):
                await other.run("true")
            process.stdin.write_eof()
            await process.wait()
            while True:  # its place is free a moment after it has ended
                with contextlib.suppress(asyncssh.ChannelOpenError):
                    assert (await other.run("echo again")).stdout == "again\n"
                    break

    with contextlib.closing(keeping.Program(sessions=1)) as made, keeping.kept(made):
        with_guest(tmp_path / "state", main)


def test_where_the_kernel_was_to_keep_no_exit_codes(tmp_path: Path) -> None:
    """As of an agent whose parent ignores SIGCHLD."""

    async def main(guest: Guest) -> None:
        for code in (3, 4):  # the keeper lives on after the first
            async with guest.logged_in() as connection:
                assert (await connection.run(f"false; exit {code}")).exit_status == code

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        made = keeping.Program()
    finally:
        signal.signal(signal.SIGCHLD, before)
    with contextlib.closing(made), keeping.kept(made):
        with_guest(tmp_path / "state", main)
        assert is_alive(made.pid)


def test_unknown_users_do_not_get_in(tmp_path: Path) -> None:
    async def main(guest: Guest) -> None:
        with pytest.raises(HvsockError, match="does not let the host in as 'no-such-user'"):
            async with guest.logged_in("no-such-user"):
                pass

    with_guest(tmp_path / "state", main)


@needs_root
@pytest.mark.parametrize("tty", [pytest.param([], marks=pytest.mark.soak), ["--tty"]])
def test_another_user(tmp_path: Path, tty: list[str]) -> None:
    """Also one without a login, on a terminal of its own; what serves the connection is that user too."""

    async def main(guest: Guest) -> None:
        done = await guest.run(
            "hvsock", "exec", "web01", "--user", "nobody", *tty, "--", "sh", "-c", "id -un; id -G"
        )
        name, groups = done.out.split()
        assert name == b"nobody", done
        assert groups != b"0"
        async with guest.logged_in("nobody") as connection:
            script = "grep -E '^(Uid|Gid|Groups|CapEff|CapPrm):' /proc/$PPID/status; id -u; id -g; id -G"
            words = str((await connection.run(script, check=True)).stdout).split()
            secret = await connection.run("cat /proc/$PPID/environ || cat /proc/$PPID/mem")
            assert (secret.exit_status, secret.stdout) == (1, "")  # it has the guest's key in memory
            assert str(secret.stderr).count("ermission denied") == 2
            assert (await connection.run("pwd")).stdout == "/\n"
        user = pwd.getpwnam("nobody")
        end = words.index("CapPrm:")
        assert words[:5] == ["Uid:", *[str(user.pw_uid)] * 4]
        assert words[5:10] == ["Gid:", *[str(user.pw_gid)] * 4]
        assert words[10:end] == ["Groups:", str(user.pw_gid)]
        assert words[end:] == [
            *("CapPrm:", "0" * 16, "CapEff:", "0" * 16),
            *(str(user.pw_uid), str(user.pw_gid), str(user.pw_gid)),
        ]

    with_guest(tmp_path / "state", main)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may write to, with a file that is root's alone."""
    with tempfile.TemporaryDirectory(prefix="hvsock-direct-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "secret").write_text("of root")
        (folder / "secret").chmod(0o600)
        yield folder


@needs_root
def test_files_of_another_user(tmp_path: Path, open_folder: Path) -> None:
    """They are touched with that user's rights: what it makes is its own, and what is not its own stays so."""
    nobody = pwd.getpwnam("nobody")

    async def main(guest: Guest) -> None:
        async with guest.logged_in("nobody") as connection, connection.start_sftp_client() as sftp:
            async with sftp.open(str(open_folder / "made"), "w") as file:
                await file.write("by nobody")
            await sftp.mkdir(str(open_folder / "folder"))
            for refused in (
                sftp.open(str(open_folder / "secret")),
                sftp.open(str(open_folder / "secret"), "a"),
                sftp.chown(str(open_folder / "made"), 0, 0),
                sftp.chmod(str(open_folder / "secret"), 0o666),
                sftp.listdir("/root"),
                sftp.symlink("/etc/passwd", "/etc/hvsock-test-link"),
            ):
                with pytest.raises((asyncssh.SFTPPermissionDenied, asyncssh.SFTPFailure)):
                    await refused
        async with (
            guest.logged_in() as connection,
            connection.start_sftp_client() as sftp,
            sftp.open(str(open_folder / "secret")) as file,
        ):
            assert await file.read() == "of root"

    with_guest(tmp_path / "state", main)
    for name in ("made", "folder"):
        found = (open_folder / name).stat()
        assert (found.st_uid, found.st_gid) == (nobody.pw_uid, nobody.pw_gid)
    assert (open_folder / "made").read_text() == "by nobody"
    assert (open_folder / "secret").stat().st_mode & 0o777 == 0o600


@needs_root
@needs_openssh
@pytest.mark.soak
def test_openssh_copies_files_as_another_user(tmp_path: Path, open_folder: Path) -> None:
    """By sftp, scp, and scp's own protocol of old; the file that is root's alone is not read."""
    config = tmp_path / "config"
    (tmp_path / "here").write_bytes(LARGE)

    async def main(guest: Guest) -> None:
        printed = await guest.run("hvsock", "direct", "ssh-config", "web01")
        config.write_bytes(printed.out)
        ssh = ("-F", str(config), "-o", "User=nobody")
        here, secret = f"{tmp_path}/here", f"{open_folder}/secret"
        sftp, scp, old, not_by_sftp, not_by_scp = await asyncio.gather(
            guest.run(
                *("sftp", "-b", "-", *ssh, "web01"),
                input=f"put {here} {open_folder}/1\nget {open_folder}/1 {tmp_path}/back\n".encode(),
            ),
            guest.run("scp", *ssh, here, f"web01:{open_folder}/2"),
            guest.run("scp", "-O", *ssh, here, f"web01:{open_folder}/3"),
            guest.run("sftp", "-b", "-", *ssh, "web01", input=f"get {secret} {tmp_path}/stolen\n".encode()),
            guest.run("scp", *ssh, f"web01:{secret}", f"{tmp_path}/stolen"),
        )
        for done in (sftp, scp, old):
            assert done.code == 0, done
        for done in (not_by_sftp, not_by_scp):
            assert done.code != 0
            assert b"ermission denied" in done.err

    with_guest(tmp_path / "state", main)
    assert (tmp_path / "back").read_bytes() == LARGE
    for name in "123":
        assert (open_folder / name).read_bytes() == LARGE
        assert (open_folder / name).stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert not (tmp_path / "stolen").exists()


def test_a_keeper_that_is_killed(tmp_path: Path) -> None:
    """What it had under way goes on, what comes next is served by the next one, and there is one at a time."""
    with fabric() as made:
        guest = made.create_partition("web01")
        env = {**os.environ, "HVSOCK_DIR": made.folder}
        execute = [PROGRAM, "exec", "web01", "--wait", str(PATIENCE), "--"]
        command = [PROGRAM, "agent", "--state", str(tmp_path)]
        begin = partial(subprocess.Popen[str], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with subprocess.Popen(command, env={**env, "HVSOCK_PARTITION": guest.folder}) as supervisor:
            try:
                with begin([*execute, "cat"]) as client:
                    assert client.stdin is not None
                    assert client.stdout is not None
                    client.stdin.write("begun\n")
                    client.stdin.flush()
                    assert client.stdout.readline() == "begun\n"
                    agent, keeper = sorted(children_of(supervisor.pid), key=is_session_leader)
                    os.kill(keeper, signal.SIGKILL)
                    wait_until(lambda: set(children_of(supervisor.pid)) - {agent, keeper})
                    (second,) = set(children_of(supervisor.pid)) - {agent}
                    os.kill(second, signal.SIGSTOP)
                    with begin([*execute, "echo", "here"]) as other:
                        os.kill(second, signal.SIGKILL)  # before it has taken the connection
                        assert other.communicate(timeout=PATIENCE)[0] == "here\n"
                    (third,) = set(children_of(supervisor.pid)) - {agent}
                    assert len({keeper, second, third}) == 3
                    client.stdin.write("still\n")
                    assert client.communicate(timeout=PATIENCE)[0] == "still\n"
                    assert client.returncode == 0
            finally:
                supervisor.terminate()


@pytest.mark.soak
def test_a_process_without_a_keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program has that serves Direct by itself."""
    monkeypatch.setattr(keeping, "_kept", None)

    async def main(guest: Guest) -> None:
        async with guest.logged_in() as connection:
            assert (await connection.run("echo here")).stdout == "here\n"

    with_guest(tmp_path / "state", main)


@pytest.mark.soak
def test_an_agent_that_is_killed_takes_commands_along(tmp_path: Path) -> None:
    """And the next one loads ahead, for its host was there before."""
    with fabric() as made:
        guest = made.create_partition("web01")
        env = {**os.environ, "HVSOCK_DIR": made.folder}
        command = [PROGRAM, "exec", "web01", "--wait", str(PATIENCE), "--", "sh", "-c", "echo $$; exec sleep 1000"]
        agent = [PROGRAM, "agent", "--state", str(tmp_path)]
        with subprocess.Popen(agent, env={**env, "HVSOCK_PARTITION": guest.folder}) as first:
            try:
                with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
                    assert client.stdout is not None
                    pid = int(client.stdout.readline())
                    first.kill()
                    assert client.wait(PATIENCE) == 255
            finally:
                first.kill()
        asyncio.run(wait_until_gone(pid))
        with subprocess.Popen(agent, env={**env, "HVSOCK_PARTITION": guest.folder}) as second:
            try:
                wait_until(lambda: any("_rust" in memory_maps(one) for one in children_of(second.pid)))
            finally:
                second.terminate()


SLOTS = """
import os
from hvsock.services.predefined.direct.keeper import Slots

slots = Slots(2)
assert slots.take() == 0
child = os.fork()
if child == 0:
    os._exit(0 if (slots.take(), slots.take()) == (1, None) else 1)
assert os.waitpid(child, 0)[1] == 0
assert (slots.take(), slots.take()) == (1, None)
slots.give(0)
assert slots.take() == 0
slots.close()
"""


def test_slots() -> None:
    """They are shared with a fork, and come back when it ends; in a process that has no threads."""
    subprocess.run([sys.executable, "-c", SLOTS], check=True, timeout=PATIENCE)


def test_mistaken_clients_harm_nobody(tmp_path: Path) -> None:
    """Whatever comes first; the next client is served."""

    async def main(guest: Guest) -> None:
        address = (str(guest.id), ServiceId.from_port(DIRECT.port))
        for said in (b"", b"X", b"H", b"HVSOCK-DIRECT 1 ssh-rsa AAAA\n", b"H" * 5000, b"SSH-2.0-x\r\n\0"):
            reader, writer = await open_connection(address, partition=guest.host)
            writer.write(said)
            writer.write_eof()
            async with asyncio.timeout(PATIENCE):
                with contextlib.suppress(ConnectionResetError):
                    await reader.read()
            writer.close()
        async with guest.logged_in() as connection:
            assert (await connection.run("echo here")).stdout == "here\n"

    with_guest(tmp_path / "state", main)


def test_a_key_that_was_not_handed_over_does_not_get_in(tmp_path: Path) -> None:
    async def main(guest: Guest) -> None:
        from hvsock.sockets.aio import connected

        async with guest.logged_in():
            pass
        sock = await connected((str(guest.id), ServiceId.from_port(DIRECT.port)), partition=guest.host)
        with pytest.raises(asyncssh.PermissionDenied):
            await asyncssh.run_client(
                sock,
                config=None,
                username="root",
                known_hosts=None,
                agent_path=None,
                client_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            )

    with_guest(tmp_path / "state", main)


def test_an_idle_agent_has_not_loaded_asyncssh() -> None:
    code = "import sys, hvsock.services.predefined.direct.service as s; s.Direct; print('asyncssh' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
