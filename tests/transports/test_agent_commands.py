"""The commands that ask a guest's agent, by the transport of this process: names are the configuration's there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.config.settings import vm_id_of_path
from hvsock.fabric.embedded import EmbeddedFabric
from tests.cli.helpers import environment, line_of, started
from tests.cli.helpers import hvsock as run

COMMANDS = (
    (("heartbeat", "guest"), "OK"),
    (("exec", "guest", "--", "echo", "hello"), "hello"),
    (("timesync", "guest"), "guest: offset "),
    (("kvp", "set", "guest", "key=value"), ""),
    (("direct", "ssh-config", "guest"), "Host guest"),
)


@pytest.fixture
def configured(hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> dict[str, str]:
    """An environment with hybrid sockets, one VM called otherwise than in the fabric, and no fabric."""
    file = tmp_path / "config.toml"
    lines = (
        "[profiles.default]",
        "transport = 'hybrid'",
        "vmm = 'cloud-hypervisor'",
        "[profiles.default.vms.guest]",
        f"path = '{tmp_path / 'v'}'",
    )
    file.write_text("\n".join(lines), encoding="utf-8")
    return environment(HVSOCK_CONFIG=str(file), HVSOCK_TRANSPORT="", HVSOCK_DIR=str(tmp_path / "none"))


def test_over_hybrid_sockets_without_a_fabric(
    configured: dict[str, str], hvsock_fabric: EmbeddedFabric, tmp_path: Path
) -> None:
    vm, path = hvsock_fabric.create_partition("web01"), tmp_path / "v"
    agent = ("agent", "--state", str(tmp_path / "state"))
    served = ("hybrid", "serve", "web01", str(path), "--profile", "cloud-hypervisor")
    with started(*agent, env=environment(HVSOCK_PARTITION=vm.folder)) as process, started(*served) as server:
        while "the agent is ready" not in line_of(process.stderr):
            pass
        assert line_of(server.stderr).startswith(f"hvsock: web01 is at {path}")
        for command, expected in COMMANDS:
            assert expected in run(*command, env=configured).stdout.decode(), command
        # the host introduces itself by the names that it has for the VM
        for key, value in (
            ("VirtualMachineName", "guest"),
            ("VirtualMachineId", str(vm_id_of_path(str(path))).upper()),
        ):
            found = run("kvp", "get", "guest", key, "--pool", "auto_external", env=configured).stdout.decode()
            assert found.strip() == value


@pytest.mark.parametrize("command", [("heartbeat",), ("timesync",), ("exec",), ("direct", "ssh-config")])
def test_a_name_that_the_configuration_has_not(command: tuple[str, ...], configured: dict[str, str]) -> None:
    more = ("--", "true") if command == ("exec",) else ()
    said = run(*command, "web01", *more, code=5, env=configured).stderr.decode()
    assert said == f"hvsock: no VM is called 'web01'; see {configured['HVSOCK_CONFIG']}: profiles.default.vms\n"


def test_doctor_does_not_explain_what_no_broker_decides(configured: dict[str, str]) -> None:
    said = run("doctor", "host", "guest", "5005", code=2, env=configured).stderr.decode()
    assert said.startswith(
        "hvsock: by the transport hybrid no broker decides, so none can explain: see hvsock conn"
    )
