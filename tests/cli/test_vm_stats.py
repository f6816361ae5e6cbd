"""`hvsock vm stats`, of VMs and of devices that somebody started by hand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.addresses import ServiceId
from hvsock.device import reporting
from hvsock.device.process import bound_socket
from hvsock.device.reporting import Reports
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.registry import ServiceEntry
from hvsock.vm.qemu import REPORT_SOCKET
from hvsock.vm.runs import RECORD, Record, Run, State, write_json
from tests.cli.helpers import invoke, invoke_json, line_of, started
from tests.device.conftest import PORT
from tests.device.devices import DeviceThread
from tests.device.ends import accept, listen, receive_exactly
from tests.device.guest import PATIENCE_SECONDS, Guest


@pytest.fixture
def demo(hvsock_fabric: EmbeddedFabric) -> ServiceEntry:
    return hvsock_fabric.register("Demo", ServiceId.from_port(PORT))


@pytest.fixture
def device(hvsock_fabric: EmbeddedFabric) -> Iterator[DeviceThread]:
    with DeviceThread(hvsock_fabric, hvsock_fabric.create_partition("vm")) as made:
        yield made


@pytest.fixture
def guest(device: DeviceThread) -> Iterator[Guest]:
    with device.guest() as made:
        yield made


@pytest.fixture
def report_path(device: DeviceThread, tmp_path: Path) -> Iterator[str]:
    """Where the device tells."""
    path = str(tmp_path / "report")
    reports = device.ask(lambda: Reports(device.reactor, bound_socket(path), device.device.report))
    yield path
    device.ask(reports.close)


@contextlib.contextmanager
def busy(fabric: EmbeddedFabric, guest: Guest) -> Iterator[None]:
    """One connection by a port alias that moved something, and one that was refused."""
    alias = fabric.registry.register("Aliased", port_alias=77)
    with listen(fabric, alias.id) as listener:
        far = guest.connect(77)
        with accept(listener) as near:
            far.send(bytes(5000))
            receive_exactly(near, 5000)
            near.sendall(bytes(3000))
            far.receive_exactly(3000)
            with pytest.raises(ConnectionRefusedError):
                guest.connect(PORT)
            yield


def test_as_json(hvsock_fabric: EmbeddedFabric, guest: Guest, report_path: str) -> None:
    with busy(hvsock_fabric, guest):
        value = invoke_json("vm", "stats", "--socket", report_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value["time"])
    assert (value["name"], value["cid"], value["driver"]) == (None, guest.cid, "running")
    (service,) = value["services"]
    expected = {"name": "Aliased", "open": 1, "opened": 1, "bytes_from_guest": 5000, "bytes_to_guest": 3000}
    assert {key: service[key] for key in expected} == expected
    assert value["total"]["ended"] == {"refused": 1}
    assert value["total"]["bytes_from_guest"] == 5000
    (listed,) = value["listed"]
    assert listed["service"] == service["id"]
    expected = {"type": "stream", "state": "open", "peer_cid": 2, "peer_port": 77, "bytes_from_guest": 5000}
    assert {key: listed[key] for key in expected} == expected
    assert value["connections_left_out"] == 0


def test_as_tables(hvsock_fabric: EmbeddedFabric, guest: Guest, report_path: str) -> None:
    with busy(hvsock_fabric, guest):
        text = invoke("vm", "stats", "--socket", report_path).stdout
    assert text.startswith(f"VM -: CID {guest.cid}, driver running, 1 of at most 16384 connections, queued 0")
    assert re.search(r"^Aliased +1 +1 +4\.9 KiB +2\.9 KiB +\d+ +0 +-$", text, re.MULTILINE)
    assert re.search(r"^in all +1 +1 +4\.9 KiB +2\.9 KiB +\d+ +0 +1 refused$", text, re.MULTILINE)
    assert re.search(r"^Aliased +host +\d+ +77 +stream +open +4\.9 KiB +2\.9 KiB +0$", text, re.MULTILINE)


def test_again_and_again(guest: Guest, report_path: str) -> None:
    options = ("--socket", report_path, "--watch", "--interval", "0.1")
    with started("vm", "stats", *options, "--json") as process:
        assert [json.loads(line_of(process.stdout))["cid"] for _ in range(3)] == [guest.cid] * 3
    with started("vm", "stats", *options) as process:
        lines = [line_of(process.stdout) for _ in range(12)]
    assert sum(line.startswith("VM -: ") for line in lines) >= 2


def test_without_names(hvsock_fabric: EmbeddedFabric, guest: Guest, report_path: str, tmp_path: Path) -> None:
    """Whoever cannot read the registry sees ids."""
    with busy(hvsock_fabric, guest):
        env = {"HVSOCK_DIR": str(tmp_path / "none")}
        text = invoke("vm", "stats", "--socket", report_path, env=env).stdout
    assert "Aliased" not in text
    assert re.search(r"^[0-9a-f-]{36} +1 +1 ", text, re.MULTILINE)


def test_connections_beyond_the_list_are_counted(
    hvsock_fabric: EmbeddedFabric,
    guest: Guest,
    demo: ServiceEntry,
    report_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "MAX_CONNECTIONS_LISTED", 2)
    with listen(hvsock_fabric, demo.id) as listener, contextlib.ExitStack() as stack:
        for count in range(4):
            far = guest.connect(PORT)
            near = stack.enter_context(accept(listener))
            far.send(bytes(1 + count))
            receive_exactly(near, 1 + count)
        value = invoke_json("vm", "stats", "--socket", report_path)
        assert [one["bytes_from_guest"] for one in value["listed"]] == [4, 3]
        assert (value["connections"], value["connections_left_out"]) == (4, 2)
        assert "and 2 more connections" in invoke("vm", "stats", "--socket", report_path).stdout


def test_of_a_vm(hvsock_fabric: EmbeddedFabric, guest: Guest, device: DeviceThread) -> None:
    """By its name; its device's socket is in its folder."""
    run = Run(hvsock_fabric.folder, "vm")
    invoke("vm", "stats", "vm", code=5)
    lock = run.take()
    record = Record("vm", "", guest.cid, State.RUNNING, "tcg", 1, 1, "none", 0.0)
    write_json(run.path(RECORD), record.to_json())
    invoke("vm", "stats", "vm", code=1)
    listener = bound_socket(run.path(REPORT_SOCKET))
    reports = device.ask(lambda: Reports(device.reactor, listener, device.device.report))
    value = invoke_json("vm", "stats", "vm")
    assert (value["name"], value["cid"]) == ("vm", guest.cid)
    device.ask(reports.close)
    os.close(lock)
    assert "is stopped" in invoke("vm", "stats", "vm", code=1).stderr


def test_what_is_no_device(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    assert "no device answers" in invoke("vm", "stats", "--socket", path, code=1).stderr
    invoke("vm", "stats", code=2)
    invoke("vm", "stats", "vm", "--socket", path, code=2)
    with bound_socket(path) as listener:
        for data in (b"", b"not JSON", b"[]", b"{}"):

            def answer(data: bytes = data) -> None:
                assert select.select([listener], [], [], PATIENCE_SECONDS)[0]
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(data)

            answering = threading.Thread(target=answer)
            answering.start()
            assert "is no device" in invoke("vm", "stats", "--socket", path, code=1).stderr
            answering.join()
