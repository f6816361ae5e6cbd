"""The commands on what calls itself Windows: over the fakes, and without the modules that Windows lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_line

if sys.platform != "linux":
    pytest.skip("it plays Windows, with the fakes; run these tests elsewhere", allow_module_level=True)

PORT_2761 = "00000ac9-facb-11e6-bd58-64006a7986d3"
VM = "24a3451c-4180-42bd-83a7-6880374e886c"
HEARTBEAT = "84eaae65-2f2e-45f5-9bb5-0e857dc8eb47"
ELEVATED = {"elevated": True}


def run(*orders: dict[str, Any], stdin: bytes = b"") -> tuple[list[dict[str, Any]], bytes]:
    """What became of commands, one after the other on one machine, and what connect and listen wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.windows.as_windows", json.dumps(orders)],
        input=stdin,
        capture_output=True,
        check=False,
    )
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in lines if line.startswith("{")], done.stdout


def order(*arguments: str, **more: Any) -> dict[str, Any]:
    """One command; `more` is what the machine has by then."""
    return {"arguments": arguments, **({"with": more} if more else {})}


def said(*objects: Any) -> dict[str, Any]:
    """An answer of PowerShell's."""
    return {"found": objects}


DENIED = {"error": "No.", "category": "PermissionDenied", "id": "x"}
VMS = said({"id": VM.upper(), "name": "O'Brien's $VM", "state": "Running"})


def test_services(tmp_path: Path) -> None:
    file, reg = tmp_path / "services.json", tmp_path / "services.reg"
    linux = [
        {"id": PORT_2761, "name": "Новое имя"},
        {"id": VM, "name": "served", "settings": {"enabled": False}, "forward": "unix:/run/x"},
        {"id": "0000143c-facb-11e6-bd58-64006a7986d3", "name": "Heartbeat", "flags": ["inbox"]},
    ]
    file.write_text(json.dumps({"format": "hvsock-registry", "version": 1, "services": linux}), encoding="utf-8")
    told, _ = run(
        order("service", "register", "HV Socket Demo", "--port", "2761"),
        order("service", "register", "HV Socket Demo", "--port", "2761", **ELEVATED),
        order("service", "register", "hv socket demo"),
        order("service", "register", "other", "--port-alias", "5"),
        order("service", "list"),
        order("service", "list", "--json"),
        order("service", "export", "--format", "hcs"),
        order("service", "import", str(file)),
        order("service", "import", str(file), "--replace"),
        order("service", "export", str(reg)),
        order("service", "unregister", "SERVED"),
        order("service", "unregister", "served"),
        order("service", "import", str(reg), "--replace", "--json"),
        order("service", "enable", "served"),
        order("service", "unregister", "served", elevated=False),
        order("service", "access", "served"),
        order(
            "service", "show", "served", powershell=[{"error": "No.", "category": "PermissionDenied", "id": "x"}]
        ),
    )
    assert [one["code"] for one in told] == [4, 0, 6, 2, 0, 0, 2, 6, 0, 0, 0, 5, 0, 2, 4, 1, 0]
    (refused, made, twice, alias, table, listed, hcs, unchanged, imported, _, _, gone, again) = told[:13]
    assert refused["err"].startswith("hvsock: only administrators may change the services of this host; ")
    assert made["out"] == f"{PORT_2761}\n"
    assert f"'HV Socket Demo' is in use, by {PORT_2761}" in twice["err"]
    assert "--port" in alias["err"]
    assert table["out"].splitlines()[1].split() == ["HV", "Socket", "Demo", PORT_2761, "2761", "no"]
    (value,) = json.loads(listed["out"])
    assert (value["name"], value["port"]) == ("HV Socket Demo", 2761)
    assert "effective" not in value
    assert "HCS documents" in hcs["err"]
    assert "was not to be replaced" in unchanged["err"]
    assert imported["out"] == "1 added, 1 changed, 0 skipped\n"
    assert [line.partition(":")[2][:28].rstrip() for line in imported["err"].splitlines()] == [
        " 1 in-box services are passe",
        " of 1 services the id and th",
    ]
    assert "Новое имя" in reg.read_text(encoding="utf-16")
    assert "no service 'served' is registered" in gone["err"]
    assert json.loads(again["out"]) == {"added": 1, "changed": 0, "skipped": 1, "notes": []}
    everybody, again_refused, access, shown = told[13:]
    assert "say which by --vm" in everybody["err"]
    assert again_refused["err"].endswith(f"GuestCommunicationServices\\{VM}'\n")
    assert access["err"].startswith("hvsock: there is no hvsock service access on Windows")
    assert shown["out"].startswith(f"name        served\nid          {VM}\nport        -\n")
    assert "is not known: PowerShell says: No. (join the group Hyper-V Administrators" in shown["err"]
    for one in told:
        if one["code"]:
            assert_one_line(one["err"])


