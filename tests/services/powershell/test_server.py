"""The guest's half over a fabric: who is let in, what runs for them, and what is refused."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock.addresses import HV_GUID_LOOPBACK
from hvsock.constants import VM_SESSION_SERVICE, VM_SESSION_SERVICE_2
from hvsock.errors import HvsockError, NotReadyError, RefusedError
from hvsock.services import agent as agent_module
from hvsock.services.agent import Agent, running
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.policy import Policy
from hvsock.services.powershell import accounts, askpam, conversing, program, server, tokens
from hvsock.services.powershell.accounts import Accounts
from hvsock.services.powershell.brokering import host_credentials, open_session
from hvsock.services.powershell.client import connect
from hvsock.services.powershell.conversing import converse
from hvsock.services.powershell.handshake import (
    BrokerClient,
    ConfigurationError,
    CredentialError,
    Credentials,
    SessionClient,
    TokenError,
)
from hvsock.services.powershell.keylogin import PREFIX, is_signed, signed
from hvsock.services.powershell.server import VmSession, VmSessionBroker
from hvsock.services.powershell.tokens import MAX_FAILURES
from hvsock.services.predefined import GUEST_HALVES
from hvsock.services.predefined.direct.keyfiles import key_pair
from hvsock.services.predefined.direct.service import Direct
from hvsock.services.serving import serve
from hvsock.sockets.aio import connected
from hvsock.sockets.chosen import socket
from hvsock.testing.fabric import EmbeddedFabric, PartitionHandle, fabric
from tests.support import sample

PATIENCE_SECONDS = 40.0
SHORT_PAUSE_SECONDS = 0.01
"""Enough where a message comes whole, as on one machine; a pause is for every text of every session here."""
ME = getpass.getuser()
PASSWORDS = {ME: "sécret", "daemon": "d", "gone-by-now": "g"}
"""What PAM says in most tests, also of one who is no user; in one of them it is a real one."""
GOOD = Credentials(ME, PASSWORDS[ME])
NOT_ADMITTED = b"__HyperVSocketError__:no session was admitted; ask the broker first, and give its token\n"
CAT = ("cat",)
"""A program for sessions that says what it hears."""


@dataclass
class World:
    """A guest that lets users in.

    Attributes:
        fabric, guest: what there is.
        asked: whom PAM was asked about.
    """

    fabric: EmbeddedFabric
    guest: PartitionHandle
    asked: list[str] = field(default_factory=list)

    async def opened(self, credentials: Credentials = GOOD, **arguments: Any) -> socket:
        """Open a session."""
        return await open_session("web01", credentials, partition=self.fabric.host.folder, **arguments)

    async def connected(self, service: str) -> socket:
        """Connect to either service."""
        return await connected(("web01", service), partition=self.fabric.host.folder)

    async def refused(self, credentials: Credentials, **arguments: Any) -> str:
        """Be refused a session; why."""
        with pytest.raises((CredentialError, ConfigurationError)) as caught:
            await self.opened(credentials, **arguments)
        return str(caught.value)

    async def by_key(self, user: str | None = None) -> Credentials:
        """Credentials by the host's key."""
        keys = os.path.join(self.fabric.folder, "keys")
        return await host_credentials("web01", user, partition=self.fabric.host.folder, keys=keys)


async def heard(sock: socket, until: bytes = b"\n") -> bytes:
    """What comes, until it ends with `until`, or is over."""
    loop, found = asyncio.get_running_loop(), b""
    while not found.endswith(until) and (data := await loop.sock_recv(sock, 65536)):
        found += data
    return found


async def all_heard(sock: socket) -> bytes:
    """What comes until the end."""
    loop, found = asyncio.get_running_loop(), b""
    while data := await loop.sock_recv(sock, 65536):
        found += data
    return found


async def said(sock: socket, data: bytes) -> None:
    """Say something."""
    await asyncio.get_running_loop().sock_sendall(sock, data)


