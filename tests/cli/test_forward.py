"""`hvsock forward`, `hvsock service forward`, and the relay that `hvsock up` keeps; killed at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

import hvsock
from hvsock.fabric import paths
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.relay.process import LOCK_FILE, runs

assert sys.platform == "linux"

from tests.cli.helpers import PATIENCE, PROGRAM, broker, ended, environment, invoke, invoke_json, line_of, started
from tests.cli.helpers import hvsock as run
from tests.relay.servers import tcp_server, unix_server
from tests.waiting import is_alive, wait_until

TARGET = "unix:/run/web.sock"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for a fabric whose broker is a process."""
    path = tmp_path / "fabric"
    monkeypatch.setenv("HVSOCK_DIR", str(path))
    monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
    return str(path)


def greeting_of(name: str, partition: str | None = None, vm: str = "loopback") -> bytes:
    """What a service says first, once it is there and says something."""
    found = []

    def ask() -> bool:
        with hvsock.create_connection((vm, name), PATIENCE, retry=True, partition=partition) as sock:
            found.append(sock.recv(99))
        return bool(found[-1])

    wait_until(ask)
    return found[-1]


def relay_of(folder: str) -> int:
    """The process of the fabric's relay, once there is one."""
    pid = []

    def look() -> bool:
        text = Path(folder, LOCK_FILE).read_text() if runs(folder) else ""
        pid.append(int(text) if text.strip() else 0)
        return pid[-1] != 0

    wait_until(look)
    return pid[-1]


# -- the registry


def test_register_show_change_and_take_back(folder: str) -> None:
    invoke("service", "register", "web", "--forward", TARGET)
    shown = invoke("service", "show", "web").stdout
    assert re.search(rf"^forward +{TARGET}$", shown, re.MULTILINE)
    lines = invoke("service", "list").stdout.splitlines()
    assert lines[0].split()[-1] == "FORWARD"
    assert lines[-1].split()[-2:] == ["enabled", TARGET]
    assert invoke_json("service", "list")[-1]["forward"] == TARGET
    assert invoke_json("service", "forward", "web", "tcp:127.0.0.1:80")["forward"] == "tcp:127.0.0.1:80"
    assert invoke("service", "forward", "web", "tcp:[::1]:80").output == ""
    assert invoke_json("service", "show", "web")["forward"] == "tcp:[::1]:80"
    assert invoke_json("service", "forward", "web", "--none")["forward"] is None
    assert "FORWARD" not in invoke("service", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["service", "register", "x", "--forward", "tcp:10.0.0.1:80"], 2),
        (["service", "register", "x", "--forward", "unix:x"], 2),
        (["service", "forward", "web"], 2),
        (["service", "forward", "web", TARGET, "--none"], 2),
        (["service", "forward", "web", "tcp:0.0.0.0:80"], 2),
        (["service", "forward", "nonesuch", TARGET], 5),
        (["service", "forward", "Heartbeat", TARGET], 2),
        (["forward", "web"], 2),
        (["forward", f"={TARGET}"], 2),
        (["forward", f"web={TARGET}", f"web={TARGET}"], 2),
        (["forward", "web=tcp:10.0.0.1:80"], 2),
        (["forward", f"nonesuch={TARGET}"], 3),
    ],
)
def test_what_goes_wrong_changes_nothing(folder: str, arguments: list[str], code: int) -> None:
    invoke("service", "register", "web", "--forward", TARGET)
    before = invoke_json("service", "list")
    invoke(*arguments, code=code)
    assert invoke_json("service", "list") == before


def test_there_has_to_be_a_fabric(folder: str) -> None:
    invoke("forward", code=3)


# -- the relay of `hvsock up`


def test_up_keeps_a_relay_from_the_first_forward_on(folder: str) -> None:
    with tcp_server(b"one") as one, tcp_server(b"two") as two, broker(folder) as process:
        assert not runs(folder)
        invoke("service", "register", "web", "--forward", one)
        assert greeting_of("web") == b"one"
        first = relay_of(folder)
        invoke("service", "forward", "web", two)
        wait_until(lambda: greeting_of("web") == b"two")
        os.kill(first, signal.SIGKILL)
        assert greeting_of("web") == b"two"
        second = relay_of(folder)
        assert second != first
        process.send_signal(signal.SIGTERM)
        code, _, errors = ended(process)
        assert code == 0
        assert b"the relay ended by signal 9" in errors
        assert not is_alive(second)


