"""`hvsock vm`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvsock.fabric.embedded import EmbeddedFabric

assert sys.platform == "linux"

from hvsock.vm import control
from hvsock.vm.image import Image
from hvsock.vm.runs import Run, State, all_runs
from tests.cli.helpers import ended, hvsock, invoke, invoke_json, started
from tests.vm.support import PATIENCE, guest_image, needs_qemu, wait_for_line, wait_until


@pytest.fixture(scope="module")
def guest() -> Image:
    return guest_image()


@pytest.fixture(autouse=True)
def no_vm_is_left(hvsock_fabric: EmbeddedFabric) -> Iterator[None]:
    """Ends what a test that failed left running."""
    yield
    for one in all_runs(hvsock_fabric.folder):
        run = Run(hvsock_fabric.folder, one.name)
        if one.state is not State.STOPPED:
            control.ask(run, "kill")
            run.wait_for_end()


def test_nothing_runs(hvsock_fabric: EmbeddedFabric) -> None:
    assert invoke_json("vm", "list") == []
    assert len(invoke("vm", "list").stdout.splitlines()) == 1
    for action in ("stop", "pause", "resume", "reset", "console", "rm"):
        assert "web01" in invoke("vm", action, "web01", code=5).stderr


def test_the_image(guest: Image, tmp_path: Path) -> None:
    found = json.loads(hvsock("vm", "image", "--json", "--output", str(tmp_path / "new")).stdout)
    assert found["series"] == "6.12"
    assert len(found["layers"]) == 4
    assert os.path.getsize(found["output"]["initrd"]) == found["bytes"]
    assert (tmp_path / "new" / "kernel").read_bytes() == Path(found["kernel"]).read_bytes()
    lines = invoke("vm", "image").stdout.splitlines()
    assert "busybox-static" in lines[0]
    assert lines[-1].startswith("kernel 6.12, ")


@needs_qemu
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--memory", "1"], 2, "256"),
        (["--cpus", "0"], 2, "1"),
        (["--kernel", "/nonesuch"], 5, "no file /nonesuch"),
        (["--initrd", __file__], 2, "--kernel"),
        (["--kernel", __file__, "--run", "true"], 2, "default guest"),
        (["--disk", __file__, "--overlay", "/tmp"], 2, "default guest"),
        (["--wait", "--foreground"], 2, "cannot wait"),
        (["--overlay", "/nonesuch"], 2, "no folder"),
        (["--data-disk", "/nonesuch"], 5, "no file /nonesuch"),
        (["--data-disk", __file__] * 17, 2, "16 data disks at most"),
        (["--group", "g"], 2, "is in group (none)"),
    ],
)
def test_what_cannot_be_started(hvsock_fabric: EmbeddedFabric, arguments: list[str], code: int, text: str) -> None:
    hvsock_fabric.create_partition("web01")
    assert text in invoke("vm", "start", "web01", *arguments, code=code).stderr
    assert invoke_json("vm", "list") == []


@needs_qemu
def test_names_that_are_taken_or_none(hvsock_fabric: EmbeddedFabric) -> None:
    hvsock_fabric.create_partition("box", kind="container")
    assert "no VM" in invoke("vm", "start", "box", code=2).stderr
    invoke("vm", "start", "a b", code=2)


def test_no_qemu(hvsock_fabric: EmbeddedFabric) -> None:
    result = invoke("vm", "start", "web01", code=5, env={"HVSOCK_QEMU": "nonesuch"})
    assert "apt-get install" in result.stderr


@needs_qemu
def test_no_fabric(tmp_path: Path) -> None:
    env = {"HVSOCK_DIR": str(tmp_path), "HVSOCK_PARTITION": None}
    invoke("vm", "start", "web01", code=3, env=env)


@needs_qemu
def test_from_start_to_rm(hvsock_fabric: EmbeddedFabric, guest: Image) -> None:
    command = "echo hello from $(hostname); cat"
    words = ("--accel", "auto", "--group", "g", "--run", command, "--wait", "--json")
    done = hvsock("vm", "start", "web01", *words, seconds=PATIENCE)
    found = json.loads(done.stdout)
    if found["accelerator"] == "tcg":
        assert done.stderr.count(b"no KVM") == 1
    assert (found["name"], found["state"], found["ready"], found["kernel"]) == ("web01", "running", True, "6.12")
    partition = invoke_json("partition", "list")[1]
    assert (partition["name"], partition["id"], partition["group"]) == ("web01", found["vm_id"], "g")
    assert partition["cid"] == found["cid"]
    assert b"runs already" in hvsock("vm", "start", "web01", "--accel", "tcg", code=1).stderr
    assert "stop it first" in invoke("vm", "rm", "web01", code=1).stderr
    assert invoke_json("vm", "pause", "web01")["state"] == "paused"
    assert invoke("vm", "list").stdout.splitlines()[1].split()[3] == "paused"
    assert invoke_json("vm", "resume", "web01")["state"] == "running"
    wait_for_line(Run(hvsock_fabric.folder, "web01"), "hello from web01")
    typed = hvsock("vm", "console", "web01", input=b"echo $((6 * 7))\n", seconds=PATIENCE)
    assert b"42" in typed.stdout
    assert invoke_json("vm", "stop", "web01")["reason"] == "stopped"
    (listed,) = invoke_json("vm", "list")
    assert (listed["state"], listed["pid"]) == ("stopped", 0)
    assert invoke_json("vm", "rm", "web01")["name"] == "web01"
    assert invoke_json("vm", "list") == []
    assert [one["name"] for one in invoke_json("partition", "list")] == ["host"]


@needs_qemu
def test_in_the_foreground_with_a_kernel_of_ones_own(hvsock_fabric: EmbeddedFabric, guest: Image) -> None:
    options = ["--accel", "tcg", "--kernel", guest.kernel, "--append", "console=ttyS0 panic=0", "--memory", "300"]
    with started("vm", "start", "own", "--foreground", *options) as process:
        run = Run(hvsock_fabric.folder, "own")
        wait_until(lambda: [one["state"] for one in invoke_json("vm", "list")] == ["running"])
        record = run.record()
        assert (record.pid, record.memory, record.kernel) == (process.pid, 300, os.path.basename(guest.kernel))
        wait_for_line(run, "Linux version")
        process.send_signal(signal.SIGTERM)
        invoke("vm", "stop", "own", "--now")
        assert ended(process)[0] == 0


@needs_qemu
def test_rm_with_force(hvsock_fabric: EmbeddedFabric, guest: Image) -> None:
    invoke("vm", "start", "own", "--accel", "tcg", "--kernel", guest.kernel, "--append", "console=ttyS0 panic=0")
    invoke("vm", "rm", "own", "--force")
    assert invoke_json("vm", "list") == []
