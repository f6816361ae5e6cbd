"""`hvsock selftest`: for real over a fabric, over the fake of Winsock, and what it makes of failures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock import selftest
from hvsock.addresses import ServiceId, VmId
from hvsock.cli.commands.selftest import markdown
from hvsock.errors import NotReadyError, RefusedError
from hvsock.selftest import (
    Check,
    Ground,
    NotApplicable,
    Outcome,
    Result,
    connections,
    fabric,
    hybrid,
    identity,
    run,
)
from hvsock.transport import Transport
from hvsock.windows.registry import WindowsRegistry
from hvsock.windows.vms import Vm
from tests.cli.helpers import environment, hvsock, invoke, invoke_json
from tests.windows.fake_winreg import FakeWinreg
from tests.windows.proactor import ProactorLoop
from tests.windows.winsock import Machine, Windows, windows

ONLY_WINDOWS = {"constants are CPython's"}
"""What a fabric cannot be checked for."""


def test_the_command_over_a_fabric() -> None:
    told = invoke_json("selftest")
    assert (told["ok"], told["transport"]) == (True, "fabric")
    results = {one["name"]: one["result"] for one in told["checks"]}
    assert results == {
        one.name: "not applicable" if one.name in ONLY_WINDOWS else "passed" for one in selftest.CHECKS
    }
    assert told["environment"]["transport"] == "fabric"


def few(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    """Only those are made."""
    monkeypatch.setattr(selftest, "CHECKS", checks)


def raising(error: Exception) -> Any:
    """A check's function."""

    def function(_: Ground) -> None:
        raise error

    return function


def test_what_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    few(
        monkeypatch,
        identity.CHECKS[0],
        Check("refused", raising(ConnectionRefusedError(111, "no|body"))),
        Check("other", raising(RefusedError("only `some` may"))),
        Check("program", raising(KeyError("x"))),
        Check("absent", raising(NotApplicable("it is not there"))),
    )
    done = invoke("selftest", code=1)
    assert done.stdout.splitlines() == [
        "passed: addresses",
        "failed: refused: ECONNREFUSED: no|body",
        "failed: other: only `some` may",
        "failed: program: KeyError: 'x'",
        "not applicable: absent: it is not there",
        "1 passed, 3 failed, 1 not applicable",
    ]
    done = invoke("selftest", "--report", code=1)
    lines = done.stdout.splitlines()
    assert lines[0] == "### hvsock selftest: 1 passed, 3 failed, 1 not applicable"
    assert any(
        re.fullmatch(r"\| refused \| failed \| \d+\.\d\d \| ECONNREFUSED: no\\\|body \|", line) for line in lines
    )
    assert "### hvsock doctor --report" in lines


def test_no_names_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "marvin42")
    few(monkeypatch, Check("leak", raising(ValueError("/home/marvin42/x"))))
    told = invoke_json("selftest", code=1)
    assert told["checks"][0]["found"] == "ValueError: /home/USER/x"


