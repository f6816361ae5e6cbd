"""`hvsock demo` with a real VM, as a user runs it."""

from __future__ import annotations

import json
import sys

import pytest

assert sys.platform == "linux"

from hvsock.constants import INTEGRATION_SERVICES
from hvsock.vm.guest import DEMO_BYTES
from tests.cli.helpers import hvsock
from tests.vm.support import PATIENCE, guest_image, needs_qemu


@pytest.mark.soak  # `make demo` is the same, which CI runs too
@needs_qemu
@pytest.mark.timeout(180)
def test_a_guest_and_its_host_echo_to_each_other() -> None:
    guest_image()
    value = json.loads(hvsock("demo", "--json", "--mib", "1", seconds=PATIENCE).stdout)
    assert value["ok"] is True
    assert value["transport"] == value["vm"]["transport"] == "virtio-vsock"
    assert value["skipped"] == []
    assert value["sha256_match"] is True
    assert value["vm"]["bytes_each_way"] == DEMO_BYTES == 64 << 20
    assert value["bytes_sent"] == value["bytes_received"] > 2 * DEMO_BYTES
    tour = value["vm"]["integration_services"]
    assert sorted(tour["services"]) == sorted(one.name for one in INTEGRATION_SERVICES)
    assert tour["heartbeat"] == "OK"
    assert tour["guest_system"].startswith("Debian GNU/Linux")
    assert len(tour["file_sha256"]) == 64
    assert [step["title"] for step in value["steps"]][-1] == "Shut it down by the service"