def test_what_is_enabled_for_a_vm() -> None:
    component = {
        "id": f"Microsoft:{VM.upper()}\\{HEARTBEAT.upper()}",
        "name": "Takt",
        "enabled": False,
        "primary": "OK",
        "secondary": "",
    }
    done = said({"code": 0, "why": ""})
    policy = said({"id": VM.upper(), "name": "O'Brien's $VM", "policy": 3})
    nobody = said({"id": VM, "name": "x", "state": "Off"}), said()
    told, _ = run(
        order("service", "register", "demo", "--port", "2761", **ELEVATED),
        order("service", "disable", "demo", "--vm", "o'brien's $vm", "--json", powershell=[VMS, done]),
        order("service", "enable", "demo", "--vm", VM, powershell=[done]),
        order("service", "enable", "demo", "--vm", VM, "--reset", powershell=[done]),
        order("service", "show", "demo", powershell=[policy]),
        order("service", "show", "demo", "--json", powershell=[policy]),
        order("integration", "list", "O'Brien's $VM", powershell=[VMS, said(component)]),
        order("integration", "enable", VM, "heartbeat", "--json", powershell=[said(component), said()]),
        order("integration", "disable", VM, "TAKT", powershell=[said(component), said()]),
        order("integration", "disable", VM, HEARTBEAT, powershell=[said(component), said()]),
        order("integration", "enable", VM, "Shutdown'; 'x", powershell=[said(component)]),
        order("integration", "list", "nobody", powershell=[nobody[0]]),
        order("integration", "list", "parent"),
        order("integration", "list", VM, powershell=[said({"unknown": True})]),
    )
    assert [one["code"] for one in told] == [0] * 10 + [5] * 4
    _, disabled, enabled, reset, shown, shown_json, listed, on, off, by_guid, no_such, no_vm, word, unknown = told
    assert json.loads(disabled["out"])["per_vm"] == {VM: {"enabled": False}}
    assert [script.count("Brien") for script in disabled["asked"]] == [0, 0]  # a name is no part of a script
    for one, policy_number in ((disabled, 3), (enabled, 2)):
        assert one["asked"][-1].count(f"[uint16]{policy_number}") == 2
    assert "RemoveGuestServiceSettings" in reset["asked"][0]
    assert shown["out"].splitlines()[-1].split() == ["O'Brien's", "$VM", VM, "disabled"]
    assert json.loads(shown_json["out"])["vms"] == [{"id": VM, "name": "O'Brien's $VM", "policy": "disabled"}]
    assert listed["out"].splitlines()[1].split() == ["O'Brien's", "$VM", "Takt", "no", "OK", "-"]
    assert json.loads(on["out"]) == {"vm": VM, "name": "Takt", "id": HEARTBEAT, "enabled": True}
    for one, verb in ((on, "Enable"), (off, "Disable"), (by_guid, "Disable")):
        assert f"{verb}-VMIntegrationService -VMIntegrationService $one[0]" in one["asked"][1]
        assert f"-like '*\\{HEARTBEAT}'" in one["asked"][1]
    assert len(no_such["asked"]) == 1
    assert "it has 'Takt'" in no_such["err"]
    assert "no VM 'nobody'; not all could be asked: " in no_vm["err"]
    assert "Get-VM" in word["err"]
    assert "who is not elevated, sees none" in unknown["err"]
    for one in told[10:]:
        assert_one_line(one["err"])


def test_connections() -> None:
    beside = {"beside": True}
    command = "cat; printf $HVSOCK_PEER_VMID"
    told, out = run(
        order("listen", "loopback", "2761", "--once", "--echo") | beside,
        order("connect", "--wait", "20", "loopback", "2761"),
        order("listen", "hvsocket://loopback/2762", "--once", "--exec", command) | beside,
        order("connect", "--timeout", "20", "hvsocket://loopback/2762"),
        stdin=b"hello\n",
    )
    assert [one["code"] for one in told] == [0] * 4
    assert out == b"hello\ne0e16197-dd56-4a10-9195-5ee7a155a838"


def test_what_is_not_there() -> None:
    linux_alone = ("up", "partition", "run", "vm", "status", "forward", "agent", "hybrid", "demo")
    told, _ = run(
        order("--help"),
        order("service", "--help"),
        *(order(name, "--help") for name in linux_alone),
        order("connect", "unix:/v?hybrid=5"),
        order("listen", "vsock://2:5"),
        order("connect", "loopback", "2763"),
        order("connect", "loopback", "no such"),
    )
    commands = "".join(one["out"].partition("Commands:")[2].partition("\n\n")[0] for one in told[:2])
    for name in (*linux_alone, "access", "defaults", "serve"):
        assert f"\n  {name} " not in commands
    assert "\n  connect " in commands
    assert "\n  unregister " in commands
    for name, one in zip(linux_alone, told[2:], strict=False):
        assert one["code"] == 1
        assert one["err"].startswith(f"hvsock: there is no hvsock {name} on Windows"), one
        assert_one_line(one["err"])
    assert [one["code"] for one in told[-4:]] == [2, 2, 1, 5]