def test_hybrid_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against our own server; asyncio takes the class of the process, so it is left to the test of the program."""
    monkeypatch.setenv("HVSOCK_TRANSPORT", "hybrid")
    few(monkeypatch, *identity.CHECKS, *connections.CHECKS[:-3], *STREAM)
    before = dict(os.environ)
    told = invoke_json("selftest")
    assert (told["ok"], told["transport"]) == (True, "hybrid"), told
    lacking = {one["name"] for one in told["checks"] if one["result"] == "not applicable"}
    assert lacking == ONLY_WINDOWS | {connections.BIND_UNREGISTERED}
    assert dict(os.environ) == before


@pytest.mark.soak
def test_hybrid_sockets_by_the_program() -> None:
    done = hvsock("selftest", "--report", env=environment(HVSOCK_TRANSPORT="hybrid"), seconds=300)
    assert b"| asyncio: nobody listens | passed |" in done.stdout
    assert b"| stream: large\\_duplex | passed |" in done.stdout


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    with (
        pytest.raises(NotReadyError, match=r"^hvsock hybrid serve did not start: hvsock: "),
        hybrid.served("nobody", str(tmp_path), "vm", str(tmp_path)),
    ):
        pass


def test_what_does_not_end_has_failed() -> None:
    release = threading.Event()
    hang = Check("hang", lambda _: "done" if release.wait(20) else None)
    with fabric.ground() as ground:
        (outcome,) = run(ground, [hang], seconds=0.01)
        release.set()
    assert (outcome.result, outcome.found) == (Result.FAILED, "it has not ended after 0.01 s")


def test_markdown_is_not_broken_by_what_was_found() -> None:
    text = markdown([Outcome("a", Result.PASSED, "<b>|`x`\n\n# y", 0.0)])
    assert "| a | passed | 0.00 | \\<b\\>\\|\\`x\\` \\# y |" in text.splitlines()


def fake_ground(machine: Machine, side: Windows, winreg: FakeWinreg, *vms: Vm) -> Ground:
    """That of a Windows of the fakes."""

    class Registry(WindowsRegistry):
        """What is registered there, Winsock knows."""

        def register(self, name: str, id: str | None = None) -> Any:
            entry = super().register(name, id)
            machine.registered.add(str(entry.id))
            return entry

    def no_hcsdiag() -> list[Vm]:
        raise NotReadyError("hcsdiag cannot be run")

    return Ground(
        Transport.HYPERV,
        side.socket.socket,
        side.aio,
        ServiceId.new,
        Registry(winreg),
        {"Get-VM": lambda: list(vms), "hcsdiag": no_hcsdiag},
        lambda name: next(vm.id for vm in vms if vm.name == name),
        stdlib=side.stdlib,
        loop_factory=ProactorLoop,
    )


def made(ground: Ground, *checks: Check) -> dict[str, Outcome]:
    """What became of them, by name."""
    return {one.name: one for one in run(ground, checks)}


STREAM = tuple(one for one in selftest.CHECKS if one.name in {"stream: small_both_ways", "stream: close_twice"})


def test_over_the_fakes_of_windows() -> None:
    machine = Machine()
    winreg = FakeWinreg()
    vms = (Vm(VmId.new(), "secret", "Running"), Vm(VmId.new(), "twice", "Off"), Vm(VmId.new(), "Twice", "Off"))
    with fake_ground(machine, windows(machine), winreg, *vms) as ground:
        found = made(ground, *identity.CHECKS, *connections.CHECKS, *STREAM)
    results = {name: one.result for name, one in found.items()}
    assert results.pop("between a VM and its host") is Result.NOT_APPLICABLE
    assert set(results.values()) == {Result.PASSED}, found
    assert found["constants are CPython's"].found.startswith("12 of 12 ")
    assert (
        found["VMs are found by their names"].found == "Get-VM: 3 VMs; not asked: hcsdiag: hcsdiag cannot be run"
    )
    assert found["asyncio: a server and its clients"].found == "ProactorLoop"
    assert not WindowsRegistry(winreg).entries()


def test_who_is_not_elevated_is_told_what_to_do() -> None:
    machine = Machine()
    with fake_ground(machine, windows(machine), FakeWinreg(elevated=False)) as ground:
        found = made(ground, *identity.CHECKS, connections.CHECKS[1])
    for name in ("a service is registered, read back and unregistered", "wildcard bind"):
        assert found[name].result is Result.NOT_APPLICABLE
        assert found[name].found.startswith("not elevated; run hvsock selftest in an elevated prompt")


def test_a_guest_has_no_registry() -> None:
    machine = Machine()
    with fake_ground(machine, windows(machine, machine.add_vm()), FakeWinreg(hyper_v=False)) as ground:
        found = made(ground, *identity.CHECKS, *connections.CHECKS[:11])
    absent = {name for name, one in found.items() if one.result is Result.NOT_APPLICABLE}
    assert absent == {
        *("services are listed", "a service is registered, read back and unregistered", "wildcard bind"),
        *("between a VM and its host", "error: bind of a service that is not registered"),
    }
    assert Result.FAILED not in {one.result for one in found.values()}


def test_another_number_than_cpythons_is_a_failure() -> None:
    machine = Machine()
    side = windows(machine)
    side.stdlib.HVSOCKET_CONNECTED_SUSPEND = 5
    with fake_ground(machine, side, FakeWinreg()) as ground:
        (outcome,) = run(ground, [identity.CHECKS[1]])
    assert outcome.result is Result.FAILED
    assert outcome.found.startswith("HVSOCKET_CONNECTED_SUSPEND is 5 in CPython")


def test_vms_that_nobody_tells_or_finds() -> None:
    vm = Vm(VmId.new(), "secret", "Running")
    with fabric.ground() as ground:
        names = identity.CHECKS[4]
        (wrong,) = run(replace(ground, vms={"Get-VM": lambda: [vm]}, find_vm=lambda _: VmId.new()), [names])
        (nobody,) = run(
            replace(ground, vms={"Get-VM": lambda: raising(RefusedError("you may not"))(ground)}), [names]
        )
    assert (wrong.result, wrong.found) == (Result.FAILED, "Get-VM's VM 1 is found with another id")
    assert (nobody.result, nobody.found) == (Result.NOT_APPLICABLE, "nobody tells of VMs; Get-VM: you may not")


def test_the_command_on_what_calls_itself_windows() -> None:
    """No module on the way needs Linux, and this Windows is found by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.selftest.win32"], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    failed = [one for one in told["checks"] if one["result"] == "failed"]
    assert (told["transport"], told["ok"], failed) == ("hyperv", True, []), done.stderr
    results = {one["name"]: one["result"] for one in told["checks"]}
    assert results["bind, listen, connect, accept"] == "passed"
    assert results["wildcard bind"] == "not applicable"
    assert results["VMs are found by their names"] == "not applicable"
    assert told["environment"]["transport"] == "hyperv"
