"""Archives, read back by a reader of the test's own."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.vm import cpio
from hvsock.vm.cpio import Entry

NAMES = st.lists(st.text("abc-é", min_size=1, max_size=4), min_size=1, max_size=3).map("/".join)
ENTRIES = st.builds(cpio.file, NAMES, st.binary(max_size=9), executable=st.booleans())


def unpacked(archive: bytes) -> Iterator[tuple[Entry, list[int]]]:
    """The entries of an archive in their order, with all fields of their headers."""
    at = 0
    while True:
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name[-1:] == b"\0"
        begin = (at + 110 + name_size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert archive[begin:] == b""
            return
        data = archive[begin : begin + size]
        yield Entry(name[:-1].decode(), fields[1], data, (fields[9], fields[10])), fields
        at = (begin + size + 3) & ~3


def read(archive: bytes) -> dict[str, Entry]:
    found = [entry for entry, _ in unpacked(archive)]
    assert len({entry.name for entry in found}) == len(found)
    return {entry.name: entry for entry in found}


@given(st.lists(ENTRIES, unique_by=lambda entry: entry.name, max_size=6))
def test_what_is_packed_is_found_whatever_its_order(entries: list[Entry]) -> None:
    names = {entry.name for entry in entries}
    entries = [entry for entry in entries if not any(name.startswith(entry.name + "/") for name in names)]
    archive = b"".join(cpio.pack(entries))
    assert archive == b"".join(cpio.pack(entries[::-1]))
    found = read(archive)
    assert list(found) == sorted(found)
    assert {entry.name: entry for entry in entries}.items() <= found.items()
    for name in found.keys() - {entry.name for entry in entries}:
        assert stat.S_ISDIR(found[name].mode)
        assert any(entry.name.startswith(name + "/") for entry in entries)


def test_fields_of_each_kind() -> None:
    entries = [
        cpio.file("f", b"12345", executable=True),
        cpio.folder("d"),
        cpio.link("l", "f"),
        cpio.character_device("d/c", 5, 1),
    ]
    found = {entry.name: (entry, fields) for entry, fields in unpacked(b"".join(cpio.pack(entries)))}
    assert oct(found["f"][0].mode) == "0o100755"
    assert oct(found["d"][0].mode) == "0o40755"
    assert oct(found["l"][0].mode) == "0o120777"
    assert oct(found["d/c"][0].mode) == "0o20600"
    assert found["l"][0].data == b"f"
    assert found["d/c"][0].device == (5, 1)
    for _, fields in found.values():
        uid, gid, mtime = fields[2], fields[3], fields[5]
        assert (uid, gid, mtime) == (0, 0, 0)
    assert [fields[4] for _, fields in found.values()] == [2, 1, 1, 1]
    assert len({fields[0] for _, fields in found.values()}) == 4


def test_the_last_of_a_name_counts() -> None:
    assert read(b"".join(cpio.pack([cpio.file("a", b"1"), cpio.file("a", b"2")])))["a"].data == b"2"


@pytest.mark.parametrize("name", ["", "/etc", "a//b", "a/", "../a", "a/../b", ".", ".."])
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="no path inside"):
        list(cpio.pack([cpio.file(name, b"")]))


def test_a_file_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpio, "MAX_FILE_BYTES", 3)
    assert read(b"".join(cpio.pack([cpio.file("a", b"123")])))["a"].data == b"123"
    with pytest.raises(ValueError, match="4 bytes"):
        list(cpio.pack([cpio.file("a", b"1234")]))
