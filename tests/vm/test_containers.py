"""Containers in a real guest: its own fabric, whose way up is AF_VSOCK, and namespaces of the guest's kernel."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Final

import pytest

from hvsock.addresses import ServiceId, VmId
from hvsock.fabric.embedded import EmbeddedFabric

assert sys.platform == "linux"

from hvsock.fabric import client
from hvsock.vm import launch
from hvsock.vm.overlay import overlay
from hvsock.vm.runs import Run
from tests.containers import container_command
from tests.relay.test_containers import IN_CONTAINER, saying
from tests.vm.support import console_log, default_guest, guest_image, needs_qemu, started, wait_for_line

pytestmark = [needs_qemu, pytest.mark.timeout(600)]

BOX: Final = VmId("22222222-3333-4444-8555-666666666666")
HIDDEN: Final = "/run/machine"
FABRIC: Final = f"{HIDDEN}/fabric"
END: Final = "\nthat was all"


def script(service: ServiceId) -> str:
    """What the guest does: a fabric with a way up, a service, and a container that asks for it."""
    python = ["python3", "/root/in_container.py", str(service), FABRIC]
    in_container = container_command(f"{FABRIC}/partitions/{BOX}", HIDDEN, python)
    return f"""
        unset HVSOCK_TRANSPORT
        mkdir {HIDDEN}
        export HVSOCK_DIR={FABRIC}
        hvsock up --uplink vsock &
        until [ -S {FABRIC}/partitions/host/stream ]; do sleep 0.1; done
        hvsock service register who --id {service}
        hvsock partition create box --kind container --id {BOX}
        hvsock listen children who --exec 'printf "the VM"' &
        until hvsock connect --wait 60 parent {service} < /dev/null; do sleep 0.2; done
        hvsock run --partition box -- hvsock connect --wait 60 parent {service} < /dev/null
        {shlex.join(in_container)}
        echo; echo that was all
        wait
    """


@pytest.mark.soak  # it boots a VM of its own; test_containers.py of tests/relay has the same without one
def test_a_container_in_a_guest(hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> None:
    made = guest_image()
    service = ServiceId("11111111-2222-4333-8444-555555555555")
    hvsock_fabric.register("who", service, port_alias=5_000)  # which the host alone knows
    partition = hvsock_fabric.create_partition("web01")
    cid = client.call(hvsock_fabric.host.folder, "resolve", vm="web01", service=None)["cid"]
    run = Run(hvsock_fabric.folder, "web01")
    settings = default_guest("web01", made, vm_id=str(partition.id), device=launch.device_command("web01", cid))
    brought = tmp_path / "overlay" / "root"
    brought.mkdir(parents=True)
    brought.joinpath(IN_CONTAINER.name).write_bytes(IN_CONTAINER.read_bytes())
    archive = overlay(str(brought.parent), script(service))
    with (
        saying("the host", hvsock_fabric.host.folder, service),
        started(run, settings, made=made, overlay=archive),
    ):
        try:
            said = wait_for_line(run, END)
        finally:
            print(console_log(run)[-4000:])
    found = json.JSONDecoder().raw_decode(said, said.index('{"parent"'))[0]
    assert found.pop("processes") < 5
    assert found == {
        "parent": "the VM",
        "silohost": "the VM",
        "passthru": f"the host to {partition.id}",
        "interfaces": ["lo"],
        "sees the fabric": False,
    }
