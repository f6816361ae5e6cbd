"""`hvsock partition` and `hvsock run`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from hvsock.fabric.embedded import EmbeddedFabric

assert sys.platform == "linux"

from tests.cli.helpers import environment, hvsock, invoke, invoke_json


def test_create_list_remove(hvsock_fabric: EmbeddedFabric) -> None:
    web = hvsock("partition", "create", "Web 01", "--kind", "vm").stdout.decode().strip()
    box = invoke_json(
        "partition", "create", "box", "--kind", "container", "--parent", "web 01", "--group", "g", "--cid", "77"
    )
    assert box == {
        "name": "box",
        "id": box["id"],
        "kind": "container",
        "parent": "Web 01",
        "group": "g",
        "cid": 77,
        "folder": os.path.join(hvsock_fabric.folder, "partitions", box["id"]),
    }
    found = invoke_json("partition", "list")
    assert [(one["name"], one["kind"], one["parent"]) for one in found] == [
        ("host", "host", None),
        ("Web 01", "vm", "host"),
        ("box", "container", "Web 01"),
    ]
    assert found[1]["id"] == web
    assert [one["cid"] for one in found] == [2, 3, 77]
    lines = invoke("partition", "list").stdout.splitlines()
    assert lines[0].split() == ["PARTITION", "KIND", "GROUP", "CID", "ID"]
    assert [line.rstrip()[:9].rstrip() for line in lines[1:]] == ["host", "  Web 01", "    box"]
    assert "box" in invoke("partition", "remove", "web 01", code=2).stderr
    assert invoke("partition", "remove", box["id"]).output == ""
    assert invoke_json("partition", "remove", "WEB 01")["id"] == web
    assert len(invoke_json("partition", "list")) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["create", "parent"], 2),
        (["create", "host"], 2),
        (["create", ""], 2),
        (["create", "web01"], 6),
        (["create", "a", "--parent", "nonesuch"], 5),
        (["create", "a", "--id", "nonsense"], 2),
        (["create", "a", "--owner", "no such user"], 5),
        (["remove", "nonesuch"], 5),
        (["remove", "host"], 2),
    ],
)
def test_what_goes_wrong(hvsock_fabric: EmbeddedFabric, arguments: list[str], code: int) -> None:
    hvsock_fabric.create_partition("web01")
    invoke("partition", *arguments, code=code)
    assert len(invoke_json("partition", "list")) == 2


def test_another_partition_than_the_host_is_refused(hvsock_fabric: EmbeddedFabric) -> None:
    web = hvsock_fabric.create_partition("web01")
    for arguments in (["create", "a"], ["remove", "web01"], ["list"]):
        invoke("partition", *arguments, code=4, env={"HVSOCK_PARTITION": web.folder})


SHOW = "import json, os; print(json.dumps([os.environ['HVSOCK_DIR'], os.environ['HVSOCK_PARTITION']]))"


def test_run_in_a_partition_by_name_and_by_id(hvsock_fabric: EmbeddedFabric) -> None:
    web = hvsock_fabric.create_partition("Web 01")
    for name in ("web 01", str(web.id), str(web.id).upper()):
        done = hvsock("run", "--partition", name, "--", sys.executable, "-c", SHOW)
        assert json.loads(done.stdout) == [hvsock_fabric.folder, web.folder]
    for name in ("host", str(hvsock_fabric.host.id)):
        done = hvsock("run", "--partition", name, sys.executable, "-c", SHOW)
        assert json.loads(done.stdout) == [hvsock_fabric.folder, hvsock_fabric.host.folder]


def test_run_ends_as_the_command_does(hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> None:
    hvsock("run", "--partition", "host", "--", "sh", "-c", "kill -9 $$", code=-9)
    done = hvsock("run", "--partition", "host", "--", "sh", "-c", "cat; exit 7", input=b"through", code=7)
    assert done.stdout == b"through"
    plain = tmp_path / "plain"
    plain.write_text("no program")
    assert hvsock("run", "--partition", "host", "--", str(plain), code=126).stderr.count(b"\n") == 1
    assert hvsock("run", "--partition", "host", "--", "no such command", code=127).stderr.count(b"\n") == 1


def test_run_leaves_sigpipe_as_programs_expect_it(hvsock_fabric: EmbeddedFabric) -> None:
    hvsock("run", "--partition", "host", "--", "sh", "-c", "kill -PIPE $$; exit 3", code=-13)


def test_run_in_no_partition(hvsock_fabric: EmbeddedFabric) -> None:
    invoke("run", "--partition", "nonesuch", "true", code=5)
    invoke("run", "--partition", "6b0e1a4f-6d44-4ab3-9a8e-1f2f3a4b5c6d", "true", code=5)
    invoke("run", "--partition", "parent", "true", code=5)


def test_run_needs_no_broker(tmp_path: Path) -> None:
    folder = str(tmp_path / "kept")
    with EmbeddedFabric(folder) as fabric:
        web = fabric.create_partition("web01")
    done = hvsock(
        "run",
        "--partition",
        "WEB01",
        sys.executable,
        "-c",
        SHOW,
        env=environment(HVSOCK_DIR=folder, HVSOCK_PARTITION=""),
    )
    assert json.loads(done.stdout) == [folder, web.folder]
