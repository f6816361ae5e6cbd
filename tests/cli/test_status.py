"""`hvsock status` and `hvsock doctor`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

import hvsock
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.registry.entries import inbox_entries

assert sys.platform == "linux"

from tests.cli.helpers import hvsock as run
from tests.cli.helpers import invoke, invoke_json, line_of, started


@pytest.fixture
def busy(hvsock_fabric: EmbeddedFabric) -> EmbeddedFabric:
    """A fabric where something happened: one connection accepted, one refused."""
    service = hvsock_fabric.register("HV Socket Demo")
    web = hvsock_fabric.create_partition("web01")
    with hvsock.create_server(("any", service.id)) as server:
        with hvsock.create_connection(("parent", service.id), 5, partition=web.folder):
            server.accept()[0].close()
        with pytest.raises(OSError), contextlib.closing(hvsock.create_connection((web.id, service.id), 5)):  # noqa: PT011
            pass
    return hvsock_fabric


def test_status_as_json(busy: EmbeddedFabric) -> None:
    value = invoke_json("status")
    assert set(value) >= {"time", "folder", "pid", "uptime_seconds", "transport", "partitions", "services"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value["time"])
    assert value["folder"] == busy.folder
    assert value["pid"] == os.getpid()
    assert [one["name"] for one in value["partitions"]] == ["host", "web01"]
    service = next(one for one in value["services"] if one["name"] == "HV Socket Demo")
    assert service["id"] == service["id"].lower()
    assert (service["accepted"], service["refused"], service["reset"]) == (1, {"no-listener": 1}, {})
    assert service["connect_microseconds_mean"] > 0


def test_status_as_tables(busy: EmbeddedFabric) -> None:
    text = invoke("status").stdout
    assert text.startswith(f"fabric {busy.folder}: process {os.getpid()}, up ")
    assert re.search(r"^  web01 +vm +- +3 +[0-9a-f-]{36} +0 +0$", text, re.MULTILINE)
    assert re.search(r"^HV Socket Demo +0 +0 +1 +1 no-listener +0 +\d+ [um]s +\d+ [um]s$", text, re.MULTILINE)


def test_status_leaves_inbox_services_out_of_which_nothing_is_to_be_told(busy: EmbeddedFabric) -> None:
    names = {one.name for one in inbox_entries(0.0)}

    def shown(*options: str) -> set[str]:
        text = invoke("status", *options).stdout
        return {name for name in names if re.search(rf"^{name} +\d", text, re.MULTILINE)}

    assert shown() == set()
    assert shown("--all") == names == {one["name"] for one in invoke_json("status")["services"] if one["inbox"]}
    with hvsock.create_server(("any", "Heartbeat")):
        assert shown() == {"Heartbeat"}
    with pytest.raises(OSError):  # noqa: PT011
        hvsock.create_connection(("loopback", "Shutdown"), 5)
    assert shown() == {"Shutdown"}


def test_status_again_and_again(busy: EmbeddedFabric) -> None:
    with started("status", "--watch", "--json", "--interval", "0.1") as process:
        values = [json.loads(line_of(process.stdout)) for _ in range(3)]
    assert values[0]["uptime_seconds"] < values[2]["uptime_seconds"]


def test_status_is_for_the_host(busy: EmbeddedFabric) -> None:
    web = invoke_json("partition", "list")[1]
    invoke("status", code=4, env={"HVSOCK_PARTITION": web["folder"]})


# -- doctor


def checks_of(*arguments: str, code: int = 0) -> dict[str, tuple[bool, str, str | None]]:
    """What doctor found that is needed, by question."""
    value = invoke_json(*arguments, code=code)
    assert value["ok"] is (code == 0)
    return {
        one["question"]: (one["ok"], one["found"], one.get("cure")) for one in value["checks"] if one["needed"]
    }


def test_doctor_finds_a_fabric_in_good_health(hvsock_fabric: EmbeddedFabric) -> None:
    checks = checks_of("doctor")
    assert all(ok for ok, _, _ in checks.values()), checks
    assert checks["Does a broker answer?"][1] == f"yes: process {os.getpid()}"
    assert checks["Which partition does this process speak for?"][1].startswith("the host")
    text = invoke("doctor").stdout
    for group in (
        "this machine:",
        "fabric:",
        "vsock (not needed",
        "hybrid (not",
        "hyperv (not",
        "virtual machines (not",
    ):
        assert f"\n{group}" in f"\n{text}"


def test_doctor_without_a_broker_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSOCK_DIR", str(tmp_path / "none"))
    checks = checks_of("doctor", code=1)
    assert checks["Is this a system with a fabric?"][0]
    ok, found, cure = checks["Does a broker answer?"]
    assert not ok
    assert found.startswith("no")
    assert "hvsock up" in str(cure)
    assert not (tmp_path / "none").exists()
    done = run("doctor", code=1)  # the program itself
    assert done.stderr == b""
    assert b"hvsock up" in done.stdout


def test_doctor_finds_a_folder_that_is_open_to_others(hvsock_fabric: EmbeddedFabric) -> None:
    os.chmod(os.path.join(hvsock_fabric.folder, "listeners"), 0o777)
    ok, found, cure = checks_of("doctor", code=1)["Are its folders closed to others?"]
    assert not ok
    assert "777" in found
    assert str(cure).startswith("chmod 700 ")


def test_doctor_in_another_partition(hvsock_fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    web = hvsock_fabric.create_partition("web01")
    monkeypatch.setenv("HVSOCK_PARTITION", web.folder)
    checks = checks_of("doctor")
    assert web.folder in checks["Which partition does this process speak for?"][1]
    assert "not changed" in checks["Can the registry be read?"][1]
    monkeypatch.setenv("HVSOCK_PARTITION", web.folder + "x")
    assert not checks_of("doctor", code=1)["Which partition does this process speak for?"][0]


EXPLAINED = {"source", "vm_id", "vm", "service_id", "ok", "guest_decides", "error", "checks"}
"""What the broker says of a connection."""


def test_doctor_explains_a_connection(hvsock_fabric: EmbeddedFabric) -> None:
    service = hvsock_fabric.register("HV Socket Demo")
    web = hvsock_fabric.create_partition("web01")
    value = json.loads(invoke("doctor", "web01", "parent", "hv socket demo", "--json", code=1).stdout)
    assert set(value) == {*EXPLAINED, "notes"}
    assert value["error"]["name"] == "ECONNREFUSED"
    assert value["error"]["reason"] == "no-listener"
    assert value["service_id"] == service.id
    assert [one["ok"] for one in value["checks"]] == [True, True, True, False]
    text = invoke("doctor", "web01", "parent", "hv socket demo", code=1).stdout
    assert "-> ECONNREFUSED: nothing listens" in text
    assert "stop new connections only" in text
    with hvsock.create_server(("children", service.id)):
        assert "It works." in invoke("doctor", str(web.id), "parent", str(service.id)).stdout
        assert invoke_json("doctor", "-", "web01", "HV Socket Demo", code=1)["source"] == "host"
        env = {"HVSOCK_PARTITION": web.folder}
        assert "It works." in invoke("doctor", "-", "parent", "HV Socket Demo", env=env).stdout
        invoke("doctor", "host", "loopback", "HV Socket Demo", code=4, env=env)


def test_doctor_about_what_is_not_there(hvsock_fabric: EmbeddedFabric) -> None:
    invoke("doctor", "nonesuch", "parent", "1", code=5)
    invoke("doctor", "host", "loopback", "nonesuch", code=5)
