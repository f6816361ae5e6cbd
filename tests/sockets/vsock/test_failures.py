"""What the kernel's errors become: the fabric's own, with texts that say what to do."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from hvsock.addresses import HV_GUID_LOOPBACK, Address, ServiceId

assert sys.platform == "linux"
from hvsock.fabric import vsocklink
from hvsock.sockets.vsock import failures

ADDRESS = Address(HV_GUID_LOOPBACK, ServiceId.from_port(80))


@pytest.mark.parametrize(
    ("code", "cid", "wanted", "text"),
    [
        (errno.ECONNRESET, 2, errno.ECONNREFUSED, "nothing listens there"),
        (errno.ECONNREFUSED, 2, errno.ECONNREFUSED, "nothing listens there"),
        (errno.ENODEV, 2, errno.ENETUNREACH, "no AF_VSOCK device"),
        (errno.ENODEV, 77, errno.ENETUNREACH, "no AF_VSOCK device"),
        (errno.ENODEV, 1, errno.ENETUNREACH, "module vsock_loopback"),
        (errno.ESOCKTNOSUPPORT, 2, errno.ESOCKTNOSUPPORT, "no AF_VSOCK device.*without that feature"),
        (errno.ESOCKTNOSUPPORT, 1, errno.ESOCKTNOSUPPORT, "module vsock_loopback"),
        (errno.ETIMEDOUT, 2, errno.ETIMEDOUT, "HVSOCKET_CONNECT_TIMEOUT"),
        (errno.EPERM, 2, errno.EPERM, os.strerror(errno.EPERM)),
    ],
)
def test_of_a_connect(code: int, cid: int, wanted: int, text: str) -> None:
    with pytest.raises(OSError, match=text) as caught:
        raise failures.of_connect(code, cid)
    assert caught.value.errno == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", errno.ENETUNREACH),
        ('[profiles.default]\nguests = "table"', errno.EHOSTUNREACH),
        ("this is no TOML", errno.ENETUNREACH),
    ],
)
def test_on_a_host_no_device_is_no_vm(
    text: str, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text, encoding="utf-8")
    monkeypatch.setenv("HVSOCK_CONFIG", str(config))
    assert failures.of_connect(errno.ENODEV, 77).errno == wanted
    assert failures.of_connect(errno.ENODEV, 2).errno == errno.ENETUNREACH


def test_errors_have_the_classes_that_programs_catch() -> None:
    assert isinstance(failures.of_connect(errno.ECONNRESET, 2), ConnectionRefusedError)
    assert isinstance(failures.of_connect(errno.ETIMEDOUT, 2), TimeoutError)
    assert isinstance(failures.of_bind(OSError(errno.EACCES, ""), ADDRESS), PermissionError)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.EADDRINUSE, "port of 00000050-.* is bound already"),
        (errno.EACCES, "below 1024"),
        (errno.EADDRNOTAVAIL, "module vsock_loopback"),
        (errno.EPERM, "as it was"),
    ],
)
def test_of_a_bind(code: int, text: str) -> None:
    error = failures.of_bind(OSError(code, "as it was"), ADDRESS)
    with pytest.raises(OSError, match=text):
        raise error
    assert error.errno == code


@pytest.mark.parametrize(("code", "text"), [(errno.EAFNOSUPPORT, "module vsock"), (errno.EMFILE, "as it was")])
def test_of_a_new_socket(code: int, text: str) -> None:
    error = failures.of_creation(OSError(code, "as it was"))
    with pytest.raises(OSError, match=text):
        raise error
    assert error.errno == code


@pytest.mark.parametrize(
    ("code", "wanted", "text"),
    [
        (errno.ECONNRESET, errno.ENETUNREACH, "answers no calls"),
        (errno.EPIPE, errno.ENETUNREACH, "answers no calls"),
        (errno.ENODEV, errno.ENETUNREACH, "no AF_VSOCK device"),
        (errno.EAFNOSUPPORT, errno.ENETUNREACH, "module vsock"),
        (errno.EMFILE, errno.EMFILE, "as it was"),
    ],
)
def test_of_a_call(code: int, wanted: int, text: str) -> None:
    error = vsocklink.connect_error(OSError(code, "as it was"))
    with pytest.raises(OSError, match=text):
        raise error
    assert error.errno == wanted