@pytest.mark.soak
def test_the_relay_ends_with_a_broker_that_is_killed_and_comes_with_the_next(folder: str) -> None:
    with tcp_server(b"hi") as target:
        invoke("service", "register", "web", "--forward", target)
        with broker(folder) as process:
            assert greeting_of("web") == b"hi"
            relay = relay_of(folder)
            process.kill()
            process.wait()
            wait_until(lambda: not is_alive(relay))
        with broker(folder):
            assert greeting_of("web") == b"hi"
            assert relay_of(folder) != relay


@pytest.mark.soak
def test_a_relay_of_its_own_outlives_the_broker_and_no_second_one_is_started(folder: str) -> None:
    with tcp_server(b"hi") as target:
        invoke("service", "register", "web", "--forward", target)
        with started("forward", env=environment(HVSOCK_DIR=folder)) as relay:
            assert relay_of(folder) == relay.pid
            with broker(folder) as process:
                sock = hvsock.create_connection(("loopback", "web"), PATIENCE, retry=True)
                assert sock.recv(9) == b"hi"
                process.kill()
                process.wait()
            sock.sendall(b"still here")
            assert sock.recv(99) == b"still here"
            sock.close()
            with broker(folder):
                assert greeting_of("web") == b"hi"
                assert relay_of(folder) == relay.pid
                done = run("forward", code=1, env=environment(HVSOCK_DIR=folder))
                assert f"runs already (process {relay.pid})".encode() in done.stderr
                relay.send_signal(signal.SIGTERM)
                assert ended(relay)[0] == 0
                wait_until(lambda: runs(folder))  # that of `hvsock up` takes its place
                assert greeting_of("web") == b"hi"


# -- forwards on the command line


def test_a_guest_makes_a_service_of_its_server(hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> None:
    hvsock_fabric.create_partition("web01")
    service = hvsock_fabric.register("a=b")
    other = hvsock_fabric.register("other")
    with unix_server(tmp_path / "s", b"hi") as unix, tcp_server(b"ho") as tcp:
        forwards = (f"a=b={unix}", f"{other.id}={tcp}")
        with started("run", "--partition", "web01", "--", PROGRAM, "forward", *forwards) as process:
            assert line_of(process.stderr).startswith(f"hvsock: forwarding a=b, {other.id} (process ")
            assert greeting_of(service.id, vm="web01") == b"hi"
            assert greeting_of("other", vm="web01") == b"ho"
            process.send_signal(signal.SIGINT)
            assert ended(process)[0] == 0


def test_the_host_makes_a_service_of_its_server(hvsock_fabric: EmbeddedFabric) -> None:
    web = hvsock_fabric.create_partition("web01")
    hvsock_fabric.register("web")
    with tcp_server(b"hi") as target, started("forward", f"web={target}") as process:
        line_of(process.stderr)
        assert greeting_of("web", web.folder, "parent") == b"hi"
        assert greeting_of("web") == b"hi"
        run("forward", f"web={target}", code=6)


def test_the_registrys_forwards_are_the_hosts(hvsock_fabric: EmbeddedFabric) -> None:
    web = hvsock_fabric.create_partition("web01")
    invoke("forward", code=2, env={paths.PARTITION_VARIABLE: web.folder})
    invoke("forward", code=2, env={"HVSOCK_TRANSPORT": "vsock"})


def test_an_import_is_followed(hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> None:
    with tcp_server(b"hi") as target, started("forward") as process:
        line_of(process.stderr)
        service = {"id": "6b0e1a4f-6d44-4ab3-9a8e-1f2f3a4b5c6d", "name": "web", "forward": target}
        document = {"format": "hvsock-registry", "version": 1, "services": [service]}
        (tmp_path / "all.json").write_text(json.dumps(document))
        invoke("service", "import", str(tmp_path / "all.json"))
        assert greeting_of("web") == b"hi"
