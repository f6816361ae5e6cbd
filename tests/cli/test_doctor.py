"""What `hvsock doctor` checks of each transport, and its report for bugs."""

from __future__ import annotations

import gzip
import json
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock import availability
from hvsock.cli import checks
from hvsock.cli.checks import fabric, hybrid, hyperv, kernel, report, vms, vsock
from hvsock.cli.checks.check import Answer, Check, asks, no, yes
from hvsock.config import files
from hvsock.errors import HvsockError, NoFabricError
from hvsock.fabric import client, paths
from hvsock.fabric.embedded import EmbeddedFabric
from tests.cli.helpers import invoke, invoke_json
from tests.registry.processes import User, in_child

CONFIG = "CONFIG_VSOCKETS=m\n# CONFIG_HYPERV_VSOCKETS is not set\nCONFIG_VHOST_VSOCK=y\n#\n# a heading\n"
NOBODY = 65_534
OPTIONS = {"CONFIG_VSOCKETS": "m", "CONFIG_HYPERV_VSOCKETS": "n", "CONFIG_VHOST_VSOCK": "y"}


def test_the_kernels_options(tmp_path: Path) -> None:
    assert kernel.parse_options(CONFIG) == OPTIONS
    plain, packed, cut = (tmp_path / name for name in ("config", "config.gz", "cut.gz"))
    plain.write_text(CONFIG)
    packed.write_bytes(gzip.compress(CONFIG.encode()))
    cut.write_bytes(packed.read_bytes()[:20])
    none = tmp_path / "none"
    assert kernel.options((str(none), str(cut), str(packed))) == (str(packed), OPTIONS)
    assert kernel.options((str(none), str(plain))) == (str(plain), OPTIONS)
    assert kernel.options((str(none),)) == (None, {})
    assert kernel.config_paths("6.1")[0] == "/proc/config.gz"


def test_what_there_is_of_a_module(tmp_path: Path) -> None:
    def state(module: kernel.Module, known: dict[str, str]) -> kernel.State:
        return kernel.state(module, known, root=str(tmp_path))

    folder = tmp_path / "lib/modules" / platform.release()
    assert "modprobe vsock; see CONFIG_VSOCKETS" in str(state(kernel.VSOCK, {}).cure)
    assert "install the package" in str(state(kernel.VSOCK, OPTIONS).cure)
    assert state(kernel.HYPERV, OPTIONS).cure == "boot a kernel with CONFIG_HYPERV_VSOCKETS=m"
    assert state(kernel.VMCI, OPTIONS).words == "this kernel has no vmw_vsock_vmci_transport"
    assert state(kernel.VHOST, OPTIONS) == (True, "vhost_vsock is built in", None)
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text("kernel/net/vmw_vsock/vsock.ko.xz: kernel/a.ko\nkernel/b-c.ko:\n")
    (folder / "modules.builtin").write_text("kernel/net/vmw_vsock/hv_sock.ko\n")
    assert state(kernel.VSOCK, OPTIONS) == (False, "vsock is not loaded", "as root: modprobe vsock")
    assert not state(kernel.Module("a", "CONFIG_A"), {"CONFIG_A": "m"}).words.startswith("a is not loaded")
    assert state(kernel.HYPERV, {}).words == "hv_sock is built in"
    (tmp_path / "sys/module/vsock").mkdir(parents=True)
    assert state(kernel.VSOCK, OPTIONS) == (True, "vsock is loaded", None)


def test_a_check_that_raises_is_an_answer() -> None:
    def check(error: Exception) -> Check:
        @asks("Well?", cure="do this")
        def function() -> Answer:
            raise error

        return function()

    for error in (OSError("alas"), HvsockError("alas"), ImportError("alas")):
        assert check(error) == ("Well?", "no: alas", False, "do this")
    with pytest.raises(ValueError, match="alas"):
        check(ValueError("alas"))
    assert yes("yes") == ("yes", True, None)
    assert no("no", "cure") == ("no", False, "cure")


def found_by(group: checks.Group) -> dict[str, Check]:
    return {one.question: one for one in (function() for function in (*group.checks, *group.optional))}


