"""Which transport a process has: what HVSOCK_TRANSPORT says, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hvsock.errors import UsageError
from hvsock.transport import TRANSPORT_VARIABLE, Transport, chosen


@pytest.mark.parametrize(
    ("environ", "transport"),
    [
        ({}, Transport.FABRIC),
        ({TRANSPORT_VARIABLE: ""}, Transport.FABRIC),
        ({TRANSPORT_VARIABLE: "fabric"}, Transport.FABRIC),
        ({TRANSPORT_VARIABLE: "vsock"}, Transport.VSOCK),
        ({TRANSPORT_VARIABLE: "hybrid"}, Transport.HYBRID),
    ],
)
def test_names(environ: dict[str, str], transport: Transport) -> None:
    assert chosen(environ, "linux") is transport


@pytest.mark.parametrize("environ", [{}, {TRANSPORT_VARIABLE: "hyperv"}])
def test_windows_has_its_own(environ: dict[str, str]) -> None:
    assert chosen(environ, "win32") is Transport.HYPERV
    with pytest.raises(UsageError, match="HVSOCK_TRANSPORT is 'fabric'; it may be: hyperv"):
        chosen({TRANSPORT_VARIABLE: "fabric"}, "win32")


@pytest.mark.parametrize("name", ["VSOCK", "hyperv", " "])
def test_names_of_none(name: str) -> None:
    with pytest.raises(UsageError, match=f"HVSOCK_TRANSPORT is '{name}'; it may be: fabric, vsock, hybrid"):
        chosen({TRANSPORT_VARIABLE: name}, "linux")


def test_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRANSPORT_VARIABLE, "vsock")
    assert chosen() is Transport.VSOCK
    monkeypatch.delenv(TRANSPORT_VARIABLE)
    assert chosen() is Transport.FABRIC


def say(code: str, transport: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process with that transport."""
    environ = {**os.environ, TRANSPORT_VARIABLE: transport}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="sockets need Linux; run this test there")
@pytest.mark.parametrize(
    ("transport", "module"),
    [
        ("fabric", "hvsock.sockets.socket"),
        ("vsock", "hvsock.sockets.vsock.socket"),
        ("hybrid", "hvsock.sockets.hybrid.socket"),
    ],
)
def test_the_class_of_sockets(transport: str, module: str) -> None:
    done = say(f"import hvsock, {module} as m; print(hvsock.socket is m.socket, hvsock.socket)", transport)
    assert done.stdout == "True <class 'hvsock.socket'>\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="sockets need Linux; run this test there")
@pytest.mark.parametrize("arguments", [("connect", "parent", "1"), ("listen", "any", "1"), ("service", "list")])
def test_commands_say_what_is_wrong_with_it(arguments: tuple[str, ...]) -> None:
    done = say(f"import sys; sys.argv[1:] = {arguments!r}\nfrom hvsock.cli.main import main\nmain()", "tcp")
    assert done.stderr == "hvsock: HVSOCK_TRANSPORT is 'tcp'; it may be: fabric, vsock, hybrid\n"
    assert done.returncode == 2
