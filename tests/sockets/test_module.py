"""`import hvsock as socket` is all that a program changes: what the module gives, and when it loads what."""

from __future__ import annotations

import socket
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

assert sys.platform == "linux"

import hvsock
from tests.sockets.support import World, run_python

PROGRAMS = Path(__file__).with_name("programs")


@pytest.mark.parametrize("name", hvsock.__all__)
def test_everything_in_all_exists(name: str) -> None:
    assert getattr(hvsock, name) is not None
    assert name in dir(hvsock)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "timeout",
            "error",
            "gaierror",
            "SHUT_RD",
            "SHUT_WR",
            "SHUT_RDWR",
            "SOL_SOCKET",
            "SO_ERROR",
            "SO_SNDBUF",
        ),
        *("AF_INET", "AF_UNIX", "SOCK_STREAM", "SOMAXCONN", "MSG_PEEK", "gethostname", "getdefaulttimeout"),
        *("setdefaulttimeout", "fromfd", "has_ipv6", "inet_aton", "SocketType", "getaddrinfo", "send_fds"),
    ],
)
def test_the_standard_modules_names(name: str) -> None:
    assert getattr(hvsock, name) is getattr(socket, name)


def test_errors_are_the_standard_ones() -> None:
    assert hvsock.error is OSError
    assert hvsock.timeout is TimeoutError


@pytest.mark.parametrize("name", ["nonsense", "_private", "__version", "AF_HYPER"])
def test_other_names(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'hvsock' has no attribute '{name}'"):
        getattr(hvsock, name)


def test_from_import_star() -> None:
    found: dict[str, object] = {}
    exec("from hvsock import *", found)
    assert set(hvsock.__all__) <= set(found)


def test_what_import_loads() -> None:
    """The standard library alone, and of it neither socket nor asyncio, which cost the most."""
    code = """
import sys
before = set(sys.modules)
import hvsock
loaded = set(sys.modules) - before
print(*sorted(loaded & {"socket", "asyncio", "select", "json", "logging", "dataclasses", "threading", "ssl"}))
print(*sorted(name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names))
hvsock.socket
print("asyncio" in sys.modules, "multiprocessing" in sys.modules, "ssl" in sys.modules)
"""
    first, second, third = run_python(code).splitlines()
    assert first == ""
    assert second == "hvsock hvsock._version hvsock.addresses hvsock.constants hvsock.errors"
    assert third == "False False False"


class TestPrograms:
    """A server and a client as somebody writes them for Windows run with the import changed, and nothing else."""

    def test_the_texts_differ_in_the_import_alone(self) -> None:
        for name in ("echo_server.py", "echo_client.py"):
            with tokenize.open(PROGRAMS / name) as file:
                lines = file.read().splitlines()
            changed = [line for line in lines if "hvsock" in line]
            assert changed == ["import hvsock as socket"]

    def test_they_talk(self, world: World, tmp_path: Path) -> None:
        service_id = world.service()
        environ = {"HVSOCK_DIR": world.fabric.folder, "PATH": "", "PYTHONPATH": ""}
        with subprocess.Popen(
            [sys.executable, "-W", "error", str(PROGRAMS / "echo_server.py"), service_id],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == f"listening on ('{hvsock.HV_GUID_CHILDREN}', '{service_id}')\n"
                for text in ("hello", "x" * 100_000):
                    client = subprocess.run(
                        [sys.executable, "-W", "error", str(PROGRAMS / "echo_client.py"), service_id, text],
                        env={**environ, "HVSOCK_PARTITION": world.vm.folder},
                        capture_output=True,
                        text=True,
                        timeout=40,
                        check=False,
                    )
                    assert client.stderr == ""
                    assert client.stdout == f"{text}\n"
                    assert server.stdout.readline() == f"{world.vm.id} connected\n"
                    assert server.stdout.readline() == f"{world.vm.id} sent {len(text)} bytes\n"
            finally:
                server.terminate()

    def test_the_client_reports_as_on_windows(self, world: World) -> None:
        client = subprocess.run(
            [sys.executable, str(PROGRAMS / "echo_client.py"), world.service(), "hello"],
            env={"HVSOCK_DIR": world.fabric.folder, "HVSOCK_PARTITION": world.vm.folder},
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert client.stdout == "nobody listens\n"
        assert client.returncode == 1
