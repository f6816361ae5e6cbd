"""Kernel modules of a Debian kernel package: which ones something needs, and in what order they load (pure)."""

from __future__ import annotations

import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from hvsock.errors import StateError

_SUFFIX = re.compile(r"\.ko(\.xz)?$")
_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")
MAX_MODULE_BYTES: Final = 64 << 20
"""Most bytes of a module, unpacked: the largest ones of Debian's kernels have a tenth of that."""


class Module(NamedTuple):
    """A kernel module.

    Attributes:
        name: its name, with underscores.
        data: the object file, not compressed.
        needs: the names of the modules that it needs itself.
    """

    name: str
    data: bytes
    needs: tuple[str, ...]


def name_of(path: str) -> str | None:
    """The name of the module in the file `path`; None where that is no module's file."""
    base = path.rsplit("/", 1)[-1]
    name, count = _SUFFIX.subn("", base)
    return name.replace("-", "_") if count else None


def parse(path: str, data: bytes) -> Module:
    """The module in the file `path`.

    Raises:
        StateError: that is no module.
    """
    name = name_of(path)
    if name is None:
        raise StateError(f"{path} is no kernel module")
    if path.endswith(".xz"):
        try:
            data = lzma.LZMADecompressor().decompress(data, MAX_MODULE_BYTES)
        except lzma.LZMAError as error:
            raise StateError(f"{path} cannot be unpacked: {error}") from None
    found = _DEPENDS.search(data)
    if found is None:
        raise StateError(f"{path} does not say which modules it needs")
    return Module(name, data, tuple(one.replace("-", "_") for one in found[1].decode().split(",") if one))


def in_order(
    wanted: Iterable[str], paths: Mapping[str, str], built_in: Iterable[str], read: Callable[[str], bytes]
) -> Iterator[Module]:
    """`wanted` and the modules that they need, each after those that it needs.

    Args:
        wanted: names of modules; those that are built into the kernel are left out.
        paths: the paths of the kernel's modules, by name.
        built_in: the names of those that are built in.
        read: gives what is in the file at a path.

    Raises:
        StateError: the kernel has no such module, or a file is none.
    """
    inside, seen = set(built_in), set[str]()

    def visit(name: str) -> Iterator[Module]:
        if name in inside or name in seen:
            return
        seen.add(name)
        if name not in paths:
            raise StateError(f"the kernel has no module {name}")
        module = parse(paths[name], read(paths[name]))
        for one in module.needs:
            yield from visit(one)
        yield module

    for name in wanted:
        yield from visit(name)
