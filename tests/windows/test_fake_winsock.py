"""The fake says what CPython's own tests say (test_socket.BasicHyperVTest), and what asyncio stumbles over."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from hvsock.addresses import HV_GUID_LOOPBACK

assert sys.platform == "linux"

from tests.windows.winsock import HV_PROTOCOL_RAW, Windows

GUID = "b5f9a3d6-0f5c-4a51-a86a-5a5a60e2e8cd"


def make(host: Windows) -> Any:
    """A socket as CPython makes it."""
    return host.stdlib.socket(host.stdlib.AF_HYPERV, host.stdlib.SOCK_STREAM, host.stdlib.HV_PROTOCOL_RAW)


def test_constants(host: Windows) -> None:
    assert host.stdlib.AF_HYPERV == 34
    assert repr(host.stdlib.AF_HYPERV) == "<AddressFamily.AF_HYPERV: 34>"
    assert host.stdlib.HV_GUID_PARENT == "A42E7CDA-D03F-480C-9CC2-A4DE20ABB878"
    assert not hasattr(host.stdlib, "HVSOCKET_CONTAINER_PASSTHRU")
    assert not hasattr(host.stdlib, "AF_UNIX")


def test_unknown_protocol(host: Windows) -> None:
    with pytest.raises(OSError, match="10041") as caught:
        host.stdlib.socket(host.stdlib.AF_HYPERV)
    assert (caught.value.winerror, caught.value.errno) == (10041, 10041)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("address", "kind", "text"),
    [
        (HV_GUID_LOOPBACK, TypeError, r"connect\(\): AF_HYPERV address must be tuple, not VmId"),
        ((GUID,), TypeError, r"AF_HYPERV address must be a str tuple \(vm_id, service_id\)"),
        ((1, 2), TypeError, r"AF_HYPERV address must be a str tuple \(vm_id, service_id\)"),
        (("00", GUID), ValueError, r"connect\(\): AF_HYPERV address vm_id is not a valid UUID string"),
        ((GUID, "00"), ValueError, r"connect\(\): AF_HYPERV address service_id is not a valid UUID string"),
        ((f"{{{GUID}}}", GUID), ValueError, "vm_id is not a valid UUID string"),
        ((GUID, GUID + "\0"), ValueError, "service_id is not a valid UUID string"),
    ],
)
def test_addresses(host: Windows, address: object, kind: type[Exception], text: str) -> None:
    """Our own class says the same, so that a program sees no difference."""
    for sock in (make(host), host.socket.socket()):
        with sock, pytest.raises(kind, match=text):
            sock.connect(address)


def test_a_handle_has_no_protocol(host: Windows) -> None:
    with make(host) as sock:
        sock.bind((HV_GUID_LOOPBACK.upper(), GUID.upper()))
        assert sock.getsockname() == (HV_GUID_LOOPBACK, GUID)  # lower case
        again = host.stdlib.socket(fileno=os.dup(sock.fileno()))
        with again, pytest.raises(OSError, match=r"bind\(\): unsupported AF_HYPERV protocol: 0") as caught:
            again.bind((HV_GUID_LOOPBACK, GUID))
        assert caught.value.errno is None
        assert again.proto == 0
        assert sock.proto == HV_PROTOCOL_RAW
