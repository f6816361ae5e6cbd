"""The default guest: a cloud kernel of Debian, and an initramfs with busybox, Python and hvsock in it.

The initramfs is a row of archives, made and kept one by one, so that a change of hvsock makes the smallest of
them again. They are not compressed: that starts fastest, also where the processor is emulated.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from hvsock._version import __version__
from hvsock.errors import NotFoundError, StateError

from . import kernel, software, userland
from .cpio import Entry
from .debian import Archive, Package, Progress
from .layers import Layer, Store, images_folder, key_of
from .wheels import Wheels

if sys.platform != "linux":
    raise ImportError("the guest image is made by apt and dpkg")

_BUILDERS: Final = ("cpio.py", "modules.py", "userland.py", "software.py", "wheels.py", "kernel.py", "image.py")
"""The modules on whose text the contents of layers depend."""
_KERNEL = ".kernel"
_Made = tuple[Iterable[Entry], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Image:
    """A guest that is ready to start.

    Attributes:
        series: the kernel's series, like "6.12".
        kernel: the kernel's file.
        layers: the archives of the initramfs, in their order.
    """

    series: str
    kernel: str
    layers: tuple[Layer, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """What it is made of, for `--json`."""
        return {
            "series": self.series,
            "kernel": self.kernel,
            "layers": [{"path": layer.path, **layer.facts} for layer in self.layers],
            "key": key_of([layer.facts["sha256"] for layer in self.layers]),
            "bytes": sum(layer.facts["bytes"] for layer in self.layers),
        }

    def write_initrd(self, path: str, *more: Iterable[bytes]) -> None:
        """Write the initramfs to `path`.

        Args:
            path: a file, which is replaced.
            more: the pieces of more archives, whose files go over those of the image.
        """
        with open(path, "wb") as file:
            for layer in self.layers:
                with open(layer.path, "rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
            for archive in more:
                file.writelines(archive)


def ensure(
    series: str = userland.DEFAULT_KERNEL, *, renew: bool = False, progress: Progress = lambda _: None
) -> Image:
    """The image with a kernel of `series`; what is not there of it is made.

    Two processes may do so at once: one of them makes it.

    Args:
        series: one of :data:`userland.KERNELS`.
        renew: look whether Debian has newer packages.
        progress: is told what is done.

    Raises:
        NotFoundError: there is no such series.
        StateError: it cannot be made; the text says what to do.
    """
    if series not in userland.KERNELS:
        raise NotFoundError(f"there is no kernel {series!r}: choose one of {', '.join(userland.KERNELS)}")
    if platform.machine() != "x86_64":
        raise StateError("the default guest is made for x86-64; start VMs with --kernel and --initrd of your own")
    store = Store(images_folder())
    if not renew and (found := _find(store, series)):
        return found
    with store.locked():
        return (None if renew else _find(store, series)) or _make(store, series, renew, progress)


class _Recipe(NamedTuple):
    """What a guest is made of.

    Attributes:
        packages: the packages of the userland.
        kernel: the package of the kernel.
    """

    packages: tuple[Package, ...]
    kernel: Package

    def keys(self) -> dict[str, str]:
        """The keys of the layers by name, in the order in which the layers stand."""
        checksums = software.own_checksums()
        builders = [checksums[f"vm/{name}"] for name in _BUILDERS]
        rootfs = {name: checksum for name, checksum in checksums.items() if name.startswith("vm/rootfs/")}
        debian = [builders, [one.sha256 for one in self.packages]]
        return {
            "userland": key_of(debian, rootfs),
            "kernel": key_of(builders, self.kernel.sha256),
            "requirements": key_of(debian, software.requirements()),
            "hvsock": key_of(debian, checksums),
        }


def _find(store: Store, series: str) -> Image | None:
    """The image, if all of it is there."""
    recipe = _remembered(store, series)
    if recipe is None:
        return None
    keys = recipe.keys()
    found = [layer for name, key in keys.items() if (layer := store.find(name, key))]
    path = store.path("kernel", keys["kernel"], _KERNEL)
    return Image(series, path, tuple(found)) if len(found) == len(keys) else None


def _make(store: Store, series: str, renew: bool, progress: Progress) -> Image:
    """Make what is not there; the caller holds the lock."""
    archive = Archive(store.packages, progress)
    recipe = None if renew else _remembered(store, series)
    if recipe is None:
        progress("asking apt for versions")
        recipe = _resolved(archive, series)
        store.write(_recipe_file(series), recipe)
    keys = recipe.keys()
    archive.fetch([*recipe.packages, recipe.kernel])
    with tempfile.TemporaryDirectory(prefix="new-", dir=store.folder) as folder:
        work = _Work(folder, archive, recipe, store, keys["kernel"], Wheels(store.wheels, progress))
        layers = []
        for name, key in keys.items():
            layer = store.find(name, key)
            if layer is None:
                progress(f"making the layer {name}")
                layer = store.make(name, key, *work.makers[name]())
            layers.append(layer)
    return Image(series, store.path("kernel", keys["kernel"], _KERNEL), tuple(layers))


class _Work:
    """Makes what layers consist of, in a folder for the time being."""

    def __init__(
        self, folder: str, archive: Archive, recipe: _Recipe, store: Store, kernel_key: str, wheels: Wheels
    ) -> None:
        self._folder = folder
        self._wheels = wheels
        self._archive = archive
        self._recipe = recipe
        self._kernel = store.path("kernel", kernel_key, _KERNEL)
        self.makers: dict[str, Callable[[], _Made]] = {
            "userland": self._userland_layer,
            "kernel": self._kernel_layer,
            "requirements": self._requirements_layer,
            "hvsock": self._hvsock_layer,
        }

    @functools.cached_property
    def _userland(self) -> userland.Userland:
        return userland.Userland(self._new("userland"), self._archive, self._recipe.packages)

    def _userland_layer(self) -> _Made:
        return self._userland.entries(), {"packages": {one.name: one.version for one in self._recipe.packages}}

    def _kernel_layer(self) -> _Made:
        root, package = self._new("kernel"), self._recipe.kernel
        self._archive.unpack([package], root)
        with open(userland.kernel_file(root), "rb") as packed, open(self._kernel + ".new", "wb") as file:
            file.write(kernel.unpacked(packed.read()))
        os.replace(self._kernel + ".new", self._kernel)
        return userland.module_entries(root), {"packages": {package.name: package.version}}

    def _requirements_layer(self) -> _Made:
        entries = self._compiled("requirements", lambda site: software.copy_requirements(site, self._wheels))
        return entries, {"python": software.requirements()}

    def _hvsock_layer(self) -> _Made:
        return self._compiled("hvsock", software.copy_own), {"python": {"hvsock": __version__}}

    def _compiled(self, name: str, copy: Callable[[str], None]) -> Iterator[Entry]:
        root = self._new(name)
        site = os.path.join(root, software.SITE)
        copy(site)
        self._userland.compile(site, root)
        return userland.from_folder(root)

    def _new(self, name: str) -> str:
        path = os.path.join(self._folder, name)
        os.mkdir(path)
        return path


def _resolved(archive: Archive, series: str) -> _Recipe:
    meta = userland.KERNELS[series]
    found = archive.resolve([*userland.PACKAGES, meta])
    (name,) = (one for one in found.pop(meta).needs if one.startswith("linux-image-"))
    return _Recipe(tuple(found.values()), archive.resolve([name])[name])


def _remembered(store: Store, series: str) -> _Recipe | None:
    """The recipe that was used last; None where there is none, or one of another version."""
    try:
        packages, kernel = store.read(_recipe_file(series))
        recipe = _Recipe(tuple(Package(*one) for one in packages), Package(*kernel))
    except (TypeError, ValueError):
        return None
    return recipe if tuple(one.name for one in recipe.packages) == userland.PACKAGES else None


def _recipe_file(series: str) -> str:
    return f"recipe-{series}.json"
