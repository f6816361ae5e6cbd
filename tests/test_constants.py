"""Every number and every name is that of the original, pinned one by one."""

from __future__ import annotations

import socket
from enum import IntEnum

import pytest

from hvsock import constants, errors

NUMBERS = {
    "AF_HYPERV": 34,
    "HV_PROTOCOL_RAW": 1,
    "HVSOCKET_CONNECT_TIMEOUT": 1,
    "HVSOCKET_CONTAINER_PASSTHRU": 2,
    "HVSOCKET_CONNECTED_SUSPEND": 4,
    "HVSOCKET_HIGH_VTL": 8,
    "HVSOCKET_CONNECT_TIMEOUT_MAX": 300_000,
    "HVSOCKET_CONNECT_TIMEOUT_DEFAULT": 2_000,
    "ANSWER_GRACE_SECONDS": 2.0,
    "HVSOCKET_ADDRESS_FLAG_PASSTHRU": 1,
    "SOCKADDR_HV_BYTES": 36,
    "VSOCK_PORT_MAX": 0xFFFFFFFF,
    "VSOCK_CID_MAX": 0xFFFFFFFF,
    "VSOCK_CID_LOCAL": 1,
    "VSOCK_CID_HOST": 2,
    "VSOCK_CID_ANY": 0xFFFFFFFF,
    "VSOCK_RESERVED_CIDS": (0, 1, 2, 0xFFFFFFFF),
    "VSOCK_BROKER_PORT": int.from_bytes(b"HVSB", "big"),
    "GUEST_ECHO_PORT": 2762,
}

INTEGRATION_SERVICES = {
    "HEARTBEAT": (5180, "Heartbeat", True),
    "SHUTDOWN": (5181, "Shutdown", True),
    "TIME_SYNCHRONIZATION": (5182, "Time Synchronization", True),
    "KEY_VALUE_PAIR_EXCHANGE": (5183, "Key-Value Pair Exchange", True),
    "VSS": (5184, "VSS", True),
    "GUEST_SERVICE_INTERFACE": (5185, "Guest Service Interface", False),
    "DIRECT": (5186, "Direct", True),
    "GUEST_AGENT": (5187, "Guest Agent", True),
}


SESSION_SERVICES = {
    "VM_SESSION_SERVICE": ("999e53d4-3d5c-4c3e-8779-bed06ec056e1", "VM Session Service"),
    "VM_SESSION_SERVICE_2": ("a5201c21-2770-4c11-a68e-f182edb29220", "VM Session Service-2"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    assert getattr(constants, name) == NUMBERS[name]


def test_no_number_goes_untested() -> None:
    names = {name for name in vars(constants) if name.isupper()}
    lists = {"INTEGRATION_SERVICES", "SESSION_SERVICES"}
    texts = {"OPERATION_PATTERN"}  # tests of policies and of the registry are about it
    assert names == {*NUMBERS, *INTEGRATION_SERVICES, *SESSION_SERVICES, *lists, *texts}


def test_session_services_are_those_of_the_original() -> None:
    assert {name: tuple(getattr(constants, name)) for name in SESSION_SERVICES} == SESSION_SERVICES
    assert [tuple(one) for one in constants.SESSION_SERVICES] == list(SESSION_SERVICES.values())


def test_integration_services_have_the_names_of_the_originals_and_ports_of_their_own() -> None:
    assert {name: tuple(getattr(constants, name)) for name in INTEGRATION_SERVICES} == INTEGRATION_SERVICES
    assert [tuple(one) for one in constants.INTEGRATION_SERVICES] == list(INTEGRATION_SERVICES.values())


def test_options_can_be_told_from_linux_ones_of_the_same_number() -> None:
    """SOL_SOCKET is 1 like HV_PROTOCOL_RAW, and SO_ERROR is 4 like HVSOCKET_CONNECTED_SUSPEND."""
    assert isinstance(constants.HV_PROTOCOL_RAW, constants.ProtocolLevel)
    options = {value for name, value in vars(constants).items() if isinstance(value, constants.HvsocketOption)}
    assert options == set(constants.HvsocketOption)
    assert issubclass(constants.HvsocketOption, IntEnum)
    assert not isinstance(socket.SO_ERROR, constants.HvsocketOption)


@pytest.mark.skipif(not hasattr(socket, "AF_HYPERV"), reason="CPython has AF_HYPERV on Windows only")
def test_numbers_of_cpython() -> None:
    there = {name: getattr(socket, name) for name in NUMBERS if hasattr(socket, name)}
    assert there == {name: NUMBERS[name] for name in there}


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (errors.UsageError, (errors.HvsockError, ValueError)),
        (errors.NotFoundError, (errors.UsageError, LookupError)),
        (errors.DuplicateError, (errors.UsageError,)),
        (errors.RefusedError, (errors.HvsockError, PermissionError)),
        (errors.NoFabricError, (errors.HvsockError, ConnectionError)),
        (errors.StateError, (errors.HvsockError,)),
        (errors.ProtocolError, (errors.HvsockError,)),
    ],
)
def test_errors_are_what_callers_catch(
    error: type[errors.HvsockError], bases: tuple[type[BaseException], ...]
) -> None:
    assert all(issubclass(error, base) for base in bases)
    assert str(error("one line")) == "one line"


def test_the_tree_of_errors_in_the_docstring_is_all_there_is() -> None:
    there = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert errors.__doc__ is not None
    told = {word for line in errors.__doc__.splitlines() for word in line.split() if word.endswith("Error")}
    assert told - {"OSError"} - {"PermissionError", "ConnectionRefusedError", "TimeoutError"} == there
