"""`hvsock service access` by SDDL, `hvsock service defaults`, HCS documents, and what doctor says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hvsock
from hvsock.fabric.embedded import EmbeddedFabric
from tests.cli.helpers import invoke, invoke_json

ID = "6b0e1a4f-6d44-4ab3-9a8e-1f2f3a4b5c6d"
VM = "0c1d2e3f-6d44-4ab3-9a8e-1f2f3a4b5c6d"
ALLOW, DENY = "D:P(A;;FA;;;SY)(A;;FA;;;BA)", "D:P(D;;FA;;;WD)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fabric whose broker never ran, with one service, and the working folder."""
    monkeypatch.setenv("HVSOCK_DIR", str(tmp_path / "one"))
    monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    invoke("service", "register", "echo", "--id", ID)
    return tmp_path


def test_descriptors_are_set_shown_and_taken_back(folder: Path) -> None:
    shown = invoke("service", "access", "echo", "--bind-sddl", "d:p(d;;0x1f01ff;;;s-1-1-0)").stdout
    assert f" {DENY} " in shown
    made = invoke_json("service", "access", "echo", "--vm", VM, "--connect-sddl", ALLOW, "--no-wildcard-binds")
    assert made["settings"] == {"bind": {"sddl": DENY}}
    assert made["per_vm"] == {VM: {"wildcard_binds": False, "connect": {"sddl": ALLOW}}}
    assert made["effective"]["bind"] == {"sddl": DENY}
    made = invoke_json("service", "access", "echo", "--bind", "everyone")
    assert made["settings"] == {"bind": {"everyone": True, "uids": [], "gids": []}}
    assert invoke_json("service", "access", "echo", "--reset")["settings"] == {}


def test_defaults_are_set_shown_and_taken_back(folder: Path) -> None:
    assert invoke("service", "defaults").stdout.splitlines()[1].split() == ["all", "VMs", "✓", "owner", "owner"]
    assert invoke_json("service", "defaults") == {}
    invoke("service", "defaults", "--connect", "everyone")
    assert invoke_json("service", "defaults", "--vm", VM, "--bind-sddl", DENY, "--no-wildcard-binds") == {
        "all": {"connect": {"everyone": True, "uids": [], "gids": []}},
        VM: {"wildcard_binds": False, "bind": {"sddl": DENY}},
    }
    lines = invoke("service", "defaults").stdout.splitlines()
    assert lines[1].split() == ["all", "VMs", "✓", "owner", "everyone"]
    assert lines[2].split() == [VM, "✗", DENY, "everyone"]
    assert DENY in invoke("service", "show", "echo").stdout, (
        "what is in force for a service has the defaults in it"
    )
    assert invoke_json("service", "show", "echo")["effective"]["connect"]["everyone"] is True
    assert invoke_json("service", "defaults", "--vm", VM, "--reset") == {
        "all": {"connect": {"everyone": True, "uids": [], "gids": []}}
    }


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ["access", "echo", "--bind-sddl", "D:(A;;FA;;;DA)"],
            "--bind-sddl: SDDL, character 12: DA is of a Windows",
        ),
        (["access", "echo", "--connect-sddl", ""], "--connect-sddl: SDDL is not empty"),
        (["access", "echo", "--bind", "owner", "--bind-sddl", ALLOW], "--bind and --bind-sddl both say"),
        (["defaults", "--connect-sddl", "D:(A;;FA;;WD)"], "has six fields"),
        (["export", "--vm", VM], "--vm is for --format hcs"),
        (["import", "registry.json", "--vm", VM], "--vm is for HCS documents"),
    ],
)
def test_mistakes_are_told(folder: Path, arguments: list[str], why: str) -> None:
    invoke("service", "export", "registry.json")
    assert why in invoke("service", *arguments, code=2).stderr
    assert invoke_json("service", "show", "echo")["settings"] == {}


