"""What is inside a kernel."""

from __future__ import annotations

import gzip
import lzma
import struct
import sys

import pytest

from hvsock.vm.kernel import unpacked

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PROGRAM = b"\x7fELF" + bytes(range(256)) * 1000


def kernel(payload: bytes, *, sectors: int = 7, version: int = 0x20F) -> bytes:
    """A bzImage with `payload`, whose length follows it as the kernel's own build has it."""
    payload += struct.pack("<I", len(PROGRAM))
    head = bytearray(((sectors or 4) + 1) * 512)
    head[0x1F1] = sectors
    head[0x202:0x208] = b"HdrS" + struct.pack("<H", version)
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    return bytes(head) + bytes(64) + payload + b"what follows"


@pytest.mark.parametrize("sectors", [0, 7])
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd.compress], ids=["gzip", "xz", "zstd"])
def test_packed(pack: object, sectors: int) -> None:
    assert callable(pack)
    assert unpacked(kernel(pack(PROGRAM), sectors=sectors)) == PROGRAM


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PROGRAM,
        kernel(b"\x02\x21\x4c\x18 by LZ4"),
        kernel(gzip.compress(PROGRAM), version=0x207),
        kernel(gzip.compress(PROGRAM))[:0x20A],
        kernel(gzip.compress(PROGRAM))[:4500],
        kernel(gzip.compress(b"no program")),
        *(kernel(magic + bytes(100)) for magic in (b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")),
    ],
    ids=range(10),
)
def test_others_stay_as_they_are(data: bytes) -> None:
    assert unpacked(data) == data
