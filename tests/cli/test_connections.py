"""`hvsock listen` and `hvsock connect`, as programs."""

from __future__ import annotations

import contextlib
import hashlib
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

import hvsock
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from tests.support import sample

assert sys.platform == "linux"

from tests.cli.helpers import (
    PATIENCE,
    PROGRAM,
    assert_one_line,
    ended,
    environment,
    feeding,
    invoke,
    line_of,
    listening,
    started,
)
from tests.cli.helpers import hvsock as run

NAME = "HV Socket Demo \u2713"


@pytest.fixture
def guest(hvsock_fabric: EmbeddedFabric) -> PartitionHandle:
    """A VM of a fabric with one service."""
    hvsock_fabric.register(NAME)
    return hvsock_fabric.create_partition("Web 01")


def inside(guest: PartitionHandle) -> dict[str, str]:
    """The environment of a program in `guest`."""
    return environment(HVSOCK_PARTITION=guest.folder)


def test_standard_input_and_output_both_ways(guest: PartitionHandle) -> None:
    with listening("children", NAME, "--once", stdin=subprocess.PIPE) as listener:
        assert listener.stdin is not None
        listener.stdin.write(b"from the host")
        listener.stdin.close()
        listener.stdin = None
        done = run("connect", "parent", NAME, input=b"from the guest", env=inside(guest))
        code, out, err = ended(listener)
    assert (done.stdout, done.stderr) == (b"from the host", b"")
    assert (code, out) == (0, b"from the guest")
    assert err == f"hvsock: {guest.id} {_service(err)} is connected\n".encode()


def _service(err: bytes) -> str:
    return err.decode().split()[2]


def test_host_to_guest_by_name_by_vmid_and_by_url(guest: PartitionHandle) -> None:
    with listening("any", NAME, "--echo", env=inside(guest)):
        for address in (
            ["web 01", NAME],
            [str(guest.id), NAME.upper()],
            ["hvsocket://Web%2001/HV%20Socket%20Demo%20%E2%9C%93"],
        ):
            assert run("connect", *address, input=b"x" * 300_000).stdout == b"x" * 300_000


def test_connections_one_after_another_and_standard_input_to_the_first(guest: PartitionHandle) -> None:
    with listening("any", NAME, stdin=subprocess.PIPE) as listener:
        assert listener.stdin is not None
        listener.stdin.write(b"for the first")
        listener.stdin.close()
        listener.stdin = None
        answers = [run("connect", "parent", NAME, input=b"%d" % n, env=inside(guest)).stdout for n in range(3)]
        listener.send_signal(signal.SIGINT)
        code, out, err = ended(listener)
    assert answers == [b"for the first", b"", b""]
    assert (code, out) == (130, b"012")
    assert b"Traceback" not in err


def test_a_service_by_its_port(hvsock_fabric: EmbeddedFabric) -> None:
    invoke("service", "register", "by port", "--port", "2761")
    with listening("loopback", "2761", "--echo"):
        assert run("connect", "loopback", "0xac9", input=b"port").stdout == b"port"


def test_wait_until_somebody_listens(guest: PartitionHandle) -> None:
    with (
        started("connect", "--wait", "20", "parent", NAME, env=inside(guest)) as connector,
        listening("any", NAME, "--once") as listener,
    ):
        assert ended(connector)[:2] == (0, b"")
        assert ended(listener)[:2] == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["parent", NAME], 1, "refused"),
        (["parent", "nonesuch"], 5, "nonesuch"),
        (["nowhere", NAME], 5, "nowhere"),
        (["any", NAME], 1, "assign"),
        (["--wait", "0.2", "parent", NAME], 1, "nothing listens"),
        (["--timeout", "0.5", "6b0e1a4f-6d44-4ab3-9a8e-1f2f3a4b5c6d", NAME], 1, ""),
    ],
)
def test_connect_that_fails(guest: PartitionHandle, arguments: list[str], code: int, words: str) -> None:
    done = invoke("connect", *arguments, code=code, env={"HVSOCK_PARTITION": guest.folder})
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["any", "nonesuch"], 5),
        (["nowhere", NAME], 5),
        (["broadcast", NAME], 1),
        (["any", "6b0e1a4f-6d44-4ab3-9a8e-1f2f3a4b5c6d"], 4),
    ],
)
def test_listen_that_fails(guest: PartitionHandle, arguments: list[str], code: int) -> None:
    invoke("listen", *arguments, code=code)