@asynccontextmanager
async def a_world(
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Sequence[str] = CAT,
    *,
    configurations: Mapping[str, Sequence[str]] | None = None,
    older: bool = False,
    policy: Policy = Policy(),  # noqa: B008
) -> AsyncIterator[World]:
    """A guest with both services, and Direct."""
    monkeypatch.setattr(conversing, "PAUSE_SECONDS", SHORT_PAUSE_SECONDS)
    with fabric() as made:
        guest = made.create_partition("web01")
        world = World(made, guest)

        async def ask(user: str, password: str) -> str:
            world.asked.append(user)
            return "" if PASSWORDS.get(user) == password else "PAM: Authentication failure"

        monkeypatch.setattr(accounts, "ask_pam", ask)
        surroundings = Surroundings(own_machine=False, state_folder=str(state), policy=policy)
        broker = VmSessionBroker(surroundings, command, configurations=configurations or {}, older=older)
        services = (broker, VmSession(surroundings), Direct(surroundings))
        async with serve(*services, bind="parent", partition=guest.folder), asyncio.timeout(PATIENCE_SECONDS):
            yield world


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a test in a world."""

    def run(test: Callable[[World], Awaitable[None]], *arguments: Any, **settings: Any) -> None:
        async def main() -> None:
            async with a_world(tmp_path, monkeypatch, *arguments, **settings) as world:
                await test(world)

        asyncio.run(main())

    return run


Run = Callable[..., None]


# -- who is let in


def test_a_password(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Right ones are let in, by any name of the own domain; the log says who, and no password."""

    async def test(world: World) -> None:
        for domain in ("", "localhost", ".", os.uname().nodename.upper()):
            with await world.opened(Credentials(ME, PASSWORDS[ME], domain)) as sock:
                await said(sock, b"hello\n")
                assert await heard(sock) == b"hello\n"
        for wrong in (Credentials(ME, "other"), Credentials(ME), Credentials("nobody-here", "x")):
            assert repr(wrong.user) in await world.refused(wrong)
        assert world.asked == [ME] * 4 + [ME, ME, "nobody-here"]
        assert "'anna'" in await world.refused(Credentials("anna", "x", "corp"))  # PAM is not asked
        assert len(world.asked) == 7

    with caplog.at_level(logging.INFO):
        run(test)
    assert f"{ME!r} is not let in: PAM: Authentication failure" in caplog.text
    assert "there is no domain 'corp' here" in caplog.text
    assert PASSWORDS[ME] not in caplog.text


