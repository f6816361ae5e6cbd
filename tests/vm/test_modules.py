"""Which kernel modules something needs, and in what order."""

from __future__ import annotations

import lzma

import pytest

from hvsock.errors import StateError
from hvsock.vm import modules


def built(needs: str) -> bytes:
    """The part of an object file that says what a module needs."""
    return b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0retpoline=Y\0"


FILES = {
    "/k/virtio_pci.ko": built("virtio,virtio-ring"),
    "/k/virtio.ko": built(""),
    "/k/virtio-ring.ko.xz": lzma.compress(built("virtio")),
    "/k/one.ko": built("other"),
    "/k/other.ko": built("one"),
    "/k/lost.ko": built("nowhere"),
}
PATHS = {modules.name_of(path) or "": path for path in FILES}


def order(*wanted: str, built_in: tuple[str, ...] = ()) -> list[str]:
    return [one.name for one in modules.in_order(wanted, PATHS, built_in, FILES.__getitem__)]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/lib/vsock.ko", "vsock"),
        ("virtio-rng.ko.xz", "virtio_rng"),
        ("modules.dep", None),
        ("vsock.ko.gz", None),
    ],
)
def test_names(path: str, name: str | None) -> None:
    assert modules.name_of(path) == name


def test_each_comes_once_and_after_what_it_needs() -> None:
    assert order("virtio_pci", "virtio_ring") == ["virtio", "virtio_ring", "virtio_pci"]


def test_what_is_built_in_is_left_out() -> None:
    assert order("virtio_pci", built_in=("virtio",)) == ["virtio_ring", "virtio_pci"]
    assert order("virtio", built_in=("virtio",)) == []


def test_modules_that_need_each_other_end() -> None:
    assert order("one") == ["other", "one"]


def test_compressed_modules_come_unpacked() -> None:
    (_, found) = modules.in_order(["virtio_ring"], PATHS, (), FILES.__getitem__)
    assert (found.data, found.needs) == (built("virtio"), ("virtio",))


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(StateError, match="no module nowhere"):
        order("lost")


@pytest.mark.parametrize(
    ("path", "data"),
    [("/k/a.txt", built("")), ("/k/a.ko", b"depends"), ("/k/a.ko.xz", b"not compressed"), ("/k/a.ko.xz", b"")],
)
def test_what_is_no_module(path: str, data: bytes) -> None:
    with pytest.raises(StateError, match="a"):
        modules.parse(path, data)