def test_an_address_in_use(guest: PartitionHandle) -> None:
    with listening("any", NAME):
        invoke("listen", "any", NAME, code=6)


def test_exec_runs_a_shell_command_for_each_connection(guest: PartitionHandle) -> None:
    command = 'echo "$HVSOCK_PEER_VMID $HVSOCK_PEER_SERVICE"; exec tr a-z A-Z'
    with listening("children", NAME, "--exec", command) as listener:
        for _ in range(2):
            done = run("connect", "parent", NAME, input=b"some text\n", env=inside(guest))
            head, rest = done.stdout.decode().splitlines()
            assert re.fullmatch(rf"{guest.id} [0-9a-f-]{{36}}", head)
            assert rest == "SOME TEXT"
        listener.send_signal(signal.SIGINT)
        assert ended(listener)[0] == 130


def test_exec_serves_several_at_once_and_no_more_than_it_may(guest: PartitionHandle) -> None:
    with (
        listening("children", NAME, "--max", "2", "--exec", "echo hello; exec cat"),
        contextlib.ExitStack() as stack,
    ):
        held = [_connected(stack, guest) for _ in range(3)]
        for sock in held[:2]:
            assert sock.recv(100) == b"hello\n"
        held[2].settimeout(0.3)
        with pytest.raises(TimeoutError):
            held[2].recv(100)
        held[0].close()
        held[2].settimeout(PATIENCE)
        assert held[2].recv(100) == b"hello\n"


def _connected(stack: contextlib.ExitStack, guest: PartitionHandle) -> hvsock.socket:
    return stack.enter_context(hvsock.create_connection(("parent", NAME), PATIENCE, partition=guest.folder))


def test_exec_ends_the_connection_when_the_command_ends(guest: PartitionHandle) -> None:
    with listening("children", NAME, "--once", "--exec", "echo bye; exit 3") as listener:
        with started("connect", "parent", NAME, env=inside(guest), stdin=subprocess.PIPE) as connector:
            # its standard input stays open
            assert connector.stdout is not None
            assert line_of(connector.stdout) == "bye\n"
            assert connector.wait(PATIENCE) == 0
        assert ended(listener)[0] == 0


def test_connect_can_run_a_command_too(guest: PartitionHandle) -> None:
    with hvsock.create_server(("any", NAME)) as server:
        done = run("connect", "parent", NAME, "--exec", "echo to you; exit 3", code=3, env=inside(guest))
        assert done.stdout == b""
        sock, _ = server.accept()
        with sock:
            assert sock.recv(100) == b"to you\n"
            assert sock.recv(100) == b""


def test_echo_serves_many_at_once(guest: PartitionHandle) -> None:
    number = sample(8, 60)
    with listening("any", NAME, "--echo"), contextlib.ExitStack() as stack:
        socks = [_connected(stack, guest) for _ in range(number)]
        for turn in range(3):
            for index, sock in enumerate(socks):
                sock.sendall(b"%d/%d" % (index, turn))
            for index, sock in enumerate(socks):
                assert sock.recv(100) == b"%d/%d" % (index, turn)
        for sock in socks:
            sock.shutdown(hvsock.SHUT_WR)
            assert sock.recv(1) == b""


def test_connect_can_echo_too(guest: PartitionHandle) -> None:
    with (
        hvsock.create_server(("any", NAME)) as server,
        started("connect", "parent", NAME, "--echo", env=inside(guest)) as connector,
    ):
        sock, _ = server.accept()
        with sock:
            sock.sendall(b"again")
            assert sock.recv(100) == b"again"
            sock.shutdown(hvsock.SHUT_WR)
            assert sock.recv(100) == b""
        assert ended(connector)[0] == 0


def test_the_end_of_standard_input_is_passed_on_and_the_answer_awaited(guest: PartitionHandle) -> None:
    with (
        hvsock.create_server(("any", NAME)) as server,
        started("connect", "parent", NAME, env=inside(guest)) as connector,
    ):
        sock, _ = server.accept()
        with sock:
            sock.settimeout(PATIENCE)
            assert sock.recv(1) == b""
            time.sleep(0.05)
            assert connector.poll() is None
            sock.sendall(b"late answer")
        assert ended(connector) == (0, b"late answer", b"")


