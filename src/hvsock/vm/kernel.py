"""Kernels as distributions have them, and what is inside (pure).

A bzImage begins with code that unpacks the real kernel, an ELF program. Where the processor is emulated, unpacking
it takes a third of the whole start; so it is done once, when the image is made. QEMU starts the ELF program by the
PVH protocol, as cloud-hypervisor and Firecracker do.

Source: the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst), version 2.08.
"""

from __future__ import annotations

import lzma
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Final, Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_SECTOR_BYTES: Final = 512
_SETUP_SECTORS: Final = struct.Struct("<B")
_SETUP_SECTORS_AT: Final = 0x1F1
_DEFAULT_SETUP_SECTORS: Final = 4
_MAGIC, _MAGIC_AT = b"HdrS", 0x202
_VERSION: Final = struct.Struct("<H")
_VERSION_AT: Final = 0x206
_FIRST_VERSION: Final = 0x208
_PAYLOAD: Final = struct.Struct("<II")
"""Offset in what follows the setup, and length."""
_PAYLOAD_AT: Final = 0x248
_ELF: Final = b"\x7fELF"


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


_DECOMPRESSORS: Final[dict[bytes, Callable[[], _Decompressor]]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    b"\xfd7zXZ": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    b"\x28\xb5\x2f\xfd": zstd.ZstdDecompressor,
}
"""By how the payload begins."""


def unpacked(data: bytes) -> bytes:
    """The ELF program inside a kernel.

    Args:
        data: the kernel's file.

    Returns:
        The program; `data` as it is where it is no bzImage, or packed in a way that is none of these: gzip, xz,
        zstd. The last is no loss with LZ4, which kernels unpack fast.
    """
    if data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return data
    if len(data) < _PAYLOAD_AT + _PAYLOAD.size or _VERSION.unpack_from(data, _VERSION_AT)[0] < _FIRST_VERSION:
        return data
    sectors = _SETUP_SECTORS.unpack_from(data, _SETUP_SECTORS_AT)[0] or _DEFAULT_SETUP_SECTORS
    offset, length = _PAYLOAD.unpack_from(data, _PAYLOAD_AT)
    start = (sectors + 1) * _SECTOR_BYTES + offset
    payload = data[start : start + length]
    for magic, make in _DECOMPRESSORS.items():
        if payload.startswith(magic):
            decompressor = make()
            try:
                program = decompressor.decompress(payload)  # what follows its end is its length
            except (zlib.error, lzma.LZMAError, zstd.ZstdError):
                return data
            return program if decompressor.eof and program.startswith(_ELF) else data
    return data
