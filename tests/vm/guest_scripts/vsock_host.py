"""What a guest with a device gets from its host's fabric; prints one line of JSON.

Runs in a guest as root, with HVSOCK_TRANSPORT=vsock. The host has the services that :class:`Services` names,
and connects to what :func:`check_the_host_connects` listens for.

Usage: vsock_host.py [CHECK...]
"""

from __future__ import annotations

import errno
import json
import os
import socket as stdlib
import subprocess
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

import hvsock
from hvsock.addresses import SERVICE_WILDCARD

assert sys.platform == "linux"

ALIAS = 5_000
"""The port alias of Services.ECHO."""
GUEST_PORT = 60_010
"""Where the guest listens for its host."""
WAIT_SECONDS = 30.0
NOTHING = hvsock.ServiceId.from_port(60_011)
"""Not registered."""

Failure = TypeVar("Failure", bound=Exception)


class Services(StrEnum):
    """Names of the host's services."""

    ECHO = "HV Socket Demo"
    """Echoes streams; has a port alias."""
    MESSAGES = "messages"
    """Echoes messages of SOCK_SEQPACKET; has a port."""
    NO_PORT = "no port"
    """Has neither port nor alias."""
    SILENT = "silent"
    """Has a port, and nothing listens."""


def raised(kind: type[Failure], call: Callable[..., object], *args: Any) -> Failure:
    """Require that a call raises an error of `kind`; returns it."""
    try:
        call(*args)
    except kind as error:
        return error
    raise AssertionError(f"it went well, where {kind.__name__} had to come")


def command(*arguments: str, text: str = "") -> tuple[int, str]:
    """The exit code and the output of a command of hvsock."""
    done = subprocess.run(
        ["hvsock", *arguments],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def connected(service: str, type: int = stdlib.SOCK_STREAM) -> hvsock.socket:
    """A connection to a service of the host."""
    return hvsock.create_connection(("parent", service), WAIT_SECONDS, retry=True, type=type)


def check_names_are_looked_up_at_the_host() -> None:
    found = hvsock.resolve(("parent", Services.ECHO))
    assert found.vm_id == hvsock.HV_GUID_PARENT
    assert found.service_id.port is None
    raised(hvsock.NotFoundError, hvsock.resolve, ("parent", "nobody registered this"))


def check_a_service_with_an_alias() -> None:
    service = hvsock.resolve(("parent", Services.ECHO)).service_id
    with connected(Services.ECHO) as sock:
        assert sock.getpeername() == (hvsock.HV_GUID_PARENT, service)
        assert sock.getsockname()[0] == hvsock.HV_GUID_PARENT
        data = os.urandom(300_000)
        sock.sendall(data[:100_000])
        with sock.makefile("rb") as file:
            assert file.read(100_000) == data[:100_000]
            sock.sendall(data[100_000:])
            sock.shutdown(stdlib.SHUT_WR)
            assert file.read() == data[100_000:]


def check_the_alias_itself() -> None:
    with stdlib.socket(stdlib.AF_VSOCK, stdlib.SOCK_STREAM) as plain:
        plain.settimeout(WAIT_SECONDS)
        plain.connect((2, ALIAS))
        plain.sendall(b"any program")
        assert plain.recv(99) == b"any program"


def check_messages() -> None:
    with connected(Services.MESSAGES, stdlib.SOCK_SEQPACKET) as sock:
        for length in (1, 70_000, 128 * 1024):
            message = os.urandom(length)
            sock.send(message)
            assert sock.recv(256 * 1024) == message


def check_refusals() -> None:
    with hvsock.socket() as sock:
        silent = hvsock.resolve(("parent", Services.SILENT))
        for target in (silent, (hvsock.HV_GUID_PARENT, NOTHING)):
            assert raised(ConnectionRefusedError, sock.connect, target).errno == errno.ECONNREFUSED
        no_port = hvsock.resolve(("parent", Services.NO_PORT))
        error = raised(OSError, sock.connect, no_port)
        assert error.errno == errno.EADDRNOTAVAIL
        assert "--port-alias" in str(error)
        with connected(Services.ECHO) as other:
            other.close()
        sock.settimeout(WAIT_SECONDS)
        sock.connect(hvsock.resolve(("parent", Services.ECHO)))


def check_waiting_for_a_service() -> None:
    hvsock.wait_for_service(("parent", Services.ECHO), WAIT_SECONDS)
    raised(TimeoutError, hvsock.wait_for_service, ("parent", Services.SILENT), 0.1)
    raised(TimeoutError, hvsock.wait_for_service, ("parent", "nobody registered this"), 0.1)


def check_the_host_connects() -> None:
    with hvsock.create_server(("parent", str(GUEST_PORT))) as server:
        server.settimeout(WAIT_SECONDS)
        sock, peer = server.accept()
    with sock:
        service = hvsock.ServiceId.from_port(GUEST_PORT)
        assert peer == sock.getpeername()
        assert peer.vm_id == hvsock.HV_GUID_PARENT
        assert sock.getsockname() == (hvsock.HV_GUID_PARENT, service)
        sock.settimeout(WAIT_SECONDS)
        sock.sendall(b"who? " + sock.recv(99))


def check_commands() -> None:
    code, text = command("service", "list", "--json")
    assert code == 0, text
    found = {one["name"]: one["port"] for one in json.loads(text)}
    assert found[Services.ECHO] == ALIAS
    assert found[Services.NO_PORT] is None
    code, text = command("connect", "parent", Services.ECHO, text="hello\n")
    assert (code, text) == (0, "hello\n"), (code, text)


def check_commands_that_tell_why() -> None:
    code, text = command("service", "list")
    assert code == 0, text
    assert Services.ECHO in text
    code, text = command("service", "register", "mine")
    assert code == 4, text
    assert "this is a guest" in text
    code, text = command("doctor")
    assert code == 0, text
    assert "Does the host's broker answer? yes" in text
    code, text = command("doctor", "-", "parent", Services.ECHO)
    assert code == 0, text
    assert "It works." in text
    code, text = command("doctor", "-", "parent", Services.SILENT)
    assert code == 1, text
    assert "ECONNREFUSED" in text


def check_a_listener_of_ones_own_choice_is_nobody_elses() -> None:
    with hvsock.socket() as sock:
        sock.bind((hvsock.HV_GUID_WILDCARD, SERVICE_WILDCARD))
        with hvsock.socket() as other:
            assert raised(OSError, other.bind, sock.getsockname()).errno == errno.EADDRINUSE


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}
SLOW = "check_commands_that_tell_why"
"""It starts many, each of which takes an emulated guest some seconds."""


def main() -> None:
    """Run the checks that are named, or all; every one whatever became of the others."""
    results = {}
    for name, check in [(one, CHECKS[one]) for one in sys.argv[1:] or CHECKS]:
        try:
            check()
            results[name] = "passed"
        except Exception as error:
            traceback.print_exc()
            results[name] = "".join(traceback.format_exception_only(error))
    print(json.dumps({"checks": results}), flush=True)


if __name__ == "__main__":
    main()