def test_an_hcs_document_goes_in_and_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {ID: {"ConnectSecurityDescriptor": DENY}, "00001388-facb-11e6-bd58-64006a7986d3": {"Disabled": True}}
    config = {"DefaultBindSecurityDescriptor": DENY, "ServiceTable": table}
    document = {"VirtualMachine": {"Chipset": {}, "Devices": {"HvSocket": {"HvSocketConfig": config}}}}
    Path("vm.json").write_text(json.dumps(document), encoding="utf-8")
    assert invoke("service", "import", "vm.json", "--vm", VM).stdout == "1 added, 1 changed, 0 skipped\n"
    assert invoke("service", "import", "vm.json", "--vm", VM).stdout == "0 added, 0 changed, 2 skipped\n"
    invoke("service", "export", "--format", "hcs", "--vm", VM, "out.json")
    written = json.loads(Path("out.json").read_bytes())["VirtualMachine"]["Devices"]["HvSocket"]["HvSocketConfig"]
    assert written == {
        "DefaultBindSecurityDescriptor": DENY,
        "DefaultConnectSecurityDescriptor": ALLOW,
        "ServiceTable": {
            ID: {"ConnectSecurityDescriptor": DENY, "AllowWildcardBinds": False},
            "00001388-facb-11e6-bd58-64006a7986d3": {"AllowWildcardBinds": False, "Disabled": True},
        },
    }
    invoke("service", "export", "all.json")
    before = Path("out.json").read_bytes()
    monkeypatch.setenv("HVSOCK_DIR", str(folder / "two"))
    invoke("service", "import", "out.json", "--vm", VM)
    invoke("service", "export", "--format", "hcs", "--vm", VM, "again.json")
    assert Path("again.json").read_bytes() == before
    monkeypatch.setenv("HVSOCK_DIR", str(folder / "three"))
    invoke("service", "import", "all.json")
    invoke("service", "export", "--format", "hcs", "--vm", VM, "again.json")
    assert Path("again.json").read_bytes() == before, "JSON of hvsock carries defaults too"
    table[ID] = {"ConnectSecurityDescriptor": ALLOW}
    Path("vm.json").write_text(json.dumps(document), encoding="utf-8")
    assert "not to be replaced" in invoke("service", "import", "vm.json", "--vm", VM, code=6).stderr
    assert invoke("service", "import", "vm.json", "--vm", VM, "--replace").stdout.startswith("0 added, 1 changed")
    monkeypatch.setenv("HVSOCK_DIR", str(folder / "four"))
    invoke("service", "import", "vm.json")
    invoke("service", "export", "four.json")
    for_all = json.loads(Path("four.json").read_bytes())["defaults"]
    assert for_all == {"all": {"bind": {"sddl": DENY}}}, "nothing about wildcard binds"


def test_doctor_names_the_ace(hvsock_fabric: EmbeddedFabric) -> None:
    vm = hvsock_fabric.create_partition("web")
    invoke("service", "register", "echo", "--id", ID)
    invoke("service", "access", "echo", "--vm", "web", "--connect-sddl", f"{ALLOW}(D;;FA;;;S-1-5-83-0)")
    with hvsock.create_server(("parent", ID), partition=vm.folder):
        text = invoke("doctor", "host", "web", "echo").stdout
        assert "May this user connect? yes: ACE " in text
        invoke("service", "access", "echo", "--vm", "web", "--connect-sddl", f"D:P(D;;FA;;;WD){ALLOW[3:]}")
        text = invoke("doctor", "host", "web", "echo", code=1).stdout
        assert "as ACE 1 of its descriptor, (D;;FA;;;WD), denies it" in text
        invoke("service", "access", "echo", "--vm", "web", "--connect-sddl", f"{ALLOW}(D;;FA;;;S-1-5-83-0)")
        text = invoke("doctor", "web", "parent", "echo", code=1).stdout
        assert "May this guest connect? no" in text
        assert (
            "'web' may not connect to 'echo', as ACE 3 of its descriptor, (D;;FA;;;S-1-5-83-0), denies it" in text
        )