def test_each_transport_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel, "state", lambda module, known: kernel.State(False, f"no {module.name}", "load it"))
    for module, name in ((vsock, "VSOCK_DEVICE"), (availability, "VSOCK_DEVICE")):
        monkeypatch.setattr(module, name, str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HVSOCK_QEMU", str(tmp_path / "qemu"))
    for group in (vsock.GROUP, vms.GROUP):
        for check in found_by(group).values():
            assert not check.ok
            assert check.cure
    assert "its guests? no: no vmw_vsock_virtio_transport; no hv_sock; no vmw" in " ".join(
        f"{one.question} {one.found}" for one in found_by(vsock.GROUP).values()
    )
    assert not found_by(hybrid.GROUP)["Is there a VMM that has them?"].ok
    (tmp_path / "firecracker").write_text("")
    (tmp_path / "firecracker").chmod(0o700)
    assert found_by(hybrid.GROUP)["Is there a VMM that has them?"].found == "yes: firecracker"
    assert not found_by(hyperv.GROUP)["Is this Windows?"].ok
    monkeypatch.setattr(hyperv, "VMBUS", str(tmp_path))
    assert "HVSOCK_TRANSPORT=vsock" in str(found_by(hyperv.GROUP)["Is this Windows?"].cure)


def test_a_host_of_kernel_vsock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HVSOCK_TRANSPORT", "vsock")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernel, "state", lambda module, known: kernel.State(False, f"no {module.name}", "load it"))
    # a check that makes a socket would choose the class for the whole process
    kept = vsock.GROUP._replace(when_chosen=(vsock._guests,), of_use_when_chosen=())
    monkeypatch.setattr(checks, "GROUPS", (kept,))

    def found(text: str) -> dict[str, dict[str, Any]]:
        file = tmp_path / f"{os.urandom(4).hex()}.toml"  # each is read once
        monkeypatch.setenv("HVSOCK_CONFIG", str(file))
        file.write_text(f"[profiles.default]\n{text}", encoding="utf-8")
        return {one["question"]: one for one in invoke_json("doctor", code=1)["checks"] if one["needed"]}

    question = "Is it known which VM has which CID?"
    asked = found("guests = 'libvirt'\nlibvirt = 'test:///default'")
    assert "no: no vhost_vsock" in {one["found"] for one in asked.values()}
    assert "apt-get install libvirt-clients" in asked[question]["found"]
    assert asked[question]["cure"] == "have this work: virsh --connect test:///default list"
    asked = found("guests = 'table'\n[profiles.default.vms.web01]\npath = '/run/web01.sock'")
    assert asked[question]["cure"].endswith(".toml: profiles.default.vms")
    asked = found("guests = 'table'\n[profiles.default.vms.web01]\ncid = 7")
    assert asked[question]["found"] == "yes: 1 now, by table"


def test_a_host_without_a_broker_is_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(folder: str, method: str) -> None:
        raise NoFabricError("the host answers no calls")

    monkeypatch.setenv("HVSOCK_TRANSPORT", "vsock")
    monkeypatch.setattr(client, "call", call)
    monkeypatch.setattr(checks, "GROUPS", (vsock.GROUP._replace(checks=(), when_chosen=(), optional=()),))
    (found,) = invoke_json("doctor")["checks"]
    assert (found["ok"], found["needed"]) == (False, False)
    assert "services go by ports" in found["cure"]


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user: run the tests as root")
def test_a_fabric_that_is_closed_to_this_user(hvsock_fabric: EmbeddedFabric) -> None:
    os.chmod(hvsock_fabric.folder, 0o700)

    def look() -> dict[str, str | None]:
        found = [function() for function in (*fabric.GROUP.checks, *fabric.GROUP.when_chosen)]
        return {one.question: one.cure for one in found if not one.ok}

    assert in_child(look, User(NOBODY, NOBODY)) == {
        "Can it be used?": paths.LET_IN,
        "Does a broker answer?": paths.LET_IN,
        "Which partition does this process speak for?": paths.LET_IN,
        "Can the registry be read?": paths.LET_IN,
    }


def test_a_fabric_that_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "fabric"
    file.touch()
    monkeypatch.setenv("HVSOCK_DIR", str(file))
    found = {one["question"]: one for one in invoke_json("doctor", code=1)["checks"]}
    assert found["Is there a fabric?"]["cure"] == "move it away, or set HVSOCK_DIR"
    assert found["Are its folders closed to others?"]["ok"]


def test_builds_of_hyper_vs_guests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    question = "Does this build have Hyper-V's sockets?"
    monkeypatch.setattr(hyperv, "VMBUS", str(tmp_path / "none"))
    assert "neither Windows nor a guest" in found_by(hyperv.GROUP)[question].found
    monkeypatch.setattr(hyperv, "VMBUS", str(tmp_path))
    for release, ok, words in (
        ("4.9.1", False, "no: kernel 4.9.1 is older than Linux 4.14"),
        ("5.5.0", True, "came with Linux 5.6"),
        ("6.1.0-18-amd64", True, "yes: kernel 6.1.0-18-amd64, Linux 5.6 or newer"),
    ):
        monkeypatch.setattr(platform, "release", lambda release=release: release)
        check = found_by(hyperv.GROUP)[question]
        assert (check.ok, check.cure is None) == (ok, ok)
        assert words in check.found


def test_a_qemu_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    monkeypatch.setenv("HVSOCK_QEMU", str(program))
    for body, found in (("exit 3", "does not answer"), ("echo QEMU 4.0", "QEMU 4.0 has no vhost-user-vsock-pci")):
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o700)
        assert found in found_by(vms.GROUP)["Is QEMU there, with the device that hvsock needs?"].found