def test_a_reset_is_an_error(guest: PartitionHandle) -> None:
    with (
        hvsock.create_server(("any", NAME)) as server,
        started("connect", "parent", NAME, env=inside(guest), stdin=subprocess.PIPE) as connector,
    ):
        sock, _ = server.accept()
        assert connector.stdin is not None
        connector.stdin.write(b"never read")
        connector.stdin.flush()
        select.select([sock], [], [], PATIENCE)
        sock.close()
        code, out, err = ended(connector)
    assert (code, out) == (1, b"")
    assert_one_line(err.decode())


def test_a_listener_outlives_a_reset_unless_it_serves_once(guest: PartitionHandle) -> None:
    for options, code in (([], None), (["--once"], 1)):
        with listening("any", NAME, *options, stdin=subprocess.PIPE) as listener:
            assert listener.stdin is not None
            with contextlib.ExitStack() as stack:
                sock = _connected(stack, guest)
                listener.stdin.write(b"never read")
                listener.stdin.flush()
                select.select([sock], [], [], PATIENCE)
            assert "is connected" in line_of(listener.stderr)
            if code is None:
                line = line_of(listener.stderr)
                assert line.startswith("hvsock: ")
                assert "reset" in line
                with contextlib.ExitStack() as stack:
                    _connected(stack, guest)
                assert "is connected" in line_of(listener.stderr)
            else:
                assert listener.wait(PATIENCE) == code


def test_nobody_reads_the_output_any_more(guest: PartitionHandle) -> None:
    for mode in ([], ["--once"]):
        with listening("any", NAME, *mode) as listener:
            assert listener.stdout is not None
            with contextlib.ExitStack() as stack:
                sock = _connected(stack, guest)
                sock.sendall(b"first\n")
                assert line_of(listener.stdout) == "first\n"
                listener.stdout.close()
                assert sock.recv(1) == b""
            assert listener.wait(PATIENCE) == 141
            assert listener.stderr is not None
            assert listener.stderr.read().count(b"\n") == 1  # who is connected


def test_head_takes_what_it_wants_and_all_is_quiet(guest: PartitionHandle) -> None:
    with listening("any", NAME, "--exec", "yes", stdout=subprocess.DEVNULL):
        done = subprocess.run(
            ["sh", "-c", '"$0" connect parent "$1" </dev/null | head -n 2', PROGRAM, NAME],
            capture_output=True,
            timeout=PATIENCE,
            env=inside(guest),
            check=True,
        )
    assert done.stdout == b"y\ny\n"
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["listen", "connect"])
def test_interrupted(guest: PartitionHandle, what: str) -> None:
    if what == "listen":
        with listening("any", NAME, stdin=subprocess.PIPE) as process:
            process.send_signal(signal.SIGINT)
            code, _, err = ended(process)
    else:
        with (
            hvsock.create_server(("any", NAME)),
            started("connect", "-v", "parent", NAME, env=inside(guest), stdin=subprocess.PIPE) as process,
        ):
            assert "connected" in line_of(process.stderr)
            process.send_signal(signal.SIGINT)
            code, _, err = ended(process)
    assert (code, err) == (130, b"")


def test_a_long_transfer_arrives_whole(guest: PartitionHandle) -> None:
    size = sample(16 << 20, 1 << 30)
    never = threading.Event()
    never.set()
    with (
        listening("any", NAME, "--once") as listener,
        started("connect", "parent", NAME, env=inside(guest), stdin=subprocess.PIPE) as connector,
        feeding(connector, size, size, never) as sent,
    ):
        assert listener.stdout is not None
        received = hashlib.sha256()
        while data := listener.stdout.read(1 << 20):
            received.update(data)
        assert listener.wait(PATIENCE) == 0
        assert ended(connector)[0] == 0
    assert sent == [received.hexdigest()]


def drain(server: hvsock.socket) -> None:
    """Take one connection, and what comes by it."""
    sock, _ = server.accept()
    with sock:
        while sock.recv(1 << 16):
            pass


def test_progress_is_shown_on_standard_error(guest: PartitionHandle) -> None:
    with hvsock.create_server(("any", NAME)) as server:
        accepting = threading.Thread(target=lambda: drain(server))
        accepting.start()
        done = run("connect", "--progress", "parent", NAME, input=b"x" * 2048, env=inside(guest))
        accepting.join()
    assert b"sent 2.0 KiB, received 0 B" in done.stderr
