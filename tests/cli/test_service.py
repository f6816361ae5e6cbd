"""`hvsock service`: register, unregister, list, show, enable, disable, access."""

from __future__ import annotations

import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hvsock.addresses import ServiceId
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.registry.entries import inbox_entries

assert sys.platform == "linux"

from tests.cli.helpers import PROGRAM, environment, hvsock, invoke, invoke_json

GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
ID = "6b0e1a4f-6d44-4ab3-9a8e-1f2f3a4b5c6d"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a fabric whose broker never ran."""
    path = tmp_path / "fabric"
    monkeypatch.setenv("HVSOCK_DIR", str(path))
    monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
    return path


def on_a_terminal(*arguments: str) -> str:
    """What the installed program shows where its output is a terminal."""
    near, far = pty.openpty()
    try:
        env = environment(COLUMNS="200")
        with subprocess.Popen([PROGRAM, *arguments], stdout=far, stdin=far, stderr=far, env=env) as process:
            os.close(far)
            shown = b""
            try:
                while data := os.read(near, 65536):
                    shown += data
            except OSError:  # the other side is closed
                pass
            assert process.wait(30) == 0, shown
    finally:
        os.close(near)
    return shown.decode()


def test_register_prints_the_bare_guid_where_nobody_looks(folder: Path) -> None:
    done = hvsock("service", "register", "HV Socket Demo")
    guid = done.stdout.decode().removesuffix("\n")
    assert GUID.fullmatch(guid)
    assert done.stderr == b""
    assert invoke_json("service", "show", "hv socket DEMO")["id"] == guid


def test_register_on_a_terminal_says_what_it_did(folder: Path) -> None:
    shown = on_a_terminal("service", "register", "HV Socket Demo", "--id", ID)
    assert shown == f"registered HV Socket Demo as {ID}\r\n"


def test_register_makes_the_registry_for_its_owner_alone(folder: Path) -> None:
    invoke("service", "register", "a")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "registry").stat().st_mode) == 0o700


def test_register_by_id_port_and_alias(folder: Path) -> None:
    assert invoke("service", "register", "by id", "--id", ID.upper()).stdout == f"{ID}\n"
    assert invoke("service", "register", "by port", "--port", "2761").stdout == f"{ServiceId.from_port(2761)}\n"
    made = invoke_json("service", "register", "by alias", "--port-alias", "9000")
    assert (made["port"], made["port_alias"], made["name"]) == (9000, 9000, "by alias")
    assert invoke_json("service", "show", "2761")["name"] == "by port"
    assert invoke_json("service", "show", "9000")["name"] == "by alias"
    assert invoke_json("service", "show", ID)["name"] == "by id"


@pytest.mark.parametrize(
    "name", ["a b  c", "\u4f60\u597d", "Gr\u00fc\u00dfe", 'it\'s "quoted" $HOME `id`', "-- --json", "[red]x[/red]"]
)
def test_any_name_goes_in_and_comes_out(folder: Path, name: str) -> None:
    guid = invoke("service", "register", "--", name).stdout.strip()
    shown = invoke("service", "show", "--", name).stdout
    assert f"name        {name}\n" in shown
    assert guid in shown
    assert name in on_a_terminal("service", "list")
    assert invoke("service", "unregister", "--", name).output == ""
    invoke("service", "show", "--", name, code=5)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["register", ""], 2),
        (["register", "a\nb"], 2),
        (["register", "2761"], 2),
        (["register", ID], 2),
        (["register", "x", "--id", "nonsense"], 2),
        (["register", "taken"], 6),
        (["register", "other", "--id", ID], 6),
        (["register", "other", "--id", "999e53d4-3d5c-4c3e-8779-bed06ec056e1"], 4),
        (["unregister", "VM Session Service"], 4),
        (["unregister", "nonesuch"], 5),
        (["show", "nonesuch"], 5),
        (["enable", "nonesuch"], 5),
        (["disable", "taken", "--vm", "nonesuch"], 5),
        (["disable", "taken", "--vm", "parent"], 5),
        (["access", "nonesuch"], 5),
    ],
)
def test_what_goes_wrong_changes_nothing(folder: Path, arguments: list[str], code: int) -> None:
    invoke("service", "register", "taken", "--id", ID)
    before = invoke_json("service", "list")
    invoke("service", *arguments, code=code)
    assert invoke_json("service", "list") == before


def test_list_and_its_json(folder: Path) -> None:
    invoke("service", "register", "Zebra", "--id", ID)
    text = invoke("service", "list").stdout.splitlines()
    assert text[0].split() == ["NAME", "ID", "PORT", "STATE"]
    assert re.fullmatch(rf"Zebra +{ID} +- +enabled", text[-1])
    value = invoke_json("service", "list")
    assert [one["name"] for one in value] == [*sorted(one.name for one in inbox_entries(0.0)), "Zebra"]
    zebra = value[-1]
    assert TIME.fullmatch(zebra.pop("created"))
    assert TIME.fullmatch(zebra.pop("changed"))
    nobody = {"everyone": False, "uids": [], "gids": []}
    assert zebra == {
        "id": ID,
        "name": "Zebra",
        "port_alias": None,
        "flags": [],
        "settings": {},
        "per_vm": {},
        "forward": None,
        "port": None,
        "effective": {"enabled": True, "wildcard_binds": True, "bind": nobody, "connect": nobody},
    }
    assert value[0]["flags"] == ["inbox"]


def test_enable_and_disable_for_all_and_for_one(hvsock_fabric: EmbeddedFabric) -> None:
    web = hvsock_fabric.create_partition("Web 01")
    invoke("service", "register", "a")
    assert invoke_json("service", "disable", "a")["effective"]["enabled"] is False
    value = invoke_json("service", "enable", "a", "--vm", "web 01")
    assert value["per_vm"] == {str(web.id): {"enabled": True}}
    assert "disabled, enabled for 1 VM" in invoke("service", "list").stdout
    shown = invoke("service", "show", "a").stdout
    assert "Web 01" in shown
    assert invoke_json("service", "enable", "a", "--vm", str(web.id).upper(), "--reset")["per_vm"] == {}
    assert invoke_json("service", "disable", "a", "--reset")["settings"] == {}
    assert invoke("service", "enable", "a").output == ""


def test_a_vm_has_its_name_without_a_broker_too(hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> None:
    folder = str(tmp_path / "kept")
    with EmbeddedFabric(folder) as fabric:
        web = fabric.create_partition("web01")
        fabric.register("a")
    result = invoke("service", "disable", "a", "--vm", "WEB01", "--json", env={"HVSOCK_DIR": folder})
    assert str(web.id) in result.stdout


def test_access(folder: Path) -> None:
    invoke("service", "register", "a")
    value = invoke_json(
        "service",
        "access",
        "a",
        "--bind",
        "user:root",
        "--bind",
        "group:4242",
        "--connect",
        "everyone",
        "--no-wildcard-binds",
    )
    bind = {"everyone": False, "uids": [0], "gids": [4242]}
    connect = {"everyone": True, "uids": [], "gids": []}
    assert value["settings"] == {"wildcard_binds": False, "bind": bind, "connect": connect}
    shown = invoke("service", "access", "a").stdout
    assert "user:root, group:4242" in shown
    assert "everyone" in shown
    value = invoke_json("service", "access", "a", "--bind", "owner")
    assert value["settings"]["bind"] == {"everyone": False, "uids": [], "gids": []}
    assert value["settings"]["connect"] == connect
    invoke("service", "disable", "a")
    assert invoke_json("service", "access", "a", "--reset")["settings"] == {"enabled": False}
    value = invoke_json("service", "access", "a", "--reset", "--wildcard-binds")
    assert value["settings"] == {"enabled": False, "wildcard_binds": True}


def test_another_partition_than_the_host_reads_and_changes_nothing(hvsock_fabric: EmbeddedFabric) -> None:
    hvsock_fabric.register("a")
    web = hvsock_fabric.create_partition("web01")
    env = {"HVSOCK_PARTITION": web.folder}
    assert "a" in invoke("service", "list", env=env).stdout
    before = hvsock_fabric.registry.entries()
    for arguments in (["register", "b"], ["unregister", "a"], ["disable", "a"], ["access", "a", "--reset"]):
        assert "only the host" in invoke("service", *arguments, code=4, env=env).stderr
    assert hvsock_fabric.registry.entries() == before


def test_another_partition_makes_no_registry(tmp_path: Path) -> None:
    env = {"HVSOCK_DIR": str(tmp_path / "none"), "HVSOCK_PARTITION": str(tmp_path)}
    invoke("service", "register", "b", code=3, env=env)
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root has another's folder: run the tests as root")
def test_what_root_makes_in_anothers_folder_is_the_others(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 4242, 4243)
    invoke("service", "register", "a")
    found = (folder / "registry").stat()
    assert (found.st_uid, found.st_gid) == (4242, 4243)
    assert (folder / "registry" / "registry.db").stat().st_uid == 4242