@pytest.mark.soak
def test_too_many_wrong_passwords(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Then a right one is refused, too, and PAM is not asked; the host's key goes on to work."""

    async def test(world: World) -> None:
        for _ in range(MAX_FAILURES):
            await world.refused(Credentials(ME, "other"))
        await world.refused(GOOD)
        assert len(world.asked) == MAX_FAILURES
        (await world.opened(await world.by_key())).close()

    run(test)
    assert "so none is checked now" in caplog.text


def test_the_hosts_key(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It lets in whom it was made for, once Direct handed it over; no other key does, before or after that."""
    other, _ = key_pair(str(tmp_path / "key"))

    async def test(world: World) -> None:
        await world.refused(Credentials(ME, signed(other, ME)))
        credentials = await world.by_key()
        assert credentials.user == ME
        with await world.opened(credentials) as sock:
            await said(sock, b"hello\n")
            assert await heard(sock) == b"hello\n"
        await world.refused(Credentials("daemon", credentials.password))
        for wrong in (signed(other, ME), PREFIX + "AAAA", PREFIX + "no base64", PREFIX):
            await world.refused(Credentials(ME, wrong))
        assert world.asked == []

    run(test)
    assert "the host has handed over no key yet" in caplog.text
    assert "not signed by the key that the host has handed over last" in caplog.text


def test_signatures(tmp_path: Path) -> None:
    (private, public), (_, other) = key_pair(str(tmp_path / "a")), key_pair(str(tmp_path / "b"))
    password = signed(private, "größe")
    assert is_signed(public, "größe", password)
    assert not is_signed(public, "grosse", password)
    assert not is_signed(other, "größe", password)
    assert not is_signed("ssh-ed25519 garbage", "größe", password)
    assert not is_signed(public, "größe", password[:-8])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user; run the tests as root")
def test_the_program_runs_as_the_user(run: Run) -> None:
    async def test(world: World) -> None:
        with await world.opened(Credentials("daemon", PASSWORDS["daemon"])) as sock:
            name, user, folder, *groups = (await all_heard(sock)).decode().split()
        assert (name, user, folder) == ("daemon", "daemon", "/")
        wanted = pwd.getpwnam("daemon")
        assert {int(one) for one in groups} == {wanted.pw_gid, *os.getgrouplist("daemon", wanted.pw_gid)}
        await world.refused(Credentials("gone-by-now", PASSWORDS["gone-by-now"]))

    run(test, ("sh", "-c", 'echo "$(id -un) $USER $(pwd -P | cut -c 1) $(id -G)"'))


def test_what_the_guest_denies(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        await world.refused(GOOD)
        assert world.asked == []

    run(test, policy=Policy.of(deny=["powershell.session"]))
    assert "powershell.session is denied" in caplog.text


def test_nobody_but_the_parent_is_let_in(tmp_path: Path) -> None:
    """Their listeners let nobody else in, and they check again."""

    async def main() -> None:
        surroundings = Surroundings(own_machine=False, state_folder=str(tmp_path))
        for service in (VmSessionBroker(surroundings), VmSession(surroundings)):
            with socket() as sock, pytest.raises(RefusedError, match="for the host alone"):
                await service.handle(Caller(HV_GUID_LOOPBACK), sock)

    asyncio.run(main())


def test_without_pam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says what is missing, and that the host's key works."""
    (tmp_path / "ctypes").mkdir()
    (tmp_path / "ctypes" / "__init__.py").touch()
    (tmp_path / "ctypes" / "util.py").write_text("def find_library(name): return None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    surroundings = Surroundings(own_machine=False, state_folder=str(tmp_path))
    with pytest.raises(NotReadyError, match=r"no PAM \(libpam.so.0\); install it, or log in by the host's key"):
        asyncio.run(Accounts(surroundings).check(GOOD))
    (tmp_path / "ctypes" / "util.py").write_text("def find_library(name): return 'libpam.so.0'\n")
    (tmp_path / "pam.py").write_text("raise ImportError\n")
    with pytest.raises(NotReadyError, match="no python-pam"):
        asyncio.run(Accounts(surroundings).check(GOOD))


def test_a_pam_that_breaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is no answer lets nobody in; what gives none is killed with the attempt."""
    surroundings = Surroundings(own_machine=False, state_folder=str(tmp_path))
    (tmp_path / "pam.py").write_text("import os\nprint('yes', flush=True)\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CredentialError, match="ended with status -6"):
        asyncio.run(Accounts(surroundings).check(GOOD))
    told = tmp_path / "told"
    (tmp_path / "pam.py").write_text(f"import time\nopen({str(told)!r}, 'w').close()\ntime.sleep(1000)\n")

    async def main() -> None:
        checking = asyncio.create_task(Accounts(surroundings).check(GOOD))
        while not told.exists():
            await asyncio.sleep(0.01)
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking

    asyncio.run(main())


PAM_TRIAL = """if True:
    import asyncio, os, sys
    from hvsock.services.powershell.accounts import ask_pam

    def ask(*tries):
        return [bool(asyncio.run(ask_pam(*one.split(" ")))) for one in tries]

    print(ask("anna sécret", "anna wrong", "berta sécret", "anna "))
    os.rename(sys.argv[1], "/etc/pam.d/hvsock")
    print(ask("anna sécret", "anna other"))
"""


@pytest.mark.skipif(
    find_library("pam") is None or shutil.which("unshare") is None,
    reason="there is no PAM, or no unshare; as root: apt-get install -y libpam0g libpam-modules util-linux",
)
def test_a_real_pam(tmp_path: Path) -> None:
    """In a mount namespace where /etc/pam.d is the test's: programs there check passwords.

    The service `login` is asked until there is one for hvsock.
    """
    unshare = ["unshare", "--map-root-user", "--mount", "--"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("namespaces of users are not allowed; as root: sysctl kernel.unprivileged_userns_clone=1")
    folder = tmp_path / "pam.d"
    folder.mkdir()
    for service, password in ((askpam.SERVICE, "sécret"), ("own", "other")):
        check = tmp_path / f"check-{service}"
        check.write_text(f'#!/bin/sh\n[ "$PAM_USER $(tr -d "\\0")" = "anna {password}" ]\n')
        check.chmod(0o755)
        lines = f"auth required pam_exec.so expose_authtok quiet {check}\naccount required pam_permit.so\n"
        (folder / service).write_text(lines)
    script = f'mount --bind {folder} /etc/pam.d && exec "$0" "$@"'
    trial = [sys.executable, "-c", PAM_TRIAL, "/etc/pam.d/own"]
    done = subprocess.run([*unshare, "sh", "-c", script, *trial], capture_output=True, text=True, check=True)
    assert done.stdout == "[False, True, True, True]\n[True, False]\n", done.stderr
    assert askpam.OWN_SERVICE == "hvsock"


# -- what runs


def test_a_session_ends_with_its_client(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its input ends a program; one that stays is hung up, and gone."""
    monkeypatch.setattr(program, "END_SECONDS", 0.1)

    async def test(world: World) -> None:
        with await world.opened() as sock:
            pid = int(await heard(sock))
        while os.path.exists(f"/proc/{pid}"):
            await asyncio.sleep(0.01)

    run(test, ("sh", "-c", "echo $$; exec sleep 1000"))


def test_a_client_that_goes_while_it_is_sent_much(run: Run) -> None:
    """Bounded by pipes and buffers; the program is gone after it."""

    async def test(world: World) -> None:
        with await world.opened() as sock:
            pid = int((await heard(sock, b"y\n")).split()[0])
        while os.path.exists(f"/proc/{pid}"):
            await asyncio.sleep(0.01)

    run(test, ("sh", "-c", "echo $$; exec yes"))


def test_much_both_ways(run: Run) -> None:
    """Some MiB through a program, which ends with its input."""
    much = os.urandom(1 << 20) * sample(2, 32)

    async def test(world: World) -> None:
        from socket import SHUT_WR

        with await world.opened() as sock:
            hearing = asyncio.create_task(all_heard(sock))
            await said(sock, much)
            sock.shutdown(SHUT_WR)
            assert await hearing == much

    run(test)


def test_a_program_that_is_not_there(run: Run) -> None:
    async def test(world: World) -> None:
        with await world.opened() as sock:
            line = await all_heard(sock)
        assert line.startswith(b"__HyperVSocketError__:no-such-pwsh is not installed in this guest, or not in /")
        assert line.endswith(b"\n")

    run(test, ("no-such-pwsh", "-s"))


@pytest.mark.parametrize(
    ("command", "before"), [("", b""), ("echo half; ", b"half\n"), ("printf half; ", b"half\n")]
)
def test_a_program_that_fails(run: Run, command: str, before: bytes) -> None:
    """Why is told on a line of its own."""

    async def test(world: World) -> None:
        with await world.opened() as sock:
            text = await all_heard(sock)
        error = b"__HyperVSocketError__:the session's program ended with status 3: out of memory\n"
        assert text == before + error

    run(test, ("sh", "-c", f"{command}echo out of >&2; echo memory >&2; exit 3"))


def test_configurations(run: Run) -> None:
    """Each has a program of its own."""

    async def test(world: World) -> None:
        for name in ("JEA", "Größe"):
            with await world.opened(configuration=name) as sock:
                assert await all_heard(sock) == f"{name}\n".encode()
        assert "no configuration 'JEA2'" in await world.refused(GOOD, configuration="JEA2")

    run(test, configurations={name: ("echo", name) for name in ("JEA", "Größe")})


def test_sessions_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_SESSIONS", 1)

    async def test(world: World) -> None:
        with await world.opened() as first:
            await said(first, b"hello\n")
            await heard(first)
            with await world.opened() as second:
                assert (
                    await all_heard(second)
                    == b"__HyperVSocketError__:the guest has 1 sessions already; end some\n"
                )

    run(test)


# -- tokens and versions


async def token_of(world: World) -> str:
    """A token of the broker's."""
    with await world.connected(VM_SESSION_SERVICE.id) as sock:
        agreement = await converse(sock, BrokerClient(GOOD))
    assert agreement.token is not None
    return agreement.token


async def begun(world: World, token: str) -> socket:
    """A session by a token."""
    sock = await world.connected(VM_SESSION_SERVICE_2.id)
    try:
        await converse(sock, SessionClient(token))
    except BaseException:
        sock.close()
        raise
    return sock


def test_a_token_is_good_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        token, other = await token_of(world), await token_of(world)
        assert token != other
        (await begun(world, token)).close()
        for wrong in (token, other.swapcase(), "AAAA", "=" * 44):
            with pytest.raises(TokenError):
                await begun(world, wrong)
        (await begun(world, other)).close()

    run(test)
    assert "never given, or used before" in caplog.text


def test_a_token_expires(run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tokens.Tokens.issue, "__defaults__", (0.0,))

    async def test(world: World) -> None:
        with pytest.raises(TokenError, match="expired or was used"):
            await world.opened()

    run(test)
    assert "the token has expired" in caplog.text


async def older_session(world: World, configuration: str = "") -> socket:
    """What a client of the older version does."""
    with await world.connected(VM_SESSION_SERVICE.id) as sock:
        await converse(sock, BrokerClient(GOOD, configuration, older=True))
    return await world.connected(VM_SESSION_SERVICE_2.id)


def test_the_older_version(run: Run) -> None:
    """A session of it is begun by whoever comes next, once."""

    async def test(world: World) -> None:
        for configuration in ("", "JEA"):
            with await older_session(world, configuration) as sock:
                await said(sock, b"<Data />\n")
                assert await heard(sock) == b"<Data />\n"
        with await world.connected(VM_SESSION_SERVICE_2.id) as sock:
            await said(sock, b"<Data />\n")
            assert await heard(sock) == NOT_ADMITTED

    run(test, older=True, configurations={"JEA": CAT})


def test_the_older_version_is_off_by_default(run: Run) -> None:
    async def test(world: World) -> None:
        with await world.connected(VM_SESSION_SERVICE.id) as sock, pytest.raises(HvsockError):
            await converse(sock, BrokerClient(GOOD, older=True))
        assert world.asked == []

    run(test)


# -- clients that break the rules


def test_silence(run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Clients that say nothing, or half, are closed in time."""
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0.1)

    async def test(world: World) -> None:
        for service in (VM_SESSION_SERVICE, VM_SESSION_SERVICE_2):
            for words in (b"", b"VERS", b"VERSION"):
                with await world.connected(service.id) as sock:
                    await said(sock, words)
                    assert await all_heard(sock) in (b"", b"VERSION_2")

    with caplog.at_level(logging.INFO):
        run(test)
    assert "the client owes the question for the version since 0.1 s, and is closed" in caplog.text


def test_garbage(run: Run) -> None:
    """Is answered with FAIL, or with an error for who speaks PSRP, and harms nobody else."""

    async def test(world: World) -> None:
        for service, answer in ((VM_SESSION_SERVICE, b"FAIL"), (VM_SESSION_SERVICE_2, NOT_ADMITTED)):
            for words in (b"GET / HTTP/1.0\r\n\r\n", os.urandom(64)):
                with await world.connected(service.id) as sock:
                    await said(sock, words)
                    assert await heard(sock, answer) == answer
        (await world.opened()).close()

    run(test)


def test_clients_that_leave(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """At every step; the guest goes on."""

    async def test(world: World) -> None:
        for service, words in (
            (VM_SESSION_SERVICE, [b"VERSION", b"VERSION_2", "localhost".encode("utf-16-le")]),
            (VM_SESSION_SERVICE_2, [b"VERSION", b"VERSION_2", b"TOKEN abc"]),
        ):
            for count in range(len(words) + 1):
                with await world.connected(service.id) as sock:
                    for word in words[:count]:
                        await said(sock, word)
        (await world.opened()).close()

    run(test)
    assert "Traceback" not in caplog.text


# -- with PSRP


NO_POWERSHELL = "there is no pwsh; PowerShell's own packages have it, of which Debian has none"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(  # test_client has more of it
            (sys.executable, "-m", "hvsock.testing.psrp_server", *server.PROGRAM[1:]),
            id="psrp_server",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            server.PROGRAM,
            id="pwsh",
            marks=pytest.mark.skipif(shutil.which("pwsh") is None, reason=NO_POWERSHELL),
        ),
    ],
)
def test_a_whole_session(run: Run, command: Sequence[str]) -> None:
    """Scripts and their objects, through broker, session service and program."""

    async def test(world: World) -> None:
        async with connect("web01", GOOD, partition=world.fabric.host.folder) as pool:
            assert (await pool.run("1..3")).output == [1, 2, 3]
            assert (await pool.run("'größe'")).output == ["größe"]

    run(test, command)


# -- in the agent


def test_the_agent_serves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both services are in its table, and share their tokens."""
    monkeypatch.setattr(agent_module, "LOOK_SECONDS", 0.02)

    async def ask(user: str, password: str) -> str:
        return ""

    monkeypatch.setattr(accounts, "ask_pam", ask)
    monkeypatch.setenv("PATH", str(tmp_path))
    names = (VM_SESSION_SERVICE.name, VM_SESSION_SERVICE_2.name)
    halves = {name: GUEST_HALVES[name] for name in names}

    async def main() -> None:
        with fabric() as made:
            guest = made.create_partition("web01")
            surroundings = Surroundings(own_machine=False, state_folder=str(tmp_path))
            agent = Agent(surroundings, guest.folder, halves=halves)
            async with running(agent, guest.folder), asyncio.timeout(PATIENCE_SECONDS):
                assert {one.name: (one.state, one.reason) for one in agent.report().services} == dict.fromkeys(
                    names, ("running", "")
                )
                with await open_session("web01", GOOD, partition=made.host.folder) as sock:
                    line = await all_heard(sock)
                assert line.startswith(b"__HyperVSocketError__:pwsh is not installed in this guest, or not in /")

    asyncio.run(main())
