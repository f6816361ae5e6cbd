"""`hvsock service export` and `import`: round trips by files, and all or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.helpers import hvsock, invoke, invoke_json

NAMES = ["HV Socket Demo", "Gr\u00fc\u00dfe \u4f60\u597d", 'back\\slash and "quotes"']


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fabric's folder with a few services, and the working folder."""
    monkeypatch.setenv("HVSOCK_DIR", str(tmp_path / "one"))
    monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        invoke("service", "register", name)
    invoke("service", "disable", NAMES[0], "--vm", "6b0e1a4f-6d44-4ab3-9a8e-1f2f3a4b5c6d")
    invoke("service", "access", NAMES[1], "--connect", "everyone")
    invoke("service", "enable", "Guest Service Interface", "--vm", "6b0e1a4f-6d44-4ab3-9a8e-1f2f3a4b5c6d")
    return tmp_path


def test_json_carries_everything(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke("service", "export", "all.json")
    before = invoke_json("service", "list")
    monkeypatch.setenv("HVSOCK_DIR", str(home / "two"))
    assert invoke("service", "import", "all.json", "--json").stdout.startswith('{\n  "added": 3,')
    after = invoke_json("service", "list")
    for one in (*before, *after):
        if one["flags"]:  # in-box services came with the second registry
            del one["created"], one["changed"]
    assert after == before
    assert (
        invoke("service", "import", "all.json", "--replace").stdout
        == f"0 added, 0 changed, {len(before)} skipped\n"
    )
    invoke("service", "import", "all.json", code=6)  # without --replace nothing that is registered is touched


def test_reg_carries_ids_and_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke("service", "export", "--format", "reg", "services.reg")
    data = Path("services.reg").read_bytes()
    assert data.startswith(b"\xff\xfe")
    assert "VM Session Service" not in data.decode("utf-16")
    before = {one["id"]: one["name"] for one in invoke_json("service", "list")}
    monkeypatch.setenv("HVSOCK_DIR", str(home / "two"))
    done = hvsock("service", "import", "-", "--json", input=data)
    assert json.loads(done.stdout) == {"added": 3, "changed": 0, "skipped": 0, "notes": []}
    assert {one["id"]: one["name"] for one in invoke_json("service", "list")} == before


def test_powershell_registers_the_services_and_is_not_imported(home: Path) -> None:
    text = invoke("service", "export", "--format", "ps1").stdout_bytes.decode("utf-8-sig")
    for name in NAMES:
        assert name in text
    invoke("service", "export", "services.ps1", "--inbox")
    assert "VM Session Service" in Path("services.ps1").read_text("utf-8-sig")
    invoke("service", "import", "services.ps1", code=2)


@pytest.mark.parametrize(("file", "start"), [("a.reg", b"\xff\xfeW\0"), ("a.PS1", b"\xef\xbb\xbf#"), ("a", b"{")])
def test_the_ending_says_the_format(home: Path, file: str, start: bytes) -> None:
    invoke("service", "export", file)
    assert Path(file).read_bytes().startswith(start)


def test_export_to_standard_output_is_json_and_the_bytes_of_the_file(home: Path) -> None:
    invoke("service", "export", "all.json")
    assert hvsock("service", "export").stdout == Path("all.json").read_bytes()
    assert hvsock("service", "export", "/dev/stdout").stdout == Path("all.json").read_bytes()


def test_export_replaces_a_file_and_keeps_a_link(home: Path) -> None:
    Path("real.json").write_text("old")
    Path("link.json").symlink_to("real.json")
    invoke("service", "export", "link.json")
    assert Path("link.json").is_symlink()
    assert Path("real.json").read_text().startswith("{")
    assert sorted(path.name for path in home.iterdir()) == ["link.json", "one", "real.json"]


def test_an_import_is_all_or_nothing(home: Path) -> None:
    invoke("service", "export", "all.json")
    value = json.loads(Path("all.json").read_text())
    before = invoke_json("service", "list")
    value["services"].insert(0, {"id": "6b0e1a4f-6d44-4ab3-9a8e-1f2f3a4b5c6d", "name": "new"})
    value["services"][-1]["name"] = "Another name"
    if value["services"][-1].get("flags"):
        value["services"].append(value["services"].pop(1))
    mine = next(one for one in value["services"] if one["name"] == NAMES[0])
    mine["name"] = "Renamed"
    Path("changed.json").write_text(json.dumps({**value, "services": [value["services"][0], mine]}))
    invoke("service", "import", "changed.json", code=6)
    assert invoke_json("service", "list") == before
    result = invoke("service", "import", "changed.json", "--replace")
    assert result.stdout == "1 added, 1 changed, 0 skipped\n"
    assert {one["name"] for one in invoke_json("service", "list")} >= {"new", "Renamed", NAMES[1]}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", 2),
        (b"{", 2),
        (b"{}", 2),
        (b"Windows Registry Editor Version 5.00\r\n[HKEY", 2),
        (b"\x89PNG", 2),
    ],
)
def test_what_is_no_export_is_refused(home: Path, data: bytes, code: int) -> None:
    Path("bad").write_bytes(data)
    invoke("service", "import", "bad", code=code)


def test_files_that_are_not_there(home: Path) -> None:
    assert "nonesuch" in invoke("service", "import", "nonesuch", code=5).stderr
    assert "none/such" in invoke("service", "export", "none/such.json", code=5).stderr


def test_what_was_passed_over_is_said(home: Path) -> None:
    text = 'Windows Registry Editor Version 5.00\r\n\r\n[HKEY_LOCAL_MACHINE\\SOFTWARE\\Other]\r\n"a"="b"\r\n'
    Path("other.reg").write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    result = invoke("service", "import", "other.reg")
    assert result.stdout == "0 added, 0 changed, 0 skipped\n"
    assert "passed over" in result.stderr
    assert invoke_json("service", "import", "other.reg")["notes"]
