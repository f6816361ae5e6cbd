"""In-box services in a fabric: on for one VM alone, both ways, and each partition is told of its own."""

from __future__ import annotations

import errno
import logging
import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock.addresses import ServiceId
from hvsock.constants import GUEST_SERVICE_INTERFACE, INTEGRATION_SERVICES
from hvsock.fabric import client
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.registry import ServiceEntry
from tests.registry.test_earlier_versions import ONE, make_early

COPY = ServiceId.from_port(GUEST_SERVICE_INTERFACE.port)
"""The one that is off by default."""
NAMES = {one.name for one in INTEGRATION_SERVICES}


def outcome(partition: PartitionHandle, vm: str) -> int:
    """The errno of a connect to the service, 0 when it succeeds."""
    try:
        hvsock.create_connection((vm, COPY), 5, partition=partition.folder).close()
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_service_is_on_for_one_vm_alone_from_host_to_guest(fabric: EmbeddedFabric) -> None:
    one, two = fabric.create_partition("one"), fabric.create_partition("two")
    with (
        hvsock.create_server(("parent", COPY), partition=one.folder),
        hvsock.create_server(("parent", COPY), partition=two.folder),
    ):

        def reached() -> list[int]:
            return [outcome(fabric.host, vm.id) for vm in (one, two)]

        assert reached() == [errno.EINVAL, errno.EINVAL]
        fabric.registry.set_enabled(COPY, True, one.id)
        assert reached() == [0, errno.EINVAL]
        fabric.registry.set_enabled(COPY, True)
        fabric.registry.set_enabled(COPY, False, one.id)
        assert reached() == [errno.EINVAL, 0]
        fabric.registry.set_enabled(COPY, None, one.id)
        fabric.registry.set_enabled(COPY, None)
        assert reached() == [errno.EINVAL, errno.EINVAL]


def test_a_service_is_on_for_one_vm_alone_from_guest_to_host(fabric: EmbeddedFabric) -> None:
    one, two = fabric.create_partition("one"), fabric.create_partition("two")
    with pytest.raises(OSError, match="disabled") as caught:
        hvsock.create_server(("children", COPY), partition=fabric.host.folder)
    assert caught.value.errno == errno.EINVAL
    fabric.registry.set_enabled(COPY, True)
    with hvsock.create_server(("children", COPY), partition=fabric.host.folder):

        def reached() -> list[int]:
            return [outcome(vm, "parent") for vm in (one, two)]

        assert reached() == [0, 0]
        fabric.registry.set_enabled(COPY, None)
        assert reached() == [errno.ECONNREFUSED, errno.ECONNREFUSED]
        fabric.registry.set_enabled(COPY, True, two.id)
        assert reached() == [errno.ECONNREFUSED, 0]


def test_each_partition_is_told_what_is_enabled_for_it(fabric: EmbeddedFabric) -> None:
    one, two = fabric.create_partition("one"), fabric.create_partition("two")
    fabric.registry.set_enabled("Guest Service Interface", True, one.id)
    fabric.registry.set_enabled("Shutdown", False, two.id)

    def told(partition: PartitionHandle) -> set[str]:
        return {found["name"] for found in client.call(partition.folder, "services")} & NAMES

    assert told(one) == NAMES
    assert told(two) == NAMES - {"Guest Service Interface", "Shutdown"}
    assert told(fabric.host) == NAMES - {"Guest Service Interface"}


def test_status_tells_which_services_are_inbox(fabric: EmbeddedFabric) -> None:
    fabric.register("mine")
    services = client.call(fabric.host.folder, "status")["services"]
    inbox = {one["name"] for one in services if one["inbox"]}
    assert inbox == {*NAMES, "VM Session Service", "VM Session Service-2"}


def test_a_broker_completes_an_earlier_registry_and_says_what_it_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "registry").mkdir()
    make_early(tmp_path / "registry", ServiceEntry(ONE, "Heartbeat"))
    with caplog.at_level(logging.WARNING), EmbeddedFabric(str(tmp_path)) as fabric:
        told = {one["name"]: one["id"] for one in client.call(fabric.host.folder, "services")}
        assert NAMES - told.keys() == {"Guest Service Interface"}
        assert told["Heartbeat"] == ONE
    assert "'Heartbeat' (0000143c-facb-11e6-bd58-64006a7986d3) is left out" in caplog.text