def test_the_chosen_transport_alone_counts(hvsock_fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = checks.Group("vsock", (lambda: Check("Is it?", "no", ok=False),))
    monkeypatch.setattr(checks, "GROUPS", (checks.fabric.GROUP, missing))
    assert invoke("doctor").stdout.endswith("vsock (not needed here):\n- Is it? no\n")
    monkeypatch.setattr(checks, "GROUPS", (missing._replace(name="fabric"),))
    found = invoke_json("doctor", code=1)
    assert found["checks"] == [
        {"group": "fabric", "needed": True, "question": "Is it?", "found": "no", "ok": False, "cure": None}
    ]


def test_the_report(hvsock_fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USER", "gwendolyn")
    monkeypatch.setenv("HOME", str(tmp_path / "gwendolyn"))
    monkeypatch.setenv("HVSOCK_DIR", str(tmp_path / "gwendolyn" / "none"))
    found: dict[str, Any] = invoke_json("doctor", "--report")
    assert {"hvsock", "python", "system", "transport", "qemu", "guests", "kernel_options", "checks"} <= set(found)
    text = invoke("doctor", "--report").stdout
    assert "| transport | fabric |" in text
    assert "HOME/none" in text
    for shown in (text, json.dumps(found)):
        assert "gwendolyn" not in shown
        assert str(tmp_path) not in shown
    assert text.count("```") == 4
    assert invoke("doctor", "--report", "-", "parent", "1", code=2).stdout == ""


def test_names_that_are_not_told() -> None:
    names = {"/home/ann": "HOME", "ann": "USER", "x": "USER", "root": "USER", "": "USER"}
    told = {"a": ["/home/ann/x of ann's; anna, root, web_ann_1, 1ann, xx"], "b": 3, "ann": None}
    assert report.without(told, names) == {
        "a": ["HOME/USER of USER's; anna, root, web_USER_1, 1ann, xx"],
        "b": 3,
        "ann": None,
    }


def test_short_names_of_this_machine_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "x")
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(socket, "gethostname", lambda: "pc.example.org")
    names = report.own_names()
    assert not {"x", "/", "pc"} & set(names)
    assert names["pc.example.org"] == "HOST"


def test_names_of_the_configuration_are_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        "profile = 'q7'\n[profiles.q7]\nqemu_users = ['bo', '107']\nlibvirt = 'qemu+ssh://gwen@blade.corp:22/system'",
        encoding="utf-8",
    )
    monkeypatch.setenv("HVSOCK_CONFIG", str(file))
    told = [
        str(files.settings().where).removeprefix(str(tmp_path)),  # which may have the name of the user
        "virsh failed at qemu+ssh://gwen@blade.corp:22/system: no host blade.corp",
        "of gwen and bo, 107",
    ]
    assert report.without(told, report.own_names()) == [
        "/config.toml: profiles.PROFILE",
        "virsh failed at LIBVIRT: no host LIBVIRT",
        "of USER and USER, 107",
    ]


def test_a_configuration_that_cannot_be_used(
    hvsock_fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[profiles.q7.vms.secret]\nport = 1", encoding="utf-8")
    monkeypatch.setenv("HVSOCK_CONFIG", str(file))
    found = {one["question"]: one for one in invoke_json("doctor", code=1)["checks"]}
    for question in ("Can the configuration be used?", "Is a transport chosen?"):
        assert "profiles.q7.vms.secret.port: there is no such key" in found[question]["found"]
        assert found[question]["needed"]
        assert not found[question]["ok"]
    made = invoke_json("doctor", "--report")
    assert made["configuration"] == made["transport"] == f"unknown: {report.UNUSABLE}"
    assert "secret" not in json.dumps(made)
    text = invoke("doctor", "--report").stdout
    assert f"| configuration | unknown: {report.UNUSABLE} |" in text
    assert "q7" not in text


def test_a_transport_that_is_none(hvsock_fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSOCK_TRANSPORT", "tcp")
    found = {one["question"]: one for one in invoke_json("doctor", code=1)["checks"]}
    assert found["Can the configuration be used?"]["ok"]
    assert "HVSOCK_TRANSPORT is 'tcp'; it may be: fabric" in found["Is a transport chosen?"]["found"]
    assert "HVSOCK_TRANSPORT is 'tcp'" in invoke_json("doctor", "--report")["transport"]
