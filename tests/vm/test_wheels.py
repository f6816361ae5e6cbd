"""Wheels for the guest's Python: which ones it takes, where they come from, and damaged ones."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import sys
import zipfile
from pathlib import Path

import pytest

from hvsock.errors import StateError

assert sys.platform == "linux"

from hvsock.vm import software, wheels
from hvsock.vm.wheels import Wheels, fits

FILES = {
    "one/__init__.py": b"x = 1\n",
    "one/_fast.abi3.so": b"\x7fELF",
    "one-1.5.dist-info/METADATA": b"Name: one\n",
}
TAG = "cp310-abi3-manylinux_2_34_x86_64"


def wheel(folder: Path, name: str, files: dict[str, bytes], version: str = "1.5", tag: str = TAG) -> Path:
    """A wheel in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
    }
    lines = [
        f"{one},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"
        for one, data in files.items()
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for one, data in files.items():
            archive.writestr(one, data)
        archive.writestr(f"{info}/RECORD", "".join(lines) + f"{info}/RECORD,,\n")
    return path


def kept_wheel(folder: Path, name: str, files: dict[str, bytes], version: str = "1.5") -> Path:
    """A wheel in `folder` as if it had been fetched."""
    return wheel(folder, name, files, version).rename(folder / f"{name}-{version}-cp311.whl")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the index that pip has."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("tag", "does"),
    [
        ("py3-none-any", True),
        ("py2.py3-none-any", True),
        ("cp311-cp311-manylinux_2_17_x86_64", True),
        ("cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64", True),
        ("cp311-abi3-manylinux_2_36_x86_64", True),
        ("cp37-abi3-manylinux1_x86_64", True),
        ("cp311-abi3-manylinux_2_37_x86_64", False),
        ("cp312-abi3-manylinux_2_17_x86_64", False),
        ("cp312-cp312-manylinux_2_17_x86_64", False),
        ("cp310-cp310-manylinux_2_17_x86_64", False),
        ("cp311-cp311-manylinux_2_17_aarch64", False),
        ("cp311-cp311-musllinux_1_2_x86_64", False),
        ("cp311-cp311-linux_x86_64", False),  # made here, with whatever libraries are here
        ("cp311-cp311-macosx_11_0_arm64", False),
        ("nonsense", False),
    ],
)
def test_what_runs_in_the_guest(tag: str, does: bool) -> None:
    assert fits([tag]) is does
    assert fits(["cp39-cp39-win_amd64", tag]) is does


def test_a_wheel_is_fetched_once(index: Path, tmp_path: Path) -> None:
    fetched = wheel(index, "one", FILES)
    wheel(index, "one", {"one/new.py": b""}, version="1.6")
    wheel(index, "one", {"one/other.py": b""}, tag="cp312-cp312-manylinux_2_17_x86_64")
    done: list[str] = []
    store = Wheels(str(tmp_path / "wheels"), done.append)
    found = dict(store.files("one", "1.5"))
    assert found["one/_fast.abi3.so"] == b"\x7fELF"
    assert not [name for name in found if "new" in name or "other" in name]
    fetched.unlink()
    assert dict(store.files("one", "1.5")) == found
    assert done == ["fetching one 1.5 for the guest's Python"]
    assert len(os.listdir(tmp_path / "wheels")) == 1


def test_a_wheel_that_cannot_be_had(index: Path, tmp_path: Path) -> None:
    wheel(index, "one", FILES, tag="cp312-cp312-manylinux_2_17_x86_64")
    with pytest.raises(
        StateError, match=r"the guest needs one==1\.5 for Python 3\.11.*No matching.*network"
    ) as error:
        list(Wheels(str(tmp_path / "wheels"), print).files("one", "1.5"))
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path / "wheels") == []


def test_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_pip", tuple)
    with pytest.raises(StateError, match="apt-get install -y python3-pip"):
        list(Wheels(str(tmp_path / "wheels"), print).files("one", "1.5"))


def test_an_environment_without_pip_takes_that_of_new_ones(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    if not wheels._pip():
        pytest.skip("this Python has no pip for new environments; on Debian: apt-get install -y python3-venv")
    wheel(index, "one", FILES)
    assert dict(Wheels(str(tmp_path / "wheels"), print).files("one", "1.5"))


@pytest.mark.parametrize("how", ["changed", "cut", "no wheel"])
def test_a_damaged_wheel_is_removed(how: str, tmp_path: Path) -> None:
    kept = kept_wheel(tmp_path, "one", FILES)
    store = Wheels(str(tmp_path), print)
    assert dict(store.files("one", "1.5"))["one/__init__.py"] == b"x = 1\n"
    data = kept.read_bytes()
    damaged = {"changed": data.replace(b"x = 1", b"x = 2"), "cut": data[:100], "no wheel": b"hello"}
    kept.write_bytes(damaged[how])
    with pytest.raises(StateError, match=r"wheel of one 1\.5 was damaged, try again"):
        list(store.files("one", "1.5"))
    assert not kept.exists()


def test_a_file_that_is_not_what_the_list_says(tmp_path: Path) -> None:
    path = wheel(tmp_path, "one", FILES)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["one/__init__.py"] = b"x = 2\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=r"one/__init__\.py has not the checksum"):
        list(wheels.contents(str(path)))


def test_what_does_not_run_in_the_guest_comes_from_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where this Python is a newer one; nothing of a wheel gets out of the folder."""
    version = importlib.metadata.version("cffi")
    files = {
        "_cffi_backend.cpython-311-x86_64-linux-gnu.so": b"\x7fELF made for the guest",
        "cffi/api.py": b"",
        "../_cffi_backend.py": b"",
        "/_cffi_backend.py": b"",
    }
    kept_wheel(tmp_path / "wheels", "cffi", files, version)
    monkeypatch.setattr(software, "COMPILED", frozenset({"cffi"}))
    monkeypatch.setattr(software, "fits", lambda tags: False)
    target = tmp_path / "guest" / "site"
    software.copy_requirements(str(target), Wheels(str(tmp_path / "wheels"), print))
    made = target / "_cffi_backend.cpython-311-x86_64-linux-gnu.so"
    assert made.read_bytes() == b"\x7fELF made for the guest"
    assert not (target / "cffi").exists()
    assert os.listdir(tmp_path / "guest") == ["site"]
    assert (target / "grpclib" / "server.py").exists()
