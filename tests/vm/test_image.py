"""The default guest: made twice it is the same, and a change of hvsock makes the smallest part again."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest

from hvsock.errors import NotFoundError, StateError

assert sys.platform == "linux"

from hvsock.vm import image, layers, software
from hvsock.vm.image import Image
from tests.vm.test_cpio import read


def made_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Image, list[str]]:
    """The image in a folder of its own, and what was done for it."""
    monkeypatch.setenv("HVSOCK_IMAGES", str(folder))
    done: list[str] = []
    return image.ensure(progress=done.append), done


def fresh(source: str, target: Path) -> Path:
    """A folder for images that has the packages and the recipes of another, and no layer."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("layers", "lists-*", "new-*"))
    return target


def keeping(folder: Path, guest: Image, *numbers: int) -> None:
    """Have some of an image's layers in a folder, to be quick."""
    (folder / "layers").mkdir()
    for number in numbers:
        layer = Path(guest.layers[number].path)
        for path in layer.parent.glob(f"{layer.stem}.*"):
            shutil.copy(path, folder / "layers")


def in_child(folder: str) -> None:
    os.environ["HVSOCK_IMAGES"] = folder
    image.ensure()


@pytest.mark.soak
def test_made_twice_it_is_the_same_and_kept(guest: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fresh(layers.images_folder(), tmp_path / "images")
    again, done = made_in(folder, monkeypatch)
    assert done == [f"making the layer {name}" for name in ("userland", "kernel", "requirements", "hvsock")]
    assert again.facts["key"] == guest.facts["key"]
    for one, other in zip(guest.layers, again.layers, strict=True):
        assert Path(one.path).read_bytes() == Path(other.path).read_bytes()
    assert Path(again.kernel).read_bytes() == Path(guest.kernel).read_bytes()
    assert made_in(folder, monkeypatch) == (again, [])

    checksums = software.own_checksums()
    monkeypatch.setattr(software, "own_checksums", lambda: {**checksums, "novelty.py": "1"})
    changed, done = made_in(folder, monkeypatch)
    assert done == ["making the layer hvsock"]
    assert changed.layers[:-1] == again.layers[:-1]


@pytest.mark.soak
def test_two_make_it_at_once(guest: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fresh(layers.images_folder(), tmp_path / "images")
    keeping(folder, guest, 0, 1)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=in_child, args=(str(folder),)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
        child.close()
    found, done = made_in(folder, monkeypatch)
    assert done == []
    assert found.facts["key"] == guest.facts["key"]
    assert not [name for name in os.listdir(folder) if name.startswith("new-")]


def test_what_is_in_it(guest: Image) -> None:
    userland, kernel, requirements, own = (read(Path(layer.path).read_bytes()) for layer in guest.layers)
    assert userland["dev/console"].device == (5, 1)
    assert userland["init"].data == b"bin/busybox"
    assert "usr/lib/python3.11/__pycache__/socket.cpython-311.pyc" in userland
    assert not [name for name in userland if name.startswith(("usr/share/", "usr/lib/python3.11/test/"))]
    (modules,) = (name for name in kernel if name.endswith("/modules.dep"))
    assert b"vsock.ko:\n" in kernel[modules].data
    assert b"vmw_vsock_virtio_transport" in kernel["etc/hvsock/modules"].data
    site = "usr/lib/python3/dist-packages"
    names = (
        "click/__init__.py",
        "rich/console.py",
        "grpclib/server.py",
        "asyncssh/sftp.py",
        "typing_extensions.py",
    )
    assert {f"{site}/{name}" for name in names} <= set(requirements)
    packages = {name.removeprefix(f"{site}/").partition("/")[0] for name in requirements}
    assert not packages & {"qemu", "starlette", "uvicorn", "anyio", "pygments", "markdown_it", "cffi", "tests"}
    compiled = sorted(name.rpartition("/")[2] for name in (*requirements, *own) if name.endswith((".so", ".pyd")))
    assert compiled == ["_cffi_backend.cpython-311-x86_64-linux-gnu.so", "_message.abi3.so", "_rust.abi3.so"]
    assert userland["usr/lib/os-release"].data.startswith(b'PRETTY_NAME="Debian GNU/Linux 12')
    cached = own[f"{site}/hvsock/__pycache__/__init__.cpython-311.pyc"].data
    assert int.from_bytes(cached[4:8], "little") == 0b01  # by hash, which is not looked at
    assert str(Path(software.__file__).parents[2]).encode() not in cached
    assert f"{site}/hvsock/__init__.py".encode() in cached


def test_packages_of_another_version_are_asked_for(
    guest: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an older hvsock wrote down of Debian's packages is not what this one needs."""
    store = layers.Store(str(tmp_path / "images"))
    before = json.loads(Path(layers.images_folder(), "recipe-6.12.json").read_bytes())
    assert image._remembered(store, "6.12") is None
    store.write("recipe-6.12.json", before)
    assert image._remembered(store, "6.12") is not None
    store.write("recipe-6.12.json", [before[0][:-1], before[1]])
    assert image._remembered(store, "6.12") is None


def test_an_initramfs_has_all_layers_and_more(guest: Image, tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    guest.write_initrd(str(path), [b"and ", b"more"], [b" after it"])
    whole = b"".join(Path(layer.path).read_bytes() for layer in guest.layers)
    assert path.read_bytes() == whole + b"and more after it"
    assert guest.facts["bytes"] == len(whole)


def test_an_unknown_kernel() -> None:
    with pytest.raises(NotFoundError, match=r"6\.1, 6\.12"):
        image.ensure("2.6")


def test_a_machine_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(StateError, match="--kernel"):
        image.ensure()


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HVSOCK_IMAGES", str(tmp_path / "file" / "images"))
    with pytest.raises(StateError, match="HVSOCK_IMAGES"):
        image.ensure()


def test_where_images_are() -> None:
    assert layers.images_folder({"HVSOCK_IMAGES": "/some/where"}) == "/some/where"
    assert layers.images_folder({}).endswith("/hvsock/images")
